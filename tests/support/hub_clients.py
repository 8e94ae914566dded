"""A model goes to a local Hub and comes back through its clients, which `tests/scripts/hub_client.py` runs."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.dual_folders import write_sentence_clip
from tests.support.hub_stub import Hub, hub
from tests.support.paths import SCRIPTS
from tests.support.processes import ENVIRONMENT, run_python
from tests.support.worlds import World


@contextmanager
def serve_clients(world: World) -> Iterator[tuple[Hub, Path]]:
    """A Hub with what its user has not uploaded, and the user's folder."""
    folder = world.root / "user"
    shutil.copytree(world.imagefolder, folder / "images")
    shutil.copytree(world.model, folder / "model")
    write_sentence_clip(folder / "sentence-clip")
    run = world.settings(folder / "trained", max_steps=1, push_to_hub=True, hub_model_id="org/trained")
    (folder / "train.json").write_text(json.dumps(run, default=str))
    with hub() as server:
        server.add("org/sentence-clip", folder / "sentence-clip")
        server.add("datasets/org/pairs", folder / "images")
        yield server, folder


def run_clients(server: Hub, folder: Path, mode: str, timeout: float = 280) -> dict[str, dict[str, float] | str]:
    """What the clients found: the largest differences of each, or the traceback of its error.

    Args:
        mode: "with" the package, where the model is uploaded first, or "without" it.
        timeout: seconds after which to give up.
    """
    output = folder / f"{mode}.json"
    variables = ENVIRONMENT | server.variables(folder / f"home-{mode}")
    done = run_python(SCRIPTS / "hub_client.py", folder, mode, output, env=variables, timeout=timeout)
    assert output.exists(), done.stderr[-3000:]
    return json.loads(output.read_text())
