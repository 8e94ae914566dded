"""What goes in: sources of image-text pairs, augmentation, batches, and the emoji set."""

from .augmentation import RandomCropFlip
from .batches import PairBatches
from .code_cache import CodeCache, CodeSettings, write_codes
from .collator import COTSCollator, PictureCollator
from .frozen_features import FrozenPairs, frozen_pairs
from .sources import PairDataset, load_pairs
from .streams import PairStream, StreamBatches, load_stream
from .views import SecondViews, StrongView, WordDropping


__all__ = [
    "COTSCollator",
    "CodeCache",
    "CodeSettings",
    "FrozenPairs",
    "PairBatches",
    "PairDataset",
    "PairStream",
    "PictureCollator",
    "RandomCropFlip",
    "SecondViews",
    "StreamBatches",
    "StrongView",
    "WordDropping",
    "frozen_pairs",
    "load_pairs",
    "load_stream",
    "write_codes",
]
