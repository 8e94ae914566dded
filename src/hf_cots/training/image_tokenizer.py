"""Train an image tokenizer on pictures held in memory: the small, embedded case."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ..data.augmentation import RandomCropFlip
from ..data.collator import AUGMENTATION_STREAM
from ..data.sources import PairDataset
from ..models import COTSImageTokenizer, COTSImageTokenizerConfig
from ..models.masking import generator
from .pair_trainer import PairTrainer


class AugmentedPictures(Dataset):
    """The pictures of a [`PairDataset`] as pixels in [0, 1], cropped and flipped as in training the model itself.

    Args:
        pairs: where the pictures come from.
        augmentation: gives the size.
    """

    def __init__(self, pairs: PairDataset, augmentation: RandomCropFlip):
        self.pairs, self.augmentation = pairs, augmentation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        item = self.pairs[key]
        picture = self.augmentation(item["image"], generator(item["seed"], AUGMENTATION_STREAM))
        return {"pixel_values": torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)}


def train_image_tokenizer(
    config: COTSImageTokenizerConfig,
    pairs: PairDataset,
    output_dir: Path | str,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    min_scale: float = 0.5,
    flip: float = 0.5,
    seed: int = 0,
) -> COTSImageTokenizer:
    """Train a discrete VAE with Adam and a cosine schedule, and save it in `output_dir`.

    Args:
        config: its sizes; `image_size` is the size of the crops.
        pairs: the pictures; captions are not used.
        steps, batch_size, learning_rate, min_scale, flip, seed: of the training.

    Returns:
        The trained model in evaluation mode.
    """
    torch.manual_seed(seed)
    model = COTSImageTokenizer(config)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=seed,
    )
    pictures = AugmentedPictures(pairs, RandomCropFlip(config.image_size, min_scale, flip))
    PairTrainer(model=model, args=arguments, train_dataset=pictures).train()
    model.eval().save_pretrained(output_dir)
    return model
