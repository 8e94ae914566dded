"""Augmentation of training images: a pure function of the image and a random generator."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..models.masking import RandomStream, generator
from ..models.video_frames import VideoFrames


MIN_CONTRAST = 96.0  # of 255, between the mean of a drawing's color and that of its ground


@dataclass(frozen=True)
class RandomCropFlip:
    """Crop a random rectangle, resize it to a square, flip it at random (RandomResizedCrop of Szegedy et al. 2015).

    Args:
        size: side of the output image in pixels.
        min_scale: minimum area of the crop, as a fraction of the image. The default of the COTS recipe, 0.2, is our
            choice; the paper does not say. 1, with `min_aspect=1`, keeps the whole of a square image.
        flip: probability of a horizontal flip. Use 0 if captions mention left and right, or images contain letters.
        min_aspect: minimum aspect ratio (width over height) of the crop; the maximum is its inverse.
        recolor: probability of [`recolor_image`], for drawings on white, such as icons, whose color has no meaning.

    Example:
        >>> crop = RandomCropFlip(size=224, min_scale=0.5)
        >>> crop(Image.new("RGB", (640, 480)), np.random.default_rng(0)).size
        (224, 224)
    """

    size: int
    min_scale: float = 0.2
    flip: float = 0.5
    min_aspect: float = 3 / 4
    recolor: float = 0.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return a crop as an RGB image of `size` x `size` pixels."""
        width, height = image.size
        area = rng.uniform(self.min_scale, 1) * width * height
        limit = abs(math.log(self.min_aspect))
        aspect = math.exp(rng.uniform(-limit, limit))
        crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
        crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
        left = int(rng.integers(0, width - crop_width + 1))
        top = int(rng.integers(0, height - crop_height + 1))
        box = (left, top, left + crop_width, top + crop_height)
        crop = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        crop = ImageOps.mirror(crop) if rng.random() < self.flip else crop
        return recolor_image(crop, rng) if self.recolor and rng.random() < self.recolor else crop


def recolor_image(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Map black to a random color, white to another, and everything between them linearly, so that half of the
    drawings get a dark background. A color too close to the other becomes black or white, whichever is farther."""
    ink, ground = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    if abs(ink.mean() - ground.mean()) < MIN_CONTRAST:
        ink = np.full(3, 0.0 if ground.mean() > 127.5 else 255.0)
    shade = np.asarray(image, dtype=np.float32) / 255
    return Image.fromarray((ink + shade * (ground - ink)).round().astype(np.uint8))


def crop_image(item: dict[str, Any], augmentation: RandomCropFlip) -> Image.Image:
    """Crop an item's image, using the item's own random seed."""
    return augmentation(item["image"], generator(item["seed"], RandomStream.AUGMENTATION))


def crop_clip(item: dict[str, Any], augmentation: RandomCropFlip) -> VideoFrames:
    """Crop an item's clip, using the item's own random seed; all frames get the same rectangle, flip and colors."""
    clip = item["video"]
    images = [augmentation(image, generator(item["seed"], RandomStream.AUGMENTATION)) for image in clip.images]
    return replace(clip, images=images)
