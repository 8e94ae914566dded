"""Distill a multilingual text tower from translation pairs (Reimers and Gurevych, 2020)."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..conversion.text_tower import DISTILLATION
from ..data.translations import TranslationPairs
from .pair_trainer import PairTrainer


logger = logging.getLogger(__name__)

POOLING = "mean"
PARTS = 4  # of a batch, each padded on its own
METRICS = {"mse", "accuracy"}


def pool_tokens(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(n, width) float32: the mean of the last hidden states over each text's tokens, *not* normalized."""
    states = model(**inputs).last_hidden_state.float()
    mask = inputs["attention_mask"][..., None]
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class TextCollator:
    """Tokenizes the items of [`TranslationPairs`]: `parts` of a batch by the length of their texts, which would all be
    padded to the longest one otherwise.

    Args:
        tokenizer: of the student.
        max_length: tokens at which a text is cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (n, length), padded to the longest text."""
        options = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        return dict(self.tokenizer(list(texts), return_token_type_ids=False, **options))

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts with more than `max_length` tokens."""
        if not texts:
            return 0
        lengths = map(len, self.tokenizer(list(texts), return_token_type_ids=False)["input_ids"])
        return sum(length > self.max_length for length in lengths)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, torch.Tensor]]]:
        order = sorted(items, key=lambda item: len(item["text"]))
        size = -(-len(order) // PARTS)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        return {"parts": [self._tokenize_part(part) for part in parts]}

    def _tokenize_part(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = torch.tensor([item["source_row"] for item in items])
        return self.tokenize([item["text"] for item in items]) | {"source_rows": rows}


@torch.no_grad()
def embed_texts(model: PreTrainedModel, collator: TextCollator, texts: Sequence[str], batch_size: int) -> torch.Tensor:
    """(n, width) embeddings of [`pool_tokens`], on the CPU, in batches of texts of like length."""
    was_training = model.training
    model.eval()
    order = np.argsort([len(text) for text in texts], kind="stable")
    embeds = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        inputs = {name: ids.to(model.device) for name, ids in collator.tokenize([texts[row] for row in rows]).items()}
        embeds[rows] = pool_tokens(model, inputs).cpu()
    model.train(was_training)
    return embeds


class DistillationTrainer(PairTrainer):
    """Trains a multilingual student to give translations the embeddings that the teacher gives their English texts.

    The loss is the mean squared error between [`pool_tokens`] of the student's translation and that of the teacher's
    English text. In the paper each pair has a second term for the student's English text; here each distinct English
    text is a training item of its own, so that one with translations into a dozen languages is not read a dozen times
    as often as they are.

    Args:
        targets: (sources, width) teacher embeddings of the training data's `sources`.
        eval_targets: teacher embeddings of the evaluation data's `sources`.
        Everything else is as for `transformers.Trainer`; data are [`TranslationPairs`] and the collator a
        [`TextCollator`].
    """

    def __init__(self, *args, targets: torch.Tensor, eval_targets: torch.Tensor | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.optimizer: torch.optim.Optimizer | None
        self.targets, self.eval_targets = targets, eval_targets

    def create_optimizer(self, model: Any = None):
        """Like Trainer's, with a separate learning rate for the word embeddings, most of which are new."""
        if self.optimizer is None:
            words = self.accelerator.unwrap_model(self.model).get_input_embeddings().weight
            decayed = set(self.get_decay_parameter_names(self.model))
            rate, decay = self.args.learning_rate, self.args.weight_decay
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                own = (self.args.embedding_learning_rate, 0.0) if parameter is words else (rate, decay)
                key = own if name in decayed else (own[0], 0.0)
                if parameter.requires_grad:
                    groups.setdefault(key, []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(
                [{"params": each, "lr": lr, "weight_decay": weight} for (lr, weight), each in groups.items()],
                **options,
            )
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = torch.cat([part.pop("source_rows") for part in inputs["parts"]])
        embeds = torch.cat([pool_tokens(model, part) for part in inputs["parts"]])
        loss = nn.functional.mse_loss(embeds, self.targets[rows.cpu()].to(embeds.device))
        return (loss, {"embeds": embeds}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """An estimate for the log, summed over all parts."""
        return sum(super(DistillationTrainer, self).floating_point_ops(part) for part in inputs["parts"])

    def metric_names(self) -> set[str]:
        return METRICS

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Compute the mean squared error on `eval_dataset` and the accuracy: the percentage of translations whose
        nearest English text by cosine is their own. Both are also reported by language."""
        pairs: TranslationPairs = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        embeds = embed_texts(model, self.data_collator, pairs.translations, self.args.per_device_eval_batch_size)
        found = measure_translations(embeds, self.eval_targets, pairs)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def measure_translations(embeds: torch.Tensor, targets: torch.Tensor, pairs: TranslationPairs) -> dict[str, float]:
    """Compute the metrics of [`DistillationTrainer.evaluate`], without prefix.

    Args:
        embeds: (n, width) student embeddings of the pairs' translations.
        targets: (sources, width) teacher embeddings of the pairs' sources.
    """
    rows = torch.from_numpy(pairs.source_rows)
    errors = (embeds - targets[rows]).square().mean(dim=1)
    cosines = nn.functional.normalize(embeds, dim=1) @ nn.functional.normalize(targets, dim=1).T
    right = 100.0 * (cosines.argmax(dim=1) == rows)
    found = {"mse": errors.mean().item(), "accuracy": right.mean().item()}
    for language in sorted(set(pairs.languages) - {""}):
        own = torch.tensor([each == language for each in pairs.languages])
        found |= {f"mse_{language}": errors[own].mean().item(), f"accuracy_{language}": right[own].mean().item()}
    return found


def save_student(trainer: DistillationTrainer, teacher: str, fingerprint: str) -> Path:
    """Write the student, its tokenizer and `distillation.json`, which says whose embeddings it gives, to
    `output_dir/model`, and return that folder. Every process must call it; the main one writes.

    Args:
        trainer: a trainer that has finished.
        teacher: name of the teacher, for readers.
        fingerprint: the teacher's [`tower_fingerprint`].
    """
    folder = Path(trainer.args.output_dir) / "model"
    if not trainer.is_world_process_zero():
        return folder
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    languages = sorted(set(trainer.train_dataset.languages) - {""})
    record = {"teacher": teacher, "teacher_fingerprint": fingerprint, "pooling": POOLING, "languages": languages}
    (folder / DISTILLATION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    logger.info("saved the text tower in %s", folder)
    return folder
