"""The processor: images and texts of any kind in, what the model takes out."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hf_cots import COTSModel, COTSProcessor
from tests.support.tiny import tiny_config
from tests.support.words import tiny_processor


@pytest.fixture
def processor():
    return tiny_processor()


RED = Image.new("RGB", (40, 30), "red")


def test_images_and_texts_together(processor):
    blue = Image.new("RGB", (40, 30), "blue")
    inputs = processor(images=[RED, blue], text=["a red dog", "sky"], return_tensors="pt")
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask"}
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert inputs["input_ids"].shape == (2, 5)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert inputs["input_ids"][:, 0].tolist() == [101, 101]
    assert inputs["input_ids"][1].tolist()[2:] == [102, 0, 0]
    output = COTSModel(tiny_config())(**inputs)
    assert output.logits_per_image.shape == (2, 2)


def test_either_alone(processor):
    assert set(processor(text="a dog", return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(images=RED, return_tensors="pt")) == {"pixel_values"}


def test_neither_is_refused(processor):
    with pytest.raises((ValueError, TypeError)):
        processor()


def test_single_equals_list(processor):
    single = processor(images=RED, text="a dog", return_tensors="pt")
    many = processor(images=[RED], text=["a dog"], return_tensors="pt")
    for name in many:
        assert torch.equal(single[name], many[name]), name


def test_no_token_type_ids_unless_asked(processor):
    assert "token_type_ids" not in processor(text=["a dog"])
    assert "token_type_ids" in processor(text=["a dog"], return_token_type_ids=True)


def test_long_texts_are_cut_at_model_max_length(processor):
    inputs = processor(text=["a red dog runs on the house . " * 500, "dog"], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 32)
    assert int(inputs["input_ids"][0, -1]) == 102, "the end token survives"
    longer = processor(text=["a dog " * 100], truncation=False)
    assert len(longer["input_ids"][0]) == 202
    fixed = processor(text=["dog"], padding="max_length", max_length=12, return_tensors="pt")
    assert fixed["input_ids"].shape == (1, 12)


@pytest.mark.parametrize(
    "text", ["", "   ", "\n", "犬が走る", "Ελληνικά", "🐶🐱", "e\u0301te\u0301", "dog\x00cat", "ÄÖÜ"]
)
def test_strange_texts_give_finite_embeddings(processor, text):
    inputs = processor(text=[text, "a dog"], return_tensors="pt")
    assert inputs["input_ids"][0, 0] == 101
    assert inputs["attention_mask"].sum(dim=1).min() >= 2
    embeds = COTSModel(tiny_config()).eval()(**inputs).text_embeds
    assert torch.isfinite(embeds).all()


def test_known_and_unknown_words(processor):
    ids = processor(text=["dog", "dogs", "犬"])["input_ids"]
    tokens = processor.tokenizer.convert_ids_to_tokens
    assert tokens(ids[0])[1:2] == ["dog"]
    assert tokens(ids[1])[1:3] == ["dog", "##s"]
    assert tokens(ids[2])[1:2] == ["[UNK]"]


def test_decoding(processor):
    ids = processor(text=["a red dog"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a red dog"]


@pytest.mark.parametrize("cls", [COTSProcessor, AutoProcessor])
def test_save_and_load(tmp_path, processor, cls):
    processor.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert type(loaded) is COTSProcessor
    assert loaded.tokenizer.model_max_length == 32
    texts = ["a red dog runs", "", "sky " * 100]
    a, b = (p(images=[RED] * 3, text=texts, return_tensors="pt") for p in (processor, loaded))
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_model_input_names(processor):
    assert {"pixel_values", "input_ids", "attention_mask"} <= set(processor.model_input_names)
