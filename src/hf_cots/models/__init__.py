"""What is computed: models, configurations, processors, losses. The files of this folder travel to the Hub."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_cookie import CookieConfig
from .configuration_cots import COTSConfig
from .configuration_dvae import COTSImageTokenizerConfig
from .configuration_simla import SimlaConfig
from .image_processing_cots import COTSImageProcessor, load_image, open_image, to_rgb
from .modeling_cookie import CookieModel
from .modeling_cots import COTSModel, COTSOutput
from .modeling_dvae import COTSImageTokenizer, COTSImageTokenizerOutput
from .modeling_simla import CrossAttentionCache, SimlaModel
from .pretraining_cookie import CookieForPreTraining, CookieForPreTrainingOutput
from .pretraining_cots import COTSForPreTraining, COTSForPreTrainingOutput
from .pretraining_simla import SimlaForPreTraining, SimlaForPreTrainingOutput
from .processing_cots import COTSProcessor, as_texts, fit_text_limit


# With the package imported, the Auto classes know COTS, SIMLA and COOKIE.
AutoConfig.register("cots", COTSConfig)
AutoConfig.register("cots_image_tokenizer", COTSImageTokenizerConfig)
AutoModel.register(COTSConfig, COTSModel)
AutoModel.register(COTSImageTokenizerConfig, COTSImageTokenizer)
AutoModelForPreTraining.register(COTSConfig, COTSForPreTraining)
AutoModelForZeroShotImageClassification.register(COTSConfig, COTSModel)
AutoImageProcessor.register(COTSConfig, image_processor_classes={"pil": COTSImageProcessor})
AutoProcessor.register(COTSConfig, COTSProcessor)
AutoConfig.register("simla", SimlaConfig)
AutoModel.register(SimlaConfig, SimlaModel)
AutoModelForPreTraining.register(SimlaConfig, SimlaForPreTraining)
AutoModelForZeroShotImageClassification.register(SimlaConfig, SimlaModel)
AutoImageProcessor.register(SimlaConfig, image_processor_classes={"pil": COTSImageProcessor})
AutoProcessor.register(SimlaConfig, COTSProcessor)
AutoConfig.register("cookie", CookieConfig)
AutoModel.register(CookieConfig, CookieModel)
AutoModelForPreTraining.register(CookieConfig, CookieForPreTraining)
AutoModelForZeroShotImageClassification.register(CookieConfig, CookieModel)
AutoImageProcessor.register(CookieConfig, image_processor_classes={"pil": COTSImageProcessor})
AutoProcessor.register(CookieConfig, COTSProcessor)

# Without it, they find the code that is saved beside the weights.
COTSConfig.register_for_auto_class()
COTSModel.register_for_auto_class("AutoModel")
COTSForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SimlaConfig.register_for_auto_class()
SimlaModel.register_for_auto_class("AutoModel")
SimlaForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CookieConfig.register_for_auto_class()
CookieModel.register_for_auto_class("AutoModel")
CookieForPreTraining.register_for_auto_class("AutoModelForPreTraining")
COTSImageProcessor.register_for_auto_class("AutoImageProcessor")
COTSProcessor.register_for_auto_class("AutoProcessor")

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
    "CookieConfig",
    "CookieForPreTraining",
    "CookieForPreTrainingOutput",
    "CookieModel",
    "CrossAttentionCache",
    "SimlaConfig",
    "SimlaForPreTraining",
    "SimlaForPreTrainingOutput",
    "SimlaModel",
    "as_texts",
    "fit_text_limit",
    "load_image",
    "open_image",
    "to_rgb",
]
