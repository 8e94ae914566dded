"""Second views of images and captions, for contrasts within one modality: pure functions of an item's seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from ..models import CookieConfig, COTSProcessor
from ..models.masking import RandomStream, generator
from .augmentation import RandomCropFlip


# MoCo v2's numbers (Chen et al. 2020).
JITTER_PROBABILITY = 0.8
MAX_BLUR = 2 / 224  # the widest blur as a fraction of the side


@dataclass(frozen=True)
class StrongView:
    """Crop, flip, color jitter, grayscale and blur, as in SimCLR and MoCo v2 (Chen et al. 2020).

    Args:
        crop: as for the weak view.
        color_jitter: brightness, contrast and saturation change by a factor within 1 +- this, in random order; the hue
            by a quarter of this, as a fraction of the circle.
        grayscale, blur: probabilities.
    """

    crop: RandomCropFlip
    color_jitter: float = 0.4
    grayscale: float = 0.2
    blur: float = 0.5

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An RGB image of the crop's size."""
        view = self.crop(image, rng)
        if self.color_jitter and rng.random() < JITTER_PROBABILITY:
            view = self._jitter(view, rng)
        if rng.random() < self.grayscale:
            view = view.convert("L").convert("RGB")
        if rng.random() < self.blur:
            view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.05, 1) * MAX_BLUR * self.crop.size))
        return view

    def _jitter(self, view: Image.Image, rng: np.random.Generator) -> Image.Image:
        changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind in rng.permutation(len(changes) + 1):
            if kind == len(changes):
                shift = round(256 * rng.uniform(-self.color_jitter, self.color_jitter) / 4)
                hue, saturation, value = view.convert("HSV").split()
                hue = hue.point([(level + shift) % 256 for level in range(256)])
                view = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            else:
                view = changes[kind](view).enhance(1 + rng.uniform(-self.color_jitter, self.color_jitter))
        return view


@dataclass(frozen=True)
class TokenDropping:
    """Drop tokens that are not special one by one: mask them, replace them by random ones, or delete them.

    Args:
        ratio: probability that a token is dropped.
        masked, replaced: fractions of the dropped tokens that are masked and replaced; the others are deleted.
        mask_token_id: stands for a masked token.
        special_token_ids: never dropped.
        vocab_size: random tokens are drawn from all ids below it.
    """

    ratio: float
    masked: float
    replaced: float
    mask_token_id: int
    special_token_ids: tuple[int, ...]
    vocab_size: int

    def __call__(self, input_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(length,) ids of one text without padding to as many or fewer. A text is never emptied: where all tokens
        would be deleted, none is."""
        maskable = ~np.isin(input_ids, self.special_token_ids)
        dropped = maskable & (rng.random(len(input_ids)) < self.ratio)
        draw = rng.random(len(input_ids))
        random_ids = rng.integers(0, self.vocab_size, size=len(input_ids))
        masked, replaced = dropped & (draw < self.masked), dropped & (draw < self.masked + self.replaced)
        deleted = dropped & ~replaced
        ids = np.where(masked, self.mask_token_id, np.where(replaced, random_ids, input_ids))
        return ids if (deleted == maskable).all() else ids[~deleted]


@dataclass(frozen=True)
class SecondViews:
    """Second views that a batch of pairs gets beside its images and captions.

    Args:
        image: makes the second view of an image; None for none.
        text: makes the second view of a caption without another caption; None for no second views of captions.
    """

    image: StrongView | None
    text: TokenDropping | None

    @classmethod
    def from_config(cls, config: CookieConfig, crop: RandomCropFlip) -> "SecondViews":
        """The views that a config's contrasts ask for."""
        image, text = None, None
        if config.visual_weight > 0:
            image = StrongView(crop, config.color_jitter, config.grayscale, config.blur)
        if config.textual_weight > 0:
            probabilities = (config.word_drop_ratio, config.word_drop_masked, config.word_drop_replaced)
            vocabulary = (config.mask_token_id, tuple(config.special_token_ids), config.text_config.vocab_size)
            text = TokenDropping(*probabilities, *vocabulary)
        return cls(image, text)

    def make(self, items: list[dict[str, Any]], processor: COTSProcessor) -> dict[str, torch.Tensor]:
        """`view_pixel_values` (n, 3, side, side); `view_input_ids` and `view_attention_mask` (n, length)."""
        batch: dict[str, torch.Tensor] = {}
        if self.image is not None:
            images = [self.image(item["image"], generator(item["seed"], RandomStream.IMAGE_VIEW)) for item in items]
            encoded = processor.image_processor(images, return_tensors="pt", do_resize=False)
            batch["view_pixel_values"] = encoded["pixel_values"]
        if self.text is not None:
            tokenizer = processor.tokenizer
            others = [item.get("other_caption") for item in items]
            texts = [item["caption"] if other is None else other for item, other in zip(items, others)]
            rows = [np.asarray(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]]
            for i, (item, other) in enumerate(zip(items, others)):
                if other is None:
                    rows[i] = self.text(rows[i], generator(item["seed"], RandomStream.TEXT_VIEW))
            padded = tokenizer.pad({"input_ids": [row.tolist() for row in rows]}, return_tensors="pt")
            batch["view_input_ids"], batch["view_attention_mask"] = padded["input_ids"], padded["attention_mask"]
        return batch
