"""Standardization of features by statistics that are measured once, before training."""

import torch
from torch import nn

from .losses import full_precision


class Standardize(nn.Module):
    """`(x - mean) / deviation`, feature by feature; as long as nothing was measured, x itself.

    Unlike batch normalization, a row's result depends on no other row, in training too.

    Args:
        width: number of features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, width) in float32 or wider."""
        return (full_precision(features) - self.mean) / self.deviation

    @torch.no_grad()
    def measure(self, features: torch.Tensor) -> None:
        """Take mean and deviation from (n, width) features."""
        mean, deviation = mean_and_deviation(features)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)


def mean_and_deviation(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (width,) of (n, width) features; a feature that never changes has a deviation of 1: it
    carries no information, and is not magnified."""
    features = full_precision(features)
    deviation = features.std(dim=0)
    return features.mean(dim=0), torch.where(deviation > 1e-6 * deviation.max(), deviation, 1.0)
