"""Several processes that encode together, started by torchrun or accelerate."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from .._errors import explain


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


def in_first_process(work: Callable[[], T]) -> T | None:
    """Do what only the first process can, while the others wait; an error of it ends all of them. All must call.

    Returns:
        What `work` returns, in the first process; None in the others.

    Raises:
        ValueError: in the others, with the line that explains the error of the first.
    """
    state = processes()
    told: list[str | None] = [None]
    result: T | None = None
    try:
        if state.is_main_process:
            result = work()
    except Exception as error:
        told = [explain(error) or repr(error)]  # not the error itself: not every one can be pickled
        raise
    finally:
        if state.num_processes > 1:
            dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise ValueError(told[0])
    return result
