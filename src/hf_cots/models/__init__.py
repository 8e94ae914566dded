"""What is computed: models, configurations, processors, losses. The files of this folder travel to the Hub."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_cots import COTSConfig
from .configuration_dvae import COTSImageTokenizerConfig
from .image_processing_cots import COTSImageProcessor, to_rgb
from .modeling_cots import COTSModel, COTSOutput
from .modeling_dvae import COTSImageTokenizer, COTSImageTokenizerOutput
from .pretraining_cots import COTSForPreTraining, COTSForPreTrainingOutput
from .processing_cots import COTSProcessor


# With the package imported, the Auto classes know COTS.
AutoConfig.register("cots", COTSConfig)
AutoConfig.register("cots_image_tokenizer", COTSImageTokenizerConfig)
AutoModel.register(COTSConfig, COTSModel)
AutoModel.register(COTSImageTokenizerConfig, COTSImageTokenizer)
AutoModelForPreTraining.register(COTSConfig, COTSForPreTraining)
AutoModelForZeroShotImageClassification.register(COTSConfig, COTSModel)
AutoImageProcessor.register(COTSConfig, image_processor_classes={"pil": COTSImageProcessor})
AutoProcessor.register(COTSConfig, COTSProcessor)

# Without it, they find the code that is saved beside the weights.
COTSConfig.register_for_auto_class()
COTSModel.register_for_auto_class("AutoModel")
COTSForPreTraining.register_for_auto_class("AutoModelForPreTraining")
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
    "to_rgb",
]
