"""Image processor of COTS: turns any image that PIL opens into normalized square RGB pixels."""

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB.

    EXIF rotation is applied; transparency is composited on white; 16-bit grayscale is scaled down (PIL alone clips it
    to white); palette, grayscale and CMYK are converted. Of an animation the current frame is taken.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        # PNG's 16-bit samples arrive as I;16 or I, by version of PIL; TIFF's floats lie in [0, 1] or in [0, 255].
        wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
        scale = 257.0 if wide else 1.0 if values.max(initial=0) > 1 else 1 / 255
        image = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


class COTSImageProcessor(PilBackend):
    """Resize to a square, rescale to [0, 1], normalize. Works on PIL images, numpy arrays and tensors.

    The full image is squeezed into the square, as retrieval models do: a crop could lose what the caption names.
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

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs):
        """Convert one image to a channels-first array; PIL images keep their alpha and bit depth until [`to_rgb`]."""
        if do_convert_rgb and isinstance(image, Image.Image):
            image = to_rgb(image)
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )
