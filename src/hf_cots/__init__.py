"""hf_cots: image-text retrieval models for the Hugging Face Hub, their training, evaluation and search.

Every public name is imported on first use, so that `import hf_cots` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._auto_classes import register_with_transformers


if TYPE_CHECKING:  # for type checkers and editors; a test keeps this equal to the table below
    from .data.augmentation import RandomCropFlip as RandomCropFlip
    from .data.collator import COTSCollator as COTSCollator
    from .data.sources import PairDataset as PairDataset
    from .data.sources import load_pairs as load_pairs
    from .evaluation.retrieval.directions import evaluate_retrieval as evaluate_retrieval
    from .models import CookieConfig as CookieConfig
    from .models import CookieForPreTraining as CookieForPreTraining
    from .models import CookieModel as CookieModel
    from .models import COTSConfig as COTSConfig
    from .models import COTSForPreTraining as COTSForPreTraining
    from .models import COTSImageProcessor as COTSImageProcessor
    from .models import COTSImageTokenizer as COTSImageTokenizer
    from .models import COTSImageTokenizerConfig as COTSImageTokenizerConfig
    from .models import COTSModel as COTSModel
    from .models import COTSProcessor as COTSProcessor
    from .models import COTSVideoProcessor as COTSVideoProcessor
    from .models import SimlaConfig as SimlaConfig
    from .models import SimlaForPreTraining as SimlaForPreTraining
    from .models import SimlaModel as SimlaModel
    from .search.index import ImageIndex as ImageIndex
    from .search.loading import load_encoder as load_encoder
    from .search.loading import load_reranker as load_reranker
    from .search.rerank import Reranker as Reranker
    from .search.reranked import RerankedIndex as RerankedIndex
    from .training.arguments import COTSTrainingArguments as COTSTrainingArguments
    from .training.trainer import COTSTrainer as COTSTrainer


__version__ = "0.1.0"

_MODULE_OF = {
    "COTSCollator": ".data.collator",
    "COTSConfig": ".models",
    "COTSForPreTraining": ".models",
    "COTSImageProcessor": ".models",
    "COTSImageTokenizer": ".models",
    "COTSImageTokenizerConfig": ".models",
    "COTSModel": ".models",
    "COTSProcessor": ".models",
    "COTSTrainer": ".training.trainer",
    "COTSTrainingArguments": ".training.arguments",
    "COTSVideoProcessor": ".models",
    "CookieConfig": ".models",
    "CookieForPreTraining": ".models",
    "CookieModel": ".models",
    "ImageIndex": ".search.index",
    "PairDataset": ".data.sources",
    "RandomCropFlip": ".data.augmentation",
    "RerankedIndex": ".search.reranked",
    "Reranker": ".search.rerank",
    "SimlaConfig": ".models",
    "SimlaForPreTraining": ".models",
    "SimlaModel": ".models",
    "evaluate_retrieval": ".evaluation.retrieval.directions",
    "load_encoder": ".search.loading",
    "load_pairs": ".data.sources",
    "load_reranker": ".search.loading",
}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


register_with_transformers()
