"""What is computed: models, configurations, processors, losses. The files of this folder travel to the Hub."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

# By its top-level name it is a placeholder without torchvision, which ours does without.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import is_torch_available

from .configuration_cookie import CookieConfig
from .configuration_cots import COTSConfig
from .configuration_dvae import COTSImageTokenizerConfig
from .configuration_simla import SimlaConfig
from .image_processing_cots import COTSImageProcessor, load_image, open_image, to_rgb
from .processing_cots import COTSProcessor, as_texts, fit_text_limit
from .video_frames import VideoFrames, read_frames
from .video_processing_cots import COTSVideoProcessor


if is_torch_available():  # exported models, which onnxruntime computes, need only what is above
    from .modeling_cookie import CookieModel
    from .modeling_cots import COTSModel, COTSOutput
    from .modeling_dvae import COTSImageTokenizer, COTSImageTokenizerOutput
    from .modeling_simla import CrossAttentionCache, SimlaModel
    from .pretraining_cookie import CookieForPreTraining, CookieForPreTrainingOutput
    from .pretraining_cots import COTSForPreTraining, COTSForPreTrainingOutput
    from .pretraining_simla import SimlaForPreTraining, SimlaForPreTrainingOutput


def _register_processor(config: Any) -> None:
    """With the package imported, the Auto classes know a model; without it, they find the code saved beside it."""
    AutoConfig.register(config.model_type, config)
    AutoImageProcessor.register(config, image_processor_classes={"pil": COTSImageProcessor})
    AutoVideoProcessor.register(config, COTSVideoProcessor)
    AutoProcessor.register(config, COTSProcessor)
    config.register_for_auto_class()


def _register(config: Any, model: Any, pretraining: Any) -> None:
    """The models of a config, too."""
    AutoModel.register(config, model)
    AutoModelForPreTraining.register(config, pretraining)
    AutoModelForZeroShotImageClassification.register(config, model)
    model.register_for_auto_class("AutoModel")
    pretraining.register_for_auto_class("AutoModelForPreTraining")


_register_processor(COTSConfig)
_register_processor(SimlaConfig)
_register_processor(CookieConfig)
AutoConfig.register(COTSImageTokenizerConfig.model_type, COTSImageTokenizerConfig)
COTSImageProcessor.register_for_auto_class("AutoImageProcessor")
COTSProcessor.register_for_auto_class("AutoProcessor")
COTSVideoProcessor.register_for_auto_class("AutoVideoProcessor")
if is_torch_available():
    _register(COTSConfig, COTSModel, COTSForPreTraining)
    _register(SimlaConfig, SimlaModel, SimlaForPreTraining)
    _register(CookieConfig, CookieModel, CookieForPreTraining)
    AutoModel.register(COTSImageTokenizerConfig, COTSImageTokenizer)

__all__ = [
    "COTSConfig",
    "COTSForPreTraining",
    "COTSForPreTrainingOutput",
    "COTSImageProcessor",
    "COTSImageTokenizer",
    "COTSImageTokenizerConfig",
    "COTSImageTokenizerOutput",
    "COTSModel",
    "COTSOutput",
    "COTSProcessor",
    "COTSVideoProcessor",
    "CookieConfig",
    "CookieForPreTraining",
    "CookieForPreTrainingOutput",
    "CookieModel",
    "CrossAttentionCache",
    "SimlaConfig",
    "SimlaForPreTraining",
    "SimlaForPreTrainingOutput",
    "SimlaModel",
    "VideoFrames",
    "as_texts",
    "fit_text_limit",
    "load_image",
    "open_image",
    "read_frames",
    "to_rgb",
]
