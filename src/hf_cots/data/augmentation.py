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
        size: side of the result in pixels.
        min_scale: smallest area of the crop as a fraction of the image; 0.2 in COTS's recipe, ours for what the paper
            does not say. 1, with a `min_aspect` of 1, keeps all of a square image.
        flip: probability of the horizontal flip. Captions that name left and right, or letters, want 0.
        min_aspect: narrowest crop, width over height; the widest is its inverse.
        recolor: probability of [`recolor_image`], for drawings on white such as icons, whose color means nothing.

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
        """An RGB image of `size` x `size` pixels."""
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
    """Map an image's black to a random color and its white to another, and all between them linearly, so that half of
    the drawings stand on a dark ground. A color too near the other becomes black or white, whichever is farther."""
    ink, ground = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    if abs(ink.mean() - ground.mean()) < MIN_CONTRAST:
        ink = np.full(3, 0.0 if ground.mean() > 127.5 else 255.0)
    shade = np.asarray(image, dtype=np.float32) / 255
    return Image.fromarray((ink + shade * (ground - ink)).round().astype(np.uint8))


def crop_image(item: dict[str, Any], augmentation: RandomCropFlip) -> Image.Image:
    """Crop an item's image as the item's own seed decides."""
    return augmentation(item["image"], generator(item["seed"], RandomStream.AUGMENTATION))


def crop_clip(item: dict[str, Any], augmentation: RandomCropFlip) -> VideoFrames:
    """Crop an item's clip as the item's own seed decides: every frame by the same rectangle, flip and colors."""
    clip = item["video"]
    images = [augmentation(image, generator(item["seed"], RandomStream.AUGMENTATION)) for image in clip.images]
    return replace(clip, images=images)
