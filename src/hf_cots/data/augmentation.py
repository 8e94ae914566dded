"""Augmentation of training images: a pure function of the image and a random generator."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..models.masking import RandomStream, generator


@dataclass(frozen=True)
class RandomCropFlip:
    """Crop a random rectangle, resize it to a square, flip it at random (RandomResizedCrop of Szegedy et al. 2015).

    Args:
        size: side of the result in pixels.
        min_scale: smallest area of the crop as a fraction of the image; 0.2 in COTS's recipe, ours for what the paper
            does not say. 1, with a `min_aspect` of 1, keeps all of a square image.
        flip: probability of the horizontal flip. Captions that name left and right, or letters, want 0.
        min_aspect: narrowest crop, width over height; the widest is its inverse.

    Example:
        >>> crop = RandomCropFlip(size=224, min_scale=0.5)
        >>> crop(Image.new("RGB", (640, 480)), np.random.default_rng(0)).size
        (224, 224)
    """

    size: int
    min_scale: float = 0.2
    flip: float = 0.5
    min_aspect: float = 3 / 4

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
        return ImageOps.mirror(crop) if rng.random() < self.flip else crop


def crop_image(item: dict[str, Any], augmentation: RandomCropFlip) -> Image.Image:
    """Crop an item's image as the item's own seed decides."""
    return augmentation(item["image"], generator(item["seed"], RandomStream.AUGMENTATION))
