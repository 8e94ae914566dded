"""The exponential moving average that makes a momentum encoder (He et al. 2020, MoCo, eq. 2)."""

from collections.abc import Iterator

import torch
from torch import nn


@torch.no_grad()
def update_momentum(twin: nn.Module, online: nn.Module, momentum: float, idle: tuple[str, ...] = ()) -> None:
    """`theta_m <- m * theta_m + (1 - m) * theta` for every parameter of the twin, in grouped calls.

    Args:
        twin: the momentum encoder. Its parameters are found in `online` by name.
        online: the trained encoder; it may own parameters that the twin lacks (a mask token).
        momentum: m; 0 copies.
        idle: names of direct parts of the twin that stay as they are.

    Raises:
        KeyError: if the online encoder lacks a parameter of the twin, as when an adapter was put on one of them only.
    """
    trained, followers = dict(parameters_outside(online, idle)), dict(parameters_outside(twin, idle))
    targets = list(followers.values())
    sources = [trained[name].detach() for name in followers]
    if targets:
        torch._foreach_lerp_(targets, sources, 1 - momentum)


def parameters_outside(module: nn.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of all but some direct parts, which are not walked through: small steps would feel it."""
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if name not in parts:
            yield from child.named_parameters(prefix=name)
