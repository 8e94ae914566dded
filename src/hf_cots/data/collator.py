"""From items to batches: augmentation, pixels, tokens and masks, all in the dataloader's workers."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..models import CookieConfig, COTSConfig, COTSProcessor, SimlaConfig
from ..models.masking import draw_masks
from ..models.token_level import mask_settings
from .augmentation import RandomCropFlip, cropped
from .code_cache import CodeCache
from .views import SecondViews


# Gives a batch of no rows its columns.
NO_PAIR: dict[str, Any] = {"image": Image.new("RGB", (1, 1)), "caption": "", "image_id": 0, "seed": 0}


class ImageCollator:
    """Items of [`PairDataset`] to the input of [`COTSImageTokenizer`], cropped as in training COTS itself.

    Args:
        augmentation: gives the size.
    """

    def __init__(self, augmentation: RandomCropFlip):
        self.augmentation = augmentation

    def __call__(self, items: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        """`pixel_values` (n, 3, size, size) in [0, 1], float32. Items that are None are left out; a batch of nothing
        else is one black picture."""
        usable = [item for item in items if item is not None] or [NO_PAIR]
        pictures = [np.asarray(cropped(item, self.augmentation), dtype=np.float32) / 255 for item in usable]
        return {"pixel_values": torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()}


class COTSCollator:
    """Items of [`PairDataset`] to the inputs of [`COTSForPreTraining`], [`SimlaForPreTraining`] or
    [`CookieForPreTraining`].

    Randomness comes from each item's own seed: a batch's other items, the number of workers and a restart change
    nothing.

    Args:
        processor: makes pixels and tokens.
        config: the model's; says which masks are needed.
        augmentation: for training; without it the processor resizes the whole picture.
        code_cache: holds codes of crops; those of a batch become its `codebook_indices` if all of them are there.
        views: makes second views of pictures and captions.
    """

    def __init__(
        self,
        processor: COTSProcessor,
        config: COTSConfig | SimlaConfig | CookieConfig,
        augmentation: RandomCropFlip | None = None,
        code_cache: CodeCache | None = None,
        views: SecondViews | None = None,
    ):
        self.processor, self.config, self.augmentation = processor, config, augmentation
        self.code_cache, self.views = code_cache, views
        self.mask_settings = mask_settings(config) if config.uses_masks else {}

    def __call__(self, items: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        """`pixel_values`, `input_ids`, `attention_mask`, `image_ids`, the masks if a token level is on, and the second
        views (`view_pixel_values`, `view_input_ids`, `view_attention_mask`) that are wanted.

        Items that are None are left out. What remains may be a batch of no rows: a rank's share of a ragged batch.
        """
        usable = [item for item in items if item is not None]
        batch = self._collate(usable or [NO_PAIR])
        return batch if usable else {name: rows[:0] for name, rows in batch.items()}

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [item["image"] for item in items]
        if self.augmentation is not None:
            images = [cropped(item, self.augmentation) for item in items]
        encoded = self.processor(
            images=images,
            text=[item["caption"] for item in items],
            return_tensors="pt",
            images_kwargs={"do_resize": self.augmentation is None},
        )
        batch = dict(encoded)
        if self.code_cache is not None and items[0] is not NO_PAIR:
            codes = self.code_cache.codes([item["seed"] for item in items], images)
            if codes is not None:
                batch["codebook_indices"] = torch.from_numpy(codes)
        batch["image_ids"] = torch.tensor([item["image_id"] for item in items])
        if self.views is not None:
            batch |= self.views.of_items(items, self.processor)
        if self.config.uses_masks:
            seeds = [item["seed"] for item in items]
            masks = draw_masks(
                seeds, batch["input_ids"].numpy(), batch["attention_mask"].numpy(), **self.mask_settings
            )
            batch |= {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}
        return batch
