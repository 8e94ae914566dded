"""What every transformers processor and pipeline is expected to do.

Of the common tests of transformers (`test_processing_common.py`, `test_image_processing_common.py`, 5.24) those about
chat templates, audio, video, tokens that stand for images, segmentation and torchvision do not apply. One is not
answered: `to_dict()` of a loaded processor has an `auto_map` that a fresh one lacks, by which its code is found.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline

from hf_cots import COTSImageProcessor, COTSModel, COTSProcessor
from tests.support.model_classes import ALL_ENCODERS, make
from tests.support.words import tiny_processor


SOURCE = np.random.default_rng(0)
IMAGES = [Image.fromarray(SOURCE.integers(0, 255, (40, 30, 3), dtype=np.uint8)) for _ in range(2)]
TEXTS = ["a red dog", "sky"]


def test_the_model_input_names_are_what_a_call_returns():
    processor = tiny_processor()
    assert set(processor(images=IMAGES, text=TEXTS)) == set(processor.model_input_names)
    assert set(processor.model_input_names) == {"pixel_values", "input_ids", "attention_mask"}


def test_a_call_gives_what_the_parts_give():
    processor = tiny_processor()
    both = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    pixels = processor.image_processor(IMAGES, return_tensors="pt")
    words = processor.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(both["pixel_values"], pixels["pixel_values"])
    assert torch.equal(both["input_ids"], words["input_ids"])
    assert torch.equal(both["attention_mask"], words["attention_mask"])


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_arguments_of_a_call_go_before_defaults_and_leave_no_trace(nested):
    processor = tiny_processor()
    plain = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    images, text = {"do_normalize": False}, {"padding": "max_length", "max_length": 9}
    asked = {"images_kwargs": images, "text_kwargs": text} if nested else images | text
    other = processor(images=IMAGES, text=TEXTS, return_tensors="pt", **asked)
    assert other["pixel_values"].min() >= 0 > plain["pixel_values"].min()
    assert other["input_ids"].shape == (2, 9)
    again = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_arguments_of_a_load_reach_the_parts(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    loaded = COTSProcessor.from_pretrained(tmp_path, do_normalize=False, cls_token="(CLS)")
    assert not loaded.image_processor.do_normalize
    assert loaded.tokenizer.cls_token == "(CLS)"


def test_the_parts_load_alone_from_the_processors_folder(tmp_path):
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    whole = AutoProcessor.from_pretrained(tmp_path)
    parts = COTSProcessor(AutoImageProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    expected = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    for other in (whole, parts):
        given = other(images=IMAGES, text=TEXTS, return_tensors="pt")
        assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_an_image_processor_is_what_its_json_says(tmp_path):
    processor = COTSImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    processor.to_json_file(tmp_path / "preprocessor_config.json")
    from_file = COTSImageProcessor.from_json_file(tmp_path / "preprocessor_config.json")
    for other in (from_file, COTSImageProcessor.from_dict(processor.to_dict())):
        assert other.to_dict() == processor.to_dict()
    assert json.loads(processor.to_json_string())["image_mean"] == [0.1, 0.2, 0.3]
    changed = COTSImageProcessor.from_dict(processor.to_dict(), size={"height": 48, "width": 48})
    assert changed(IMAGES[0], return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)
    assert processor(IMAGES[0], return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_pixels_move_to_a_type():
    pixels = tiny_processor().image_processor(IMAGES, return_tensors="pt").to(torch.float16)
    assert pixels["pixel_values"].dtype == torch.float16


@ALL_ENCODERS
def test_pipelines_for_features(cls, tmp_path):
    """Pooled and not: the embedding, either way."""
    model, processor = make(cls), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        image = model(**processor(images=IMAGES[0], return_tensors="pt")).image_embeds
        text = model(**processor(text="a red dog", return_tensors="pt")).text_embeds
    for pool in (True, False):
        features = pipeline("image-feature-extraction", model=str(tmp_path), pool=pool)(IMAGES[0])
        torch.testing.assert_close(torch.tensor(features), image, rtol=1e-5, atol=1e-6)
    features = pipeline("feature-extraction", model=str(tmp_path))("a red dog")
    torch.testing.assert_close(torch.tensor(features), text, rtol=1e-5, atol=1e-6)


def test_zero_shot_classification(tmp_path):
    make(COTSModel).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    found = classify(IMAGES[0], candidate_labels=["red", "dog"], hypothesis_template="a {}")
    assert {row["label"] for row in found} == {"red", "dog"}
    assert sum(row["score"] for row in found) == pytest.approx(1, abs=1e-5)
