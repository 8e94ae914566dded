"""The processors of other dual encoders (CLIP, SigLIP, Chinese-CLIP, ALIGN, ...) as COTS's own: the same pixels and
the same tokens."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from .dual_encoder_files import locate_dual_encoder
from .image_processing_cots import COTSImageProcessor


# Text towers that were trained on texts padded to full length, without an attention mask (Zhai et al., 2023).
PADDED_TO_FULL_LENGTH = ("siglip", "siglip2")
WARP_FROM = 384  # ConvNeXT's image processor crops below this side, and squeezes from it on
PROBE_SIZES = ((61, 47), (45, 90), (9, 14), (130, 40))
LARGEST_DIFFERENCE = 1e-6  # in pixels whose magnitude is at most 1


def load_dual_processor(source: str, **hub: Any) -> tuple[ProcessorMixin, PreTrainedConfig]:
    """A dual encoder's own processor, without torchvision, and its model's config.

    Args:
        source: Hub id or folder; sentence-transformers' folders of a CLIP too.
        hub: `revision` and `token`.

    Raises:
        OSError: if it is not there.
        ValueError: naming what is missing, if it is no processor of images and texts.
        ModuleNotFoundError: naming the package that its tokenizer needs.
    """
    name, subfolder = locate_dual_encoder(source, **hub)
    options = {"trust_remote_code": False, "subfolder": subfolder, **hub}
    config = AutoConfig.from_pretrained(name, **options)
    try:
        processor = AutoProcessor.from_pretrained(name, backend="pil", **options)
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        packages = [package for package in ("sentencepiece", "protobuf") if package in str(error).lower()]
        if not packages:
            raise
        raise ModuleNotFoundError(
            f"the tokenizer of {source} needs {packages[0]}: pip install {packages[0]}"
        ) from None
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise ValueError(f"{source} has no {part.replace('_', ' ')}, only a {type(processor).__name__}")
    return processor, config


def text_defaults(processor: ProcessorMixin) -> dict[str, Any]:
    """The options with which a processor calls its tokenizer where none are given."""
    options = getattr(processor, "text_kwargs", None)
    if options is None:  # transformers 5.20 keeps them in a class beside the processor's
        defaults = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
        options = defaults.get("text_kwargs")
    return options or {}


def pads_to_full_length(processor: ProcessorMixin, config: PreTrainedConfig) -> bool:
    """Whether a dual encoder's texts are padded to its full length: by its processor's default, as ALIGN's, or by how
    it was trained, as SigLIP."""
    return text_defaults(processor).get("padding") == "max_length" or config.model_type in PADDED_TO_FULL_LENGTH


def text_limit(processor: ProcessorMixin, config: PreTrainedConfig) -> int:
    """Tokens at which a dual encoder's texts are cut: the least of what tokenizer, processor and text tower allow."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = (processor.tokenizer.model_max_length, text_defaults(processor).get("max_length"), positions)
    return min(limit for limit in limits if isinstance(limit, int) and limit > 0)


# ---------------------------------------------------------------------- images


def as_cots_image_processor(theirs: BaseImageProcessor) -> COTSImageProcessor:
    """The [`COTSImageProcessor`] that gives the same pixels as another image processor, to 1e-6, for 8-bit RGB images.

    Images of other kinds become such by [`to_rgb`], whatever the other does with them.

    Raises:
        ValueError: naming the class and what it does that cannot be expressed.
    """
    name = type(theirs).__name__
    size, crop = find_sizes(theirs, name)
    mean, std = find_normalization(theirs)
    ours = COTSImageProcessor(
        size=size,
        do_center_crop=True if crop else None,
        crop_size={"height": crop, "width": crop} if crop else None,
        resample=int(theirs.resample),
        image_mean=mean,
        image_std=std,
    )
    difference = compare_pixels(ours, theirs, name)
    if difference > LARGEST_DIFFERENCE:
        raise ValueError(
            f"{name} processes images in a way that COTSImageProcessor cannot reproduce: pixels differ by "
            f"{difference:.2g}"
        )
    return ours


def find_sizes(theirs: BaseImageProcessor, name: str) -> tuple[dict[str, int], int | None]:
    """The size that an image processor resizes to, and the side that it crops to; None for no crop.

    Raises:
        ValueError: if its images are not all of one square size.
    """
    if not theirs.do_resize:
        raise ValueError(f"{name} does not resize images (do_resize=False), but COTS needs images of one size")
    size, edge = {key: value for key, value in dict(theirs.size).items() if value}, theirs.size.shortest_edge
    crop = theirs.crop_size if theirs.do_center_crop else None
    if edge and getattr(theirs, "crop_pct", None):  # ConvNeXT's
        if edge >= WARP_FROM:
            return {"height": edge, "width": edge}, None
        return {"shortest_edge": int(edge / theirs.crop_pct)}, edge
    height, width = (theirs.size.height, theirs.size.width) if crop is None else (crop.height, crop.width)
    if not height or height != width:
        made = f"outputs {height} x {width} pixels" if height else "keeps the aspect ratio and does not crop"
        raise ValueError(f"{name} {made}, but COTS needs square images (size or crop_size with two equal sides)")
    return size, None if crop is None else height


def find_normalization(theirs: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """Mean and deviation, per channel, that have the effect of all that an image processor does to values: rescaling
    by any factor with or without an offset, normalization, and EfficientNet's second division."""
    do_rescale, factor = theirs.do_rescale, theirs.rescale_factor
    offset, twice = getattr(theirs, "rescale_offset", False), getattr(theirs, "include_top", False)
    mean, std = (
        [float(value)] * 3 if isinstance(value, (int, float)) else list(value or ())
        for value in (theirs.image_mean, theirs.image_std)
    )
    usual = do_rescale and factor == 1 / 255 and not offset and not twice
    if usual and theirs.do_normalize:
        return mean, std  # as they are, to the last bit
    # Values are scale * u + shift, where u in [0, 1] is what we normalize.
    scale, shift = (
        np.full(3, factor * 255 if do_rescale else 255.0),
        np.full(3, -1.0 if do_rescale and offset else 0.0),
    )
    if theirs.do_normalize:
        scale, shift = scale / std, (shift - mean) / std
    if twice:
        scale, shift = scale / std, shift / std
    # Beyond nine digits there is only the rounding of these lines.
    return [round(x, 9) for x in (-shift / scale).tolist()], [round(x, 9) for x in (1 / scale).tolist()]


def compare_pixels(ours: BaseImageProcessor, theirs: BaseImageProcessor, name: str) -> float:
    """The largest difference of pixels on images of random colors, landscape, portrait and tiny, divided by the
    largest magnitude if that is above 1.

    Raises:
        ValueError: naming the class, if even the shapes differ.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    for height, width in PROBE_SIZES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected, found = (
            np.asarray(processor(images=image, return_tensors="np")["pixel_values"]) for processor in (theirs, ours)
        )
        if expected.shape != found.shape:
            raise ValueError(f"{name} outputs arrays of shape {expected.shape[1:]}, but COTS needs {found.shape[1:]}")
        worst = max(worst, float(np.abs(expected - found).max() / max(1.0, np.abs(expected).max())))
    return worst


__all__ = ["as_cots_image_processor", "load_dual_processor", "pads_to_full_length", "text_limit"]
