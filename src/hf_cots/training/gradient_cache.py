"""Contrasts over the batches of a whole optimizer step, in the memory of one micro-batch (GradCache, Gao et al. 2021).

The loss of a contrast within the batch needs all embeddings at once, but not all activations: first every micro-batch
is encoded without gradient, then the loss's gradient by each embedding is computed and kept, and at last every
micro-batch is encoded once more, and its backward pass begins with the kept gradients. The second pass is the first
one again, dropout included: the state of the random generators is put back.

It is exact: the parameters' gradients are those of one large batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.step import CachedGradients, Step


@dataclass(frozen=True)
class RandomState:
    """The random generators that a forward pass on a device draws from, at one moment."""

    device: torch.device
    cpu: torch.Tensor
    accelerator: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), on_device)

    def restore(self) -> None:
        """Go back to this state."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Restore this state for the duration of the context, and the previous state after it."""
        before = RandomState.now(self.device)
        self.restore()
        try:
            yield
        finally:
            before.restore()


def cache_gradients(model: Any, batches: list[dict[str, Any]], steps: list[Step]) -> list[Step]:
    """Compute the gradients of a whole step's contrast, for each of its micro-batches.

    Args:
        model: with `contrast_embeds`, `contrast_parameters` and `contrast_terms`, in training mode.
        batches: this rank's micro-batches.
        steps: their steps, from `begin_step`.

    Returns:
        The steps with `cached`: forward must be called under its random state. The sum of the backward passes, after
        Trainer's division by micro-batches and ranks, is the gradient.
    """
    states, embeds = [], []
    for batch, step in zip(batches, steps, strict=True):
        states.append(RandomState.now(step.weights.device))
        with torch.no_grad():
            embeds.append(model.contrast_embeds(batch, step))
    joined = ("image_ids", "pair_index", "weights")
    whole = Step(**{name: torch.cat([getattr(step, name) for step in steps]) for name in joined})
    with torch.enable_grad():
        rows = {name: torch.cat([one[name] for one in embeds]).requires_grad_() for name in embeds[0]}
        learned = {name: value.detach().requires_grad_() for name, value in model.contrast_parameters().items()}
        inputs = rows | learned
        terms = model.contrast_terms(inputs, whole)
        total = model.weighted_sum(terms)
        gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True, materialize_grads=True)
    by_name = dict(zip(inputs, gradients))
    parts = {name: by_name[name].split([len(step.weights) for step in steps]) for name in rows}
    # Each micro-batch reports the whole step's terms, and brings an equal share of the gradient of what is learned.
    common = {name: by_name[name] / len(steps) for name in learned}
    values = {name: term.detach() / len(steps) for name, term in terms.items()}
    return [
        replace(step, cached=CachedGradients(values, {name: part[i] for name, part in parts.items()} | common, state))
        for i, (step, state) in enumerate(zip(steps, states))
    ]
