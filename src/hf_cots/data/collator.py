"""From items to batches: augmentation, pixels, tokens and masks, all in the dataloader's workers."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..models import COTSConfig, COTSProcessor, SimlaConfig
from ..models.masking import draw_masks, generator
from ..models.token_level import mask_settings
from .augmentation import RandomCropFlip


AUGMENTATION_STREAM = 4
# Gives a batch of no rows its columns.
NO_PAIR = {"image": Image.new("RGB", (1, 1)), "caption": "", "image_id": 0, "seed": 0}


class COTSCollator:
    """Items of [`PairDataset`] to the inputs of [`COTSForPreTraining`] or [`SimlaForPreTraining`].

    Randomness comes from each item's own seed: a batch's other items, the number of workers and a restart change
    nothing.

    Args:
        processor: makes pixels and tokens.
        config: the model's; says which masks are needed.
        augmentation: for training; without it the processor resizes the whole picture.
    """

    def __init__(
        self,
        processor: COTSProcessor,
        config: COTSConfig | SimlaConfig,
        augmentation: RandomCropFlip | None = None,
    ):
        self.processor, self.config, self.augmentation = processor, config, augmentation
        self.mask_settings = mask_settings(config)

    def __call__(self, items: list[dict[str, Any] | None]) -> dict[str, torch.Tensor]:
        """`pixel_values`, `input_ids`, `attention_mask`, `image_ids`, and the masks if a token level is on.

        Items that are None are left out. What remains may be a batch of no rows: a rank's share of a ragged batch.
        """
        usable = [item for item in items if item is not None]
        batch = self._collate(usable or [NO_PAIR])
        return batch if usable else {name: rows[:0] for name, rows in batch.items()}

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [item["image"] for item in items]
        if self.augmentation is not None:
            images = [
                self.augmentation(image, generator(item["seed"], AUGMENTATION_STREAM))
                for image, item in zip(images, items)
            ]
        encoded = self.processor(
            images=images,
            text=[item["caption"] for item in items],
            return_tensors="pt",
            images_kwargs={"do_resize": self.augmentation is None},
        )
        batch = dict(encoded)
        batch["image_ids"] = torch.tensor([item["image_id"] for item in items])
        if self.config.needs_masks:
            seeds = [item["seed"] for item in items]
            masks = draw_masks(
                seeds, batch["input_ids"].numpy(), batch["attention_mask"].numpy(), **self.mask_settings
            )
            batch |= {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}
        return batch
