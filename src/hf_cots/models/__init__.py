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
from .configuration_simla import SimlaConfig
from .image_processing_cots import COTSImageProcessor, to_rgb
from .modeling_cots import COTSModel, COTSOutput
from .modeling_dvae import COTSImageTokenizer, COTSImageTokenizerOutput
from .modeling_simla import ImageMemory, SimlaModel
from .pretraining_cots import COTSForPreTraining, COTSForPreTrainingOutput
from .pretraining_simla import SimlaForPreTraining, SimlaForPreTrainingOutput
from .processing_cots import COTSProcessor


# With the package imported, the Auto classes know COTS and SIMLA.
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

# Without it, they find the code that is saved beside the weights.
COTSConfig.register_for_auto_class()
COTSModel.register_for_auto_class("AutoModel")
COTSForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SimlaConfig.register_for_auto_class()
SimlaModel.register_for_auto_class("AutoModel")
SimlaForPreTraining.register_for_auto_class("AutoModelForPreTraining")
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
    "ImageMemory",
    "SimlaConfig",
    "SimlaForPreTraining",
    "SimlaForPreTrainingOutput",
    "SimlaModel",
    "to_rgb",
]
