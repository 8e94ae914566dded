"""Image processor of COTS: turns any image that PIL opens into normalized square RGB pixels."""

import base64
import binascii
import io
import os
import urllib.request
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.utils import is_torch_tensor


if TYPE_CHECKING:
    import torch

ENCODED = (str, os.PathLike, bytes, bytearray, memoryview, io.IOBase)
ROUNDING = 1e-4  # of a gray level: k / 255 in float32 times 255 may lie this little below k


# ---------------------------------------------------------------------- one way in for images of every kind


def load_image(source: Any) -> Image.Image:
    """Read an image of any kind as upright 8-bit RGB: the same file gives the same pixels, whoever opens it.

    Args:
        source: a path, URL, data URL, open file, encoded bytes, a table's cell with `bytes` and `path`, a PIL image,
            or an array or tensor as [`image_from_array`] takes it.

    Raises:
        ValueError: naming what cannot be read, or is no image.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, np.ndarray) or is_torch_tensor(source):
        return to_rgb(image_from_array(source))
    if isinstance(source, dict) and {"bytes", "path"} & set(source):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if not isinstance(source, ENCODED):
        raise ValueError(
            f"an image must be a path, a URL, bytes, a PIL image, an array or a tensor, not {type(source).__name__}"
        )
    try:
        with warnings.catch_warnings():
            # PIL only warns of moderate decompression bombs; those would take gigabytes too.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_image(source) as opened:
                return to_rgb(opened)
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        name, reason = _describe(source), str(error) or type(error).__name__
        raise ValueError(reason if name in reason else f"{name}: {reason}") from None


def open_image(source: Any) -> Image.Image:
    """Open a path, URL, data URL, base64 text, file or encoded bytes with PIL, which reads the header only.

    Raises:
        OSError: if there is no such file, a URL cannot be downloaded, or what is there is no image.
    """
    if isinstance(source, str) and not os.path.isfile(source):
        source = _from_text(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    try:
        return Image.open(source)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image file: {source}") from None
    except UnidentifiedImageError:
        name = "these bytes" if isinstance(source, io.IOBase) else f"'{source}'"
        raise UnidentifiedImageError(f"cannot identify image file {name}") from None


def _from_text(text: str) -> bytes:
    """The encoded image that a URL, a data URL or base64 text stands for, as in transformers."""
    if text.startswith(("http://", "https://")):
        request = urllib.request.Request(text, headers={"User-Agent": "Mozilla/5.0 (hf_cots)"})
        with urllib.request.urlopen(request) as answer:
            return answer.read()
    if os.path.isdir(text):
        raise IsADirectoryError(f"a folder, not an image file: {text}")
    data = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        decoded = base64.b64decode(data, validate=True)
        Image.open(io.BytesIO(decoded)).close()
    except (binascii.Error, UnidentifiedImageError, ValueError):
        raise FileNotFoundError(f"no such image file: {_describe(text)}") from None
    return decoded


def _describe(source: Any) -> str:
    """What to call an image in an error."""
    if not isinstance(source, (str, os.PathLike)):
        return "image without a name"
    return name if len(name := str(source)) < 300 else f"{name[:60]}..."


def image_from_array(
    array: "np.ndarray | torch.Tensor", input_data_format: str | ChannelDimension | None = None
) -> Image.Image:
    """Make a PIL image of the samples of one image.

    Args:
        array: (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels (gray,
            RGB, RGBA). Booleans; integers of 8 or 16 bits; or floats in [0, 1] or in [0, 255].
        input_data_format: where the channels are, if the shape does not tell.

    Raises:
        ValueError: naming the shape or the values that are not an image's.
    """
    half = str(array.dtype) in ("float16", "torch.float16", "torch.bfloat16")
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu()
        array = (array.float() if half else array).numpy()
    array = array.astype(np.float32) if half else array
    array = _channels_last(array.astype(array.dtype.newbyteorder("="), copy=False), input_data_format)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"the values of an image array must be numbers, not {array.dtype}")
    if not array.min() >= 0 or not array.max() <= 65535:  # NaN is neither
        raise ValueError(
            f"an array with values from {array.min():g} to {array.max():g} is not an image: neither in [0, 1], nor 8 "
            "or 16 bits (was it normalized before?)"
        )
    if half:
        return Image.fromarray(_eight_bits(array, rounding=0.5))
    if array.ndim == 2:  # as PIL holds what it reads from files
        return Image.fromarray(array if array.dtype == np.uint16 else array.astype(_gray_type(array)))
    if array.dtype == np.uint16 or (np.issubdtype(array.dtype, np.integer) and array.max() > 255):
        return Image.fromarray((array.astype(np.uint16) >> 8).astype(np.uint8))  # as PIL reads a file of 16-bit colors
    if np.issubdtype(array.dtype, np.integer):
        return Image.fromarray(array.astype(np.uint8))
    return Image.fromarray(_eight_bits(array))


def _channels_last(array: np.ndarray, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    """(height, width) for gray, otherwise (height, width, channels)."""
    shape = array.shape
    if array.ndim not in (2, 3) or 0 in shape:
        raise ValueError(
            f"an array of shape {shape} is not an image: expected (height, width), with or without channels"
        )
    if array.ndim == 3:
        # Where both ends could be channels, the first is taken, as in transformers.
        first = shape[0] in (1, 3, 4) if input_data_format is None else input_data_format == ChannelDimension.FIRST
        array = np.moveaxis(array, 0, -1) if first else array
        if array.shape[2] not in (1, 2, 3, 4):
            raise ValueError(
                f"an array of shape {shape} is not an image: neither its first nor its last dimension is 1, 3 or 4 "
                "channels"
            )
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _gray_type(array: np.ndarray) -> type:
    return np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32


def _eight_bits(values: np.ndarray, wide: bool = False, rounding: float = ROUNDING) -> np.ndarray:
    """Samples in [0, 1], in [0, 255] or, if `wide` or greater than that, of 16 bits, as uint8."""
    highest = values.max(initial=0)
    if not np.isfinite(values).all():
        raise ValueError("the image contains values that are not finite")
    scale = 257.0 if wide or highest > 255 else 1.0 if highest > 1 else 1 / 255
    return np.clip(values.astype(np.float64) / scale + rounding, 0, 255).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB.

    EXIF rotation is applied; transparency is composited on white; 16-bit grayscale is scaled down (PIL alone clips it
    to white); palette, grayscale and CMYK are converted. Of an animation the current frame is taken.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # PNG's 16-bit samples arrive as I;16 or I, by version of PIL; TIFF's floats lie in [0, 1] or in [0, 255].
        image = Image.fromarray(_eight_bits(np.asarray(image), wide=image.mode.startswith("I;16")))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


# ---------------------------------------------------------------------- the processor


class COTSImageProcessor(PilBackend):
    """Resize to a square, rescale to [0, 1], normalize. Works on all that [`load_image`] reads, one or many.

    The full image is squeezed into the square, as retrieval models do: a crop could lose what the caption names.
    `size={"shortest_edge": 224}, do_center_crop=True, crop_size={"height": 224, "width": 224}` keeps the aspect ratio
    and takes the middle, as CLIP does.

    PIL does the work on every machine, so that a model gives the same embeddings everywhere, without torchvision.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 384, "width": 384}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def at_size(self, side: int) -> "COTSImageProcessor":
        """The same processor for square images of another side in pixels; before a crop they are resized in
        proportion.

        Raises:
            ValueError: if the images of this one are not of one square size.
        """
        sides = output_sides(self)
        if sides is None or sides[0] != sides[1]:
            raise ValueError(
                "the image processor does not output square images of one size, so its size cannot be changed"
            )
        fields = self.to_dict()
        resized = {name: round(value * side / sides[0]) for name, value in dict(self.size).items() if value}
        fields |= {"size": resized} | ({"crop_size": {"height": side, "width": side}} if self.do_center_crop else {})
        return type(self).from_dict(fields)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Read what is not in memory yet; lists keep their form. transformers' own would drop transparency and bit
        depth on the way."""
        return _fetch(image_url_or_urls, "images")

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        """A flat list of single images."""
        flat = _flatten(self.fetch_images(images))
        if not flat:
            raise ValueError("images is empty: give at least one image")
        return flat

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs):
        """Convert one image to a channels-first array; images keep their alpha and bit depth until [`to_rgb`]."""
        if do_convert_rgb and isinstance(image, Image.Image):
            image = to_rgb(image)
        elif do_convert_rgb and (kwargs.get("do_rescale") is not False or not _is_floating(image)):
            image, input_data_format = to_rgb(image_from_array(image, input_data_format)), None
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )


def output_sides(image_processor: BaseImageProcessor) -> tuple[int, int] | None:
    """Height and width in pixels of the images that an image processor gives; None if they differ from image to
    image."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", None) else image_processor.size
    return (size.height, size.width) if size is not None and size.height and size.width else None


def _is_floating(array: "np.ndarray | torch.Tensor") -> bool:
    """Whether an array may hold values that its owner has brought to a scale of their own."""
    if isinstance(array, np.ndarray):
        return np.issubdtype(array.dtype, np.floating)
    return array.is_floating_point()


def _fetch(images: Any, name: str) -> Any:
    """Images in memory stay as they are, those elsewhere are read, collections become lists; errors say which."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUS":
        images = images.tolist()  # of paths, or of images
    if isinstance(images, (Image.Image, np.ndarray)) or is_torch_tensor(images):
        return images
    if isinstance(images, Iterable) and not isinstance(images, (*ENCODED, dict)):
        return [_fetch(image, f"{name}[{i}]") for i, image in enumerate(images)]
    try:
        return load_image(images)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _flatten(images: Any) -> list:
    """The single images of nested lists and of batches (n, height, width, channels)."""
    if isinstance(images, list) or (not isinstance(images, Image.Image) and images.ndim == 4):
        return [image for each in images for image in _flatten(each)]
    return [images]
