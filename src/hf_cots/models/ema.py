"""The exponential moving average that makes a momentum encoder (He et al. 2020, MoCo, eq. 2)."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .standardize import Standardize


@torch.no_grad()
def update_momentum(
    momentum_encoder: nn.Module, online: nn.Module, momentum: float, skip: tuple[str, ...] = ()
) -> None:
    """`theta_m <- m * theta_m + (1 - m) * theta` for every parameter of the momentum encoder, in grouped calls. The
    running statistics of batch normalization, which are averages already, and those of [`Standardize`] are copied.

    Args:
        momentum_encoder: its parameters are found in `online` by name.
        online: the trained encoder; it may own parameters that the momentum encoder lacks (a mask token).
        momentum: m; 0 copies.
        skip: names of direct parts of the momentum encoder that stay as they are.

    Raises:
        KeyError: if the online encoder lacks a parameter of the momentum encoder, as when an adapter was put on one of
            them only.
    """
    trained, followers = dict(parameters_outside(online, skip)), dict(parameters_outside(momentum_encoder, skip))
    targets = list(followers.values())
    sources = [trained[name].detach() for name in followers]
    if targets:
        get_ema_multi_avg_fn(momentum)(targets, sources, None)
    statistics = dict(running_statistics(momentum_encoder, skip))
    if statistics:
        measured = dict(running_statistics(online, skip))
        for name, buffer in statistics.items():
            buffer.copy_(measured[name])


def running_statistics(module: nn.Module, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """Named statistics of batch normalization and standardization, of all but some direct parts."""
    for name, child in module.named_children():
        for prefix, part in () if name in skip else child.named_modules(prefix=name):
            if isinstance(part, nn.modules.batchnorm._NormBase | Standardize):
                yield from part.named_buffers(prefix=prefix, recurse=False)


@torch.no_grad()
def follow_sizes(momentum_encoder: nn.Module, online: nn.Module) -> None:
    """Make the momentum encoder's parameters as long as the trained ones, whose vocabulary was resized: rows that both
    have stay, new ones are copies."""
    for name, module in momentum_encoder.named_modules():
        trained = online.get_submodule(name)
        for leaf, old in list(module.named_parameters(recurse=False)):
            new = getattr(trained, leaf).detach()
            if new.shape != old.shape:
                kept = old[: len(new)]
                setattr(module, leaf, nn.Parameter(torch.cat([kept, new[len(kept) :].to(kept)]), requires_grad=False))
        for size in ("num_embeddings", "padding_idx", "out_features"):  # of nn.Embedding and nn.Linear
            if hasattr(module, size):
                setattr(module, size, getattr(trained, size))


def parameters_outside(module: nn.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of all but some direct parts, which are not walked through: that would slow small steps."""
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if name not in parts:
            yield from child.named_parameters(prefix=name)
