"""The index-aligned queues of momentum keys (He et al. 2020, MoCo), their running mean, and the queue of scores."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .losses import full_precision
from .renamed_fields import RENAMED_BUFFERS


def rename_buffers(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Give buffers their names of today in a state dict that is about to be loaded."""
    for old, new in RENAMED_BUFFERS.items():
        if prefix + old in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


class Buffers(nn.Module):
    """State in persistent buffers alone, which begins as zeros: a resumed run goes on with the same."""

    def reset_buffers(self) -> None:
        """Zero what was not loaded from a file (buffers are garbage after a load on the meta device)."""
        for buffer in self.buffers():
            init.zeros_(buffer)


class KeyQueue(Buffers):
    """Two ring buffers of keys, slot j of both always from the same pair, with that pair's image id and index.

    Args:
        size: slots N_Q.
        dim: joint dimension D.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("image_keys", torch.zeros(size, dim))
        self.register_buffer("text_keys", torch.zeros(size, dim))
        self.register_buffer("image_ids", torch.zeros(size, dtype=torch.long))
        self.register_buffer("pair_index", torch.zeros(size, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_pre_hook(rename_buffers)

    def __len__(self) -> int:
        return len(self.image_keys)

    @torch.no_grad()
    def enqueue(
        self,
        image_keys: torch.Tensor,
        text_keys: torch.Tensor,
        image_ids: torch.Tensor,
        pair_index: torch.Tensor,
    ) -> None:
        """Write (N, D) keys, (N,) ids and indices over the oldest slots. Any N works: of more than N_Q the
        newest are kept."""
        size = len(self)
        image_keys, text_keys = image_keys[-size:], text_keys[-size:]
        image_ids, pair_index = image_ids[-size:], pair_index[-size:]
        slots = (self.pointer + torch.arange(len(image_ids), device=self.pointer.device)) % size
        self.image_keys[slots] = image_keys.to(self.image_keys.dtype)
        self.text_keys[slots] = text_keys.to(self.text_keys.dtype)
        self.image_ids[slots] = image_ids
        self.pair_index[slots] = pair_index
        self.pointer.copy_((self.pointer + len(image_ids)) % size)
        self.filled.copy_((self.filled + len(image_ids)).clamp(max=size))

    def invalid_negatives(self, image_ids: torch.Tensor) -> torch.Tensor:
        """(n, N_Q) bool: slots that are empty, or that hold a key of the query's own image."""
        empty = torch.arange(len(self), device=self.filled.device) >= self.filled
        return empty[None, :] | (self.image_ids[None, :] == image_ids[:, None])


class KeyCenter(Buffers):
    """The running mean of the keys of each modality, as DINO centers its teacher's outputs (Caron et al. 2021, eq. 4).

    Args:
        dim: joint dimension D.
        momentum: weight of the old mean; the first step's mean is taken as it is.
    """

    def __init__(self, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(2, dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, image_mean: torch.Tensor, text_mean: torch.Tensor) -> None:
        """Take in the (D,) means of one optimizer step."""
        fresh = torch.stack([image_mean, text_mean]).to(self.means.dtype)
        self.means.copy_(torch.where(self.steps > 0, fresh.lerp(self.means, self.momentum), fresh))
        self.steps.add_(1)


class ScoreQueue(Buffers):
    """The last `size` momentum similarities of matched pairs, Q^S of the adaptive momentum filter."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("scores", torch.zeros(size))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, scores: torch.Tensor) -> None:
        """Write (N,) scores over the oldest."""
        size = len(self.scores)
        scores = scores[-size:]
        slots = (self.pointer + torch.arange(len(scores), device=self.pointer.device)) % size
        self.scores[slots] = scores.to(self.scores.dtype)
        self.pointer.copy_((self.pointer + len(scores)) % size)
        self.filled.copy_((self.filled + len(scores)).clamp(max=size))

    def threshold(self, filter_lambda: float) -> torch.Tensor:
        """`mu - lambda * sigma` of the queued scores; minus infinity, which keeps every pair, until it is full."""
        spread, mean = torch.std_mean(full_precision(self.scores), correction=0)
        full = self.filled == len(self.scores)
        return torch.where(full, mean - filter_lambda * spread, torch.full_like(mean, -torch.inf))
