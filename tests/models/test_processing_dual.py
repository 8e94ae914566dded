"""Processors of other dual encoders as COTSProcessor: the same pixels and tokens as from the source's own."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_cots import COTSImageProcessor, COTSProcessor
from hf_cots.models.image_processing_cots import output_sides
from hf_cots.models.processing_dual_encoder import as_cots_image_processor
from tests.support.dual_folders import (
    DUAL_ENCODERS,
    TEXTS,
    cache_on_hub,
    many_images,
    write_clip,
    write_json,
    write_sentence_clip,
)
from tests.support.words import tiny_processor
from tests.support.worlds import SIDE


PADDED = {"siglip": 16, "align": 64}  # to which length


@pytest.fixture(scope="module", params=DUAL_ENCODERS)
def dual(request, tmp_path_factory):
    """The kind of a dual encoder, its own processor, and ours that was made of it."""
    folder = DUAL_ENCODERS[request.param](tmp_path_factory.mktemp("dual") / request.param)
    inner = folder / "0_CLIPModel"
    theirs = AutoProcessor.from_pretrained(inner if inner.is_dir() else folder)
    return request.param, theirs, COTSProcessor.from_dual_encoder(folder)


def pixels(processor, image):
    return processor(images=image, return_tensors="pt")["pixel_values"]


def their_tokens(theirs, kind, length, **options):
    padding = "max_length" if kind in PADDED else True
    return theirs(text=list(TEXTS), padding=padding, truncation=True, max_length=length, return_tensors="pt")


# ---------------------------------------------------------------------- images


def test_pixels_are_the_sources(dual):
    _, theirs, ours = dual
    for image in many_images():
        assert (pixels(ours, image) - pixels(theirs, image)).abs().max() <= 1e-6, image.size
        assert pixels(ours, image).shape == (1, 3, SIDE, SIDE)


def test_images_that_the_source_converts(tmp_path):
    folder = write_clip(tmp_path / "clip")
    theirs, ours = AutoProcessor.from_pretrained(folder), COTSProcessor.from_dual_encoder(folder)
    image = many_images()[0]
    for mode in ("L", "P", "CMYK", "1"):
        assert torch.equal(pixels(ours, image.convert(mode)), pixels(theirs, image.convert(mode))), mode
    # White shows where nothing is, whatever the source does.
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert torch.equal(pixels(ours, clear), pixels(theirs, Image.new("RGB", (40, 40), "white")))


@pytest.mark.parametrize(
    "theirs",
    [
        ViTImageProcessorPil(size={"height": 24, "width": 24}, resample=0, do_normalize=False),
        ViTImageProcessorPil(
            size={"height": 24, "width": 24}, do_rescale=False, image_mean=[9, 8, 7], image_std=[2, 3, 4]
        ),
        ViTImageProcessorPil(size={"height": 24, "width": 24}, image_mean=0.25, image_std=0.5, rescale_factor=1 / 100),
        ViTImageProcessorPil(
            size={"shortest_edge": 30, "longest_edge": 40}, do_center_crop=True, crop_size={"height": 25, "width": 25}
        ),
        EfficientNetImageProcessorPil(size={"height": 24, "width": 24}, rescale_offset=True),
        EfficientNetImageProcessorPil(size={"height": 24, "width": 24}, do_normalize=False, include_top=False),
        ConvNextImageProcessorPil(size={"shortest_edge": 28}),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    ],
    ids=[
        "values 0 to 1",
        "values 0 to 255",
        "factor",
        "longest edge",
        "twice",
        "plain",
        "convnext crops",
        "convnext warps",
    ],
)
def test_other_image_processors(theirs):
    ours = as_cots_image_processor(theirs)
    for image in many_images():
        expected = theirs(images=image, return_tensors="pt")["pixel_values"]
        difference = (ours(images=image, return_tensors="pt")["pixel_values"] - expected).abs().max()
        assert difference <= 1e-6 * max(1, expected.abs().max()), image.size


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (ViTImageProcessorPil(do_resize=False), r"ViTImageProcessorPil does not resize images \(do_resize=False\)"),
        (
            ViTImageProcessorPil(size={"height": 24, "width": 32}),
            "outputs 24 x 32 pixels, but COTS needs square images",
        ),
        (ViTImageProcessorPil(size={"shortest_edge": 24}), "keeps the aspect ratio and does not crop"),
        (
            MobileViTImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24}),
            "MobileViTImageProcessorPil processes images in a way that COTSImageProcessor cannot reproduce",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(theirs, message):
    with pytest.raises(ValueError, match=message):
        as_cots_image_processor(theirs)


def test_another_size(dual):
    kind, _, ours = dual
    larger = ours.image_processor.at_size(48)
    assert output_sides(larger) == (48, 48)
    assert pixels(larger, many_images()[0]).shape == (1, 3, 48, 48)
    resized = {name: side for name, side in dict(larger.size).items() if side}
    expected = {
        "clip": {"shortest_edge": 48},
        "sentence-clip": {"shortest_edge": 48},
        "align": {"height": 57, "width": 57},
    }
    assert resized == expected.get(kind, {"height": 48, "width": 48})
    assert larger.to_dict().keys() == ours.image_processor.to_dict().keys()
    assert output_sides(ours.image_processor) == (SIDE, SIDE)


def test_no_other_size_without_a_square():
    with pytest.raises(ValueError, match="does not output square images of one size"):
        COTSImageProcessor(size={"shortest_edge": 24}).at_size(48)


# ---------------------------------------------------------------------- texts


def test_tokens_are_the_sources(dual):
    kind, theirs, ours = dual
    expected = their_tokens(theirs, kind, ours.tokenizer.model_max_length)
    found = ours(text=list(TEXTS), return_tensors="pt")
    assert set(found) == set(expected) - {"token_type_ids"}
    for name, rows in found.items():
        assert torch.equal(rows, expected[name]), name
    assert found["input_ids"].shape[1] == ours.tokenizer.model_max_length, "the long one is cut"


def test_texts_are_padded_as_the_text_tower_wants(dual):
    kind, _, ours = dual
    short = ours(text=["a red square"], return_tensors="pt")["input_ids"]
    for options in ({}, {"padding": True}, {"padding": "longest"}, {"text_kwargs": {"padding": True}}):
        assert torch.equal(ours(text=["a red square"], return_tensors="pt", **options)["input_ids"], short)
    assert short.shape[1] == PADDED.get(kind, len(ours(text="a red square", padding=False)["input_ids"]))
    assert (
        ours(text="a red square", padding=False)["input_ids"]
        == short[0, : len(ours(text="a red square", padding=False)["input_ids"])].tolist()
    )


# ---------------------------------------------------------------------- files


def test_saved_and_loaded_it_is_the_same(dual, tmp_path):
    _, _, ours = dual
    ours.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is COTSProcessor
    assert again.padding == ours.padding
    assert again.tokenizer.model_max_length == ours.tokenizer.model_max_length
    assert again.model_input_names == ours.model_input_names
    before, after = (p(images=many_images(), text=list(TEXTS), return_tensors="pt") for p in (ours, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_processors_of_before_are_written_as_before(tmp_path):
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    assert "padding" not in (tmp_path / "processor_config.json").read_text()
    assert "crop" not in (tmp_path / "processor_config.json").read_text()
    assert AutoProcessor.from_pretrained(tmp_path).padding == "longest"
    with pytest.raises(ValueError, match='padding must be "longest" or "max_length"'):
        COTSProcessor(processor.image_processor, processor.tokenizer, padding="right")


@pytest.mark.parametrize("write", [write_clip, write_sentence_clip])
def test_from_a_hub_id(tmp_path, write):
    """From a Hub cache made by hand, offline."""
    name = cache_on_hub(write(tmp_path / "source"), "org/clip", tmp_path / "hub")
    ours = COTSProcessor.from_dual_encoder(name, cache_dir=str(tmp_path / "hub"))
    expected = COTSProcessor.from_dual_encoder(tmp_path / "source")
    before, after = (p(images=many_images(), text=list(TEXTS), return_tensors="pt") for p in (ours, expected))
    assert all(torch.equal(before[key], after[key]) for key in after)


def test_other_modules_of_sentence_transformers_are_refused(tmp_path):
    folder = write_sentence_clip(tmp_path / "source")
    modules = [{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    modules += [{"idx": 1, "path": "1_Dense", "type": "sentence_transformers.models.Dense"}]
    write_json(folder / "modules.json", modules)
    with pytest.raises(ValueError, match=r"\(sentence-transformers\) cannot become a COTS.*CLIPModel, Dense"):
        COTSProcessor.from_dual_encoder(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"modules\.json is not a valid file of sentence-transformers|modules are none"
    ):
        COTSProcessor.from_dual_encoder(folder)


def test_a_model_of_texts_alone_is_refused(world):
    _, text = world.towers()
    with pytest.raises(ValueError, match="has no image processor"):
        COTSProcessor.from_dual_encoder(text)


def test_an_image_processor_that_squeezes_is_told_from_one_that_crops(tmp_path):
    """The comparison of pixels sees a wrong expression."""
    theirs = AutoProcessor.from_pretrained(write_clip(tmp_path / "clip")).image_processor
    squeezing = copy.deepcopy(theirs)
    squeezing.center_crop = lambda image, size, **options: np.ascontiguousarray(image[:, : size.height, : size.width])
    with pytest.raises(ValueError, match="cannot reproduce: pixels differ by"):
        as_cots_image_processor(squeezing)
