"""One optimizer step, as its forward passes see it: what `begin_step` computes for all micro-batches beforehand."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


# What a forward of a model for pre-training takes beside the step, by name.
Batch = dict[str, Any]


class Keys(NamedTuple):
    """Momentum keys of N pairs, and what tells the pairs apart: a block of rows of [`KeyQueue`]."""

    image_keys: torch.Tensor  # (N, D)
    text_keys: torch.Tensor  # (N, D)
    image_ids: torch.Tensor  # (N,) int64
    pair_index: torch.Tensor  # (N,) int64


@dataclass(frozen=True)
class CachedGradients:
    """The contrast of a whole step, computed ahead of its micro-batches (GradCache, Gao et al. 2021).

    Args:
        terms: this micro-batch's equal share of each contrast term, scalars.
        gradients: of the weighted sum of the whole step's terms, by each tensor that the contrast takes.
        random_state: of the random generators when the micro-batch was encoded first; forward must run from it again.
    """

    terms: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    random_state: Any


# Not a NamedTuple: Trainer._prepare_inputs rebuilds every tuple as `type(data)(generator)`, which a tuple with named
# fields refuses. FSDP and DDP hand a dataclass through as it is, so that keys keep their precision.
@dataclass(frozen=True)
class Step:
    """What the forward pass of a micro-batch of n pairs needs to know about its optimizer step.

    Args:
        image_ids: (n,) int64, equal for the captions of one image.
        pair_index: (n,) int64, the index of each pair in the whole run.
        weights: (n,) such that the weighted sum of losses over the step, after Trainer's division by micro-batches and
            ranks, is the mean over all its pairs; 0 for a pair that the filter drops.
        image_keys, text_keys: (n, D) momentum keys; None for a model without momentum encoder.
        kept: (n,) bool, which pairs the adaptive momentum filter keeps.
        image_features, text_features: (n, hidden) global features of towers that are not trained; with their graph,
            also of trained ones whose pass serves the keys.
        embeds: `image_embeds` and `text_embeds` (n, D) with their graph, if the keys were made of them.
        frame_features: (n, frames, hidden) the same of the frames of clips.
        momentum_image_states: (n, 1 + patches, hidden) states of SIMLA's momentum image encoder.
        cached: with gradient caching, the contrast of the whole step.
        standalone: forward began this step itself, and ends it.
    """

    image_ids: torch.Tensor
    pair_index: torch.Tensor
    weights: torch.Tensor
    image_keys: torch.Tensor | None = None
    text_keys: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    embeds: dict[str, torch.Tensor] | None = None
    frame_features: torch.Tensor | None = None
    momentum_image_states: torch.Tensor | None = None
    cached: CachedGradients | None = None
    standalone: bool = False

    @property
    def keys(self) -> Keys:
        """The keys of this micro-batch, in the order in which they are queued."""
        return Keys(self.image_keys, self.text_keys, self.image_ids, self.pair_index)  # type: ignore[arg-type]
