"""Comparing what training runs leave in their folders."""

from pathlib import Path

import torch

from tests.support.worlds import checkpoint


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """The same names and, bit for bit, the same values."""
    assert one.keys() == other.keys()
    assert not [name for name in other if not torch.equal(one[name], other[name])]


def assert_same_checkpoints(one: Path, other: Path, step: int) -> None:
    """Weights, buffers, optimizer and schedule of two runs after `step` are bit for bit the same."""
    assert_same_weights(checkpoint(one, step), checkpoint(other, step))
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(run / f"checkpoint-{step}" / name, weights_only=True) for run in (one, other)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
