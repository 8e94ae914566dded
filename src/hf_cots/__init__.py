"""hf_cots: image-text retrieval models for the Hugging Face Hub. COTS: two streams, one dot product, three levels."""

from .models import (
    CookieConfig,
    CookieForPreTraining,
    CookieModel,
    COTSConfig,
    COTSForPreTraining,
    COTSImageProcessor,
    COTSImageTokenizer,
    COTSImageTokenizerConfig,
    COTSModel,
    COTSProcessor,
    SimlaConfig,
    SimlaForPreTraining,
    SimlaModel,
)


__version__ = "0.1.0"

__all__ = [
    "COTSConfig",
    "COTSForPreTraining",
    "COTSImageProcessor",
    "COTSImageTokenizer",
    "COTSImageTokenizerConfig",
    "COTSModel",
    "COTSProcessor",
    "CookieConfig",
    "CookieForPreTraining",
    "CookieModel",
    "SimlaConfig",
    "SimlaForPreTraining",
    "SimlaModel",
]
