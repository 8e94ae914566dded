"""The momentum twin and the index-aligned queues (He et al. 2020, MoCo), and what ranks exchange to share them."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from transformers import initialization as init

from .losses import full_precision


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


class KeyQueue(nn.Module):
    """Two ring buffers of keys, slot j of both always from the same pair, with that pair's image id and number.

    All state is in persistent buffers: a resumed run goes on with the same queue.

    Args:
        size: slots N_Q.
        dim: joint dimension D.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("image_keys", torch.zeros(size, dim))
        self.register_buffer("text_keys", torch.zeros(size, dim))
        self.register_buffer("image_ids", torch.zeros(size, dtype=torch.long))
        self.register_buffer("pair_numbers", torch.zeros(size, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def reset_buffers(self) -> None:
        """Zero what was not loaded from a file (buffers are garbage after a load on the meta device)."""
        for buffer in self.buffers():
            init.zeros_(buffer)

    def __len__(self) -> int:
        return len(self.image_keys)

    @torch.no_grad()
    def enqueue(
        self,
        image_keys: torch.Tensor,
        text_keys: torch.Tensor,
        image_ids: torch.Tensor,
        pair_numbers: torch.Tensor,
    ) -> None:
        """Write (N, D) keys, (N,) ids and places in the run over the oldest slots. Any N works: of more than N_Q the
        newest are kept."""
        size = len(self)
        image_keys, text_keys = image_keys[-size:], text_keys[-size:]
        image_ids, pair_numbers = image_ids[-size:], pair_numbers[-size:]
        slots = (self.pointer + torch.arange(len(image_ids), device=self.pointer.device)) % size
        self.image_keys[slots] = image_keys.to(self.image_keys.dtype)
        self.text_keys[slots] = text_keys.to(self.text_keys.dtype)
        self.image_ids[slots] = image_ids
        self.pair_numbers[slots] = pair_numbers
        self.pointer.copy_((self.pointer + len(image_ids)) % size)
        self.filled.copy_((self.filled + len(image_ids)).clamp(max=size))

    def no_negative(self, image_ids: torch.Tensor) -> torch.Tensor:
        """(n, N_Q) bool: slots that are empty, or that hold a key of the query's own image."""
        empty = torch.arange(len(self), device=self.filled.device) >= self.filled
        return empty[None, :] | (self.image_ids[None, :] == image_ids[:, None])


class KeyCenter(nn.Module):
    """The running mean of the keys of each modality, as DINO centres its teacher's outputs (Caron et al. 2021, eq. 4).

    Args:
        dim: joint dimension D.
        momentum: weight of the old mean; the first step's mean is taken as it is.
    """

    def __init__(self, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(2, dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def reset_buffers(self) -> None:
        """Zero what was not loaded from a file."""
        for buffer in self.buffers():
            init.zeros_(buffer)

    @torch.no_grad()
    def update(self, image_mean: torch.Tensor, text_mean: torch.Tensor) -> None:
        """Take in the (D,) means of one optimizer step."""
        fresh = torch.stack([image_mean, text_mean]).to(self.means.dtype)
        self.means.copy_(torch.where(self.steps > 0, fresh.lerp(self.means, self.momentum), fresh))
        self.steps.add_(1)


class ScoreQueue(nn.Module):
    """The last `size` momentum similarities of matched pairs, Q^S of the adaptive momentum filter."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("scores", torch.zeros(size))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def reset_buffers(self) -> None:
        """Zero what was not loaded from a file."""
        for buffer in self.buffers():
            init.zeros_(buffer)

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


def world_size() -> int:
    """Processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among those that train together."""
    return dist.get_rank() if world_size() > 1 else 0


def row_counts(count: int, device: torch.device) -> list[int]:
    """How many rows each rank holds, in rank order; this one holds `count`."""
    if world_size() == 1:
        return [count]
    own = torch.tensor([count], device=device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return torch.cat(counts).tolist()


def numbers_in_run(seen: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """(n,) the place in the run of each of this rank's pairs: `seen` pairs came before this micro-batch, whose ranks
    hold `counts`."""
    return seen + sum(counts[: rank()]) + torch.arange(counts[rank()], device=seen.device)


def ids_of_pictures(image_ids: torch.Tensor | None, numbers: torch.Tensor) -> torch.Tensor:
    """The pictures' ids; without any, each pair gets a negative one that no other pair of the run has."""
    return -1 - numbers if image_ids is None else image_ids


def _padded(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Rows of zeros behind this rank's own, up to the largest rank's number: collectives want equal shapes."""
    return torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Concatenate a tensor over the ranks in rank order, without gradient; `counts` are those of [`row_counts`]."""
    if world_size() == 1:
        return rows
    padded = _padded(rows, counts)
    parts = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts)])


def gather_rows_with_gradient(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The same with gradient to every rank's rows."""
    if world_size() == 1:
        return rows
    parts = torch.distributed.nn.functional.all_gather(_padded(rows, counts))
    return torch.cat([part[:n] for part, n in zip(parts, counts)])
