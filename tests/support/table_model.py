"""A model whose embeddings are rows of a table, and a Trainer that evaluates it: checked by hand."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import ModelOutput

from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.metrics import rsum
from hf_cots.evaluation.retrieval.trainer_metrics import RetrievalMetrics
from tests.support.tiny import QUIET


PAIRS, IMAGES = 13, 5


def table(seed):
    embeds = torch.randn(PAIRS, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(embeds, dim=1)


def pairs():
    """13 pairs of 5 images: (image_embeds, text_embeds, image_ids), an image's embedding the same in each pair."""
    ids = torch.arange(PAIRS) * 2 % IMAGES
    return table(0)[ids], table(1), ids


def expected():
    """By [`rank_direction`] on 13 texts and 5 images."""
    images, texts, ids = pairs()
    first = torch.tensor([ids.tolist().index(i) for i in ids.unique()])
    both = {
        "text_to_image": rank_direction(texts, images[first], ids, ids[first]).metrics(),
        "image_to_text": rank_direction(images[first], texts, ids[first], ids).metrics(),
    }
    assert both["text_to_image"]["gallery"] == IMAGES
    return {f"{name}_{m}": v for name, values in both.items() for m, v in values.items()} | {"rsum": rsum(both)}


@dataclass
class LookupOutput(ModelOutput):
    """In an order of its own, with the scores within the batch that must not be gathered."""

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class LookupModel(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(()))  # a model has parameters
        self.images, self.texts, _ = pairs()
        self.post_init()

    def forward(self, row, image_ids=None):
        images, texts = self.scale * self.images[row], self.scale * self.texts[row]
        logits = images @ texts.T
        return LookupOutput(loss=logits.mean(), logits_per_image=logits, text_embeds=texts, image_embeds=images)


def trainer_evaluation(output_dir, batch_size, **settings):
    """What `Trainer.evaluate` reports on the 13 pairs."""
    metrics = RetrievalMetrics(LookupOutput)
    model = LookupModel(PreTrainedConfig())
    model.config.keys_to_ignore_at_inference = metrics.ignore_keys
    data = [{"row": row, "image_ids": image} for row, image in enumerate(pairs()[2].tolist())]
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        per_device_eval_batch_size=batch_size,
        label_names=["image_ids"],
        remove_unused_columns=False,
        **QUIET,
        **settings,
    )
    return Trainer(model, arguments, eval_dataset=data, compute_metrics=metrics).evaluate()
