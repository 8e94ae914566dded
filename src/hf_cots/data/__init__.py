"""What goes in: sources of image-text pairs, augmentation, batches, and the emoji set."""

from .augmentation import RandomCropFlip
from .collator import COTSCollator
from .sources import PairDataset, PairSampler, load_pairs


__all__ = ["COTSCollator", "PairDataset", "PairSampler", "RandomCropFlip", "load_pairs"]
