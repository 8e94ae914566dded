"""A tiny pre-training model in float64, its batches, and one optimizer step of it."""

import pytest
import torch

from hf_cots import COTSForPreTraining
from hf_cots.models import distributed, instance_level
from hf_cots.models.masking import draw_masks, mix
from hf_cots.models.token_level import mask_settings
from tests.support.tiny import tiny_batch, tiny_config


def make(**fields):
    """A tiny model in float64 whose momentum encoder has drifted away, so that the two never coincide."""
    torch.manual_seed(0)
    model = COTSForPreTraining(tiny_config(**fields)).double()
    with torch.no_grad():
        for parameter in model.cots.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def data(model, pairs=8, seed=0):
    """A batch in float64 with masks, a padded text, and images that occur twice."""
    batch = tiny_batch(pairs, seed=seed)
    batch["attention_mask"][0, 6:] = 0
    batch["input_ids"][0, 5] = 102
    batch["input_ids"][0, 6:] = 0
    batch["pixel_values"] = batch["pixel_values"].double()
    batch["image_ids"] = 100 * seed + torch.arange(pairs) // 2
    drawn = draw_masks(
        [mix(seed, r) for r in range(pairs)], batch["input_ids"].numpy(), None, **mask_settings(model.config)
    )
    return batch | {name: torch.from_numpy(mask) for name, mask in drawn.items()}


def recompute_activations(model, **settings):
    """Switch on the recomputation of activations, which newer versions of transformers name in another way."""
    new = hasattr(model, "activation_checkpointing_enable")
    (model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable)(settings or None)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def split(batch, sizes):
    pieces = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: parts[i] for name, parts in pieces.items()} for i in range(len(sizes))]


def run_step(model, batch, sizes):
    """One accumulated step as Trainer does it: each micro-batch's loss divided by their number.

    Returns the loss and the number of dropped pairs."""
    micro, total, dropped = split(batch, sizes), 0.0, 0
    for piece, step in zip(micro, model.begin_step(micro)):
        loss = model(**piece, step=step).loss / len(sizes)
        loss.backward()
        total += loss.item()
        dropped += int((~step.kept).sum())
    return total, dropped


def compare_on_last_rank(images, texts, image_ids, first, temperature, same_image="excluded"):
    """[`compare_in_batch`] on a rank that holds the pairs from `first` on; the first rank holds the others."""
    sides = iter((images, texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: 1)
        patch.setattr(instance_level, "row_counts", lambda count: [first, count])
        patch.setattr(instance_level, "gather_rows_with_gradient", lambda rows, counts: next(sides))
        patch.setattr(instance_level, "gather_rows", lambda rows, counts: image_ids)
        own = (images[first:], texts[first:], image_ids[first:])
        return instance_level.compare_in_batch(*own, temperature, same_image)


def descend(model, rate=1e-3):
    """A step of gradient descent, and the end of the model's step."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
    model.end_step()


def assert_close(given, wanted, rtol=1e-9, atol=1e-10):
    """Tensors of the same names; the name of the one that differs is told."""
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def take_gradients(model):
    """The gradients of all that has one; the model's are zeroed."""
    taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
