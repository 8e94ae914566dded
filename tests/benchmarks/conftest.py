"""One small data set for all tests of the benchmarks."""

import pytest

from benchmarks.ablation.sets import AblationSet
from hf_cots.data.sets import emoji as emoji_set


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A work folder with a twentieth of the emoji, in both styles, prepared as by the command."""
    folder = tmp_path_factory.mktemp("work")
    few = [pair for i, pair in enumerate(emoji_set.list_emoji_pairs()) if i % 40 < 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_set, "list_emoji_pairs", lambda: few)
        AblationSet.prepare("emoji", folder)
    return folder
