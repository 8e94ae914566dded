"""Several processes that encode together, started by torchrun or accelerate."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState


T = TypeVar("T")
PATIENCE = timedelta(days=2)  # while one process writes, the others wait


def processes() -> PartialState:
    """The processes that torchrun or accelerate started, or this one alone; they use gloo without accelerators."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def own_blocks(items: Sequence[T], size: int) -> list[tuple[int, Sequence[T]]]:
    """This process's blocks of `size` consecutive items, dealt out in turn, each with its number."""
    state = processes()
    starts = range(0, len(items), size)
    return [(start // size, items[start : start + size]) for start in starts][
        state.process_index :: state.num_processes
    ]
