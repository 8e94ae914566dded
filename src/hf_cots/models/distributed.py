"""What ranks exchange: row counts, and rows in rank order."""

import functools

import torch
import torch.distributed as dist


def world_size() -> int:
    """Processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among those that train together."""
    return dist.get_rank() if world_size() > 1 else 0


@functools.cache
def _cpu_group(everyone: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group of all ranks that exchanges what is in the memory of CPUs; all ranks make it together."""
    return everyone if "cpu" in dist.get_backend_config(everyone) else dist.new_group(backend="gloo")


def row_counts(count: int) -> list[int]:
    """How many rows each rank holds, in rank order; this one holds `count`. Exchanged between the CPUs: the host has
    them without waiting for what a GPU has still to do."""
    if world_size() == 1:
        return [count]
    own = torch.tensor([count])
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own, group=_cpu_group(dist.group.WORLD))
    return torch.cat(counts).tolist()


def own_index(counts: list[int], device: torch.device) -> torch.Tensor:
    """(n,) int64: which rows are this rank's among those of all ranks, which hold `counts`."""
    return sum(counts[: rank()]) + torch.arange(counts[rank()], device=device)


def _padded(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Rows of zeros behind this rank's own, up to the longest rank's: collectives want equal shapes."""
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
    """Concatenate a tensor over the ranks in rank order, with gradient to every rank's rows."""
    if world_size() == 1:
        return rows
    parts = torch.distributed.nn.functional.all_gather(_padded(rows, counts))
    return torch.cat([part[:n] for part, n in zip(parts, counts)])
