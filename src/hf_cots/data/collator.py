"""Collators: augmentation, pixels, tokens and masks, all computed in the dataloader's workers."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..models import CookieConfig, COTSConfig, COTSProcessor, SimlaConfig, fit_text_limit
from ..models.masking import draw_masks
from ..models.token_level import find_masked, mask_settings
from ..models.video_frames import VideoFrames
from .augmentation import RandomCropFlip, crop_clip, crop_image
from .code_cache import CodeCache
from .frozen_features import StoredTexts
from .views import SecondViews


# Gives a batch of no rows its columns.
BLANK = Image.new("RGB", (1, 1))
NO_PAIR: dict[str, Any] = {
    "image": BLANK,
    "video": VideoFrames([BLANK], [0], [0.0], 0.0),
    "caption": "",
    "image_id": 0,
    "seed": 0,
}


class ImageCollator:
    """Collates items of [`PairDataset`] into inputs of [`COTSImageTokenizer`], cropped as in COTS training.

    Args:
        augmentation: random crop and flip; determines the image size.
    """

    def __init__(self, augmentation: RandomCropFlip):
        self.augmentation = augmentation

    def __call__(self, items: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (n, 3, size, size) in [0, 1], float32. Items that are None are dropped; if nothing is
        left, the batch is one black image."""
        usable = [item for item in items if item is not None] or [NO_PAIR]
        crops = [np.asarray(crop_image(item, self.augmentation), dtype=np.float32) / 255 for item in usable]
        return {"pixel_values": torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()}


class COTSCollator:
    """Collates items of [`PairDataset`] into inputs of [`COTSForPreTraining`], [`SimlaForPreTraining`] or
    [`CookieForPreTraining`].

    All randomness comes from each item's own seed: the other items of the batch, the number of workers and a restart
    do not change it.

    Args:
        processor: makes pixels and tokens.
        config: the model's config; determines which masks are needed.
        augmentation: random crop and flip for training; without it the processor resizes the full image.
        code_cache: precomputed codes of crops; a batch gets `codebook_indices` if the codes of all its crops are
            there.
        views: makes second views of images and captions.
        stored_texts: stored features of a frozen text tower, which are added to the batch.
        clips: whether items have a clip as `"video"` instead of an image. All frames of a clip are cropped alike.

    Example:
        >>> from transformers import BertTokenizer
        >>> from hf_cots import COTSImageProcessor
        >>> words = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "red": 5})
        >>> processor = COTSProcessor(COTSImageProcessor(size={"height": 32, "width": 32}), words)
        >>> collate = COTSCollator(processor, COTSConfig(mvm_weight=0, mlm_weight=0), RandomCropFlip(32))
        >>> batch = collate([{"image": Image.new("RGB", (40, 30)), "caption": "red", "image_id": 7, "seed": 1}])
        >>> {name: tuple(rows.shape) for name, rows in sorted(batch.items())}
        {'attention_mask': (1, 3), 'image_ids': (1,), 'input_ids': (1, 3), 'pixel_values': (1, 3, 32, 32)}
    """

    def __init__(
        self,
        processor: COTSProcessor,
        config: COTSConfig | SimlaConfig | CookieConfig,
        augmentation: RandomCropFlip | None = None,
        code_cache: CodeCache | None = None,
        views: SecondViews | None = None,
        stored_texts: StoredTexts | None = None,
        clips: bool = False,
    ):
        fit_text_limit(processor.tokenizer, config)
        self.processor, self.config, self.augmentation = processor, config, augmentation
        self.code_cache, self.views, self.stored_texts, self.clips = code_cache, views, stored_texts, clips
        self.mask_settings = mask_settings(config) if config.uses_masks else {}

    def __call__(self, items: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Return `pixel_values` (for clips `pixel_values_videos` and `frame_mask`), `input_ids`, `attention_mask` if
        the tokenizer returns one, `image_ids`, the masks and `masked_positions` if a token level is on, the requested
        second views (`view_pixel_values`, `view_input_ids`, `view_attention_mask`), and `features` with the stored
        `text_features`.

        Items that are None are dropped. The batch may be empty: a rank's shard of an incomplete batch.
        """
        usable = [item for item in items if item is not None]
        batch: dict[str, Any] = self._collate(usable or [NO_PAIR])
        if not usable:
            batch = {name: rows[:0] for name, rows in batch.items()}
        if self.config.uses_masks:
            batch["masked_positions"] = find_masked(self.config, batch)
        if self.stored_texts is not None:
            batch["features"] = {"text_features": self.stored_texts.lookup([item["caption"] for item in usable])}
        return batch

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seeds = [item["seed"] for item in items]
        medium, crop = ("video", crop_clip) if self.clips else ("image", crop_image)
        if self.augmentation is None:
            images: list[Any] = [item[medium] for item in items]
        else:
            images = [crop(item, self.augmentation) for item in items]
        media = {f"{medium}s": images, f"{medium}s_kwargs": {"do_resize": self.augmentation is None}}
        batch = dict(self.processor(text=[item["caption"] for item in items], return_tensors="pt", **media))
        if self.code_cache is not None and items[0] is not NO_PAIR:
            codes = self.code_cache.codes(seeds, images)
            if codes is not None:
                batch["codebook_indices"] = torch.from_numpy(codes)
        batch["image_ids"] = torch.tensor([item["image_id"] for item in items])
        if self.views is not None:
            batch |= self.views.make(items, self.processor)
        if self.config.uses_masks:
            words = batch.get("attention_mask")  # a tokenizer may give none: its padding is a special token anyway
            words = None if words is None else words.numpy()
            masks = draw_masks(seeds, batch["input_ids"].numpy(), words, **self.mask_settings)
            batch |= {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}
        return batch
