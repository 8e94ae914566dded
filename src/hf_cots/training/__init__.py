"""How a model learns."""

from .arguments import COTSTrainingArguments, DataArguments, ModelArguments
from .trainer import COTSTrainer


__all__ = ["COTSTrainer", "COTSTrainingArguments", "DataArguments", "ModelArguments"]
