"""Several processes that encode together, started by torchrun or accelerate; without torch there is but one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from transformers.utils import is_torch_available

from .._errors import explain


if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
PATIENCE = timedelta(days=2)  # while one process writes, the others wait


@dataclass(frozen=True)
class OneProcess:
    """What of `accelerate.PartialState` is asked for, where there is no torch to start several processes."""

    process_index: int = 0
    num_processes: int = 1
    is_main_process: bool = True

    def wait_for_everyone(self) -> None: ...

    def destroy_process_group(self) -> None: ...


def processes() -> "PartialState | OneProcess":
    """The processes that torchrun or accelerate started, or this one alone; they use gloo without accelerators."""
    if not is_torch_available():
        return OneProcess()
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def broadcast(values: list[Any]) -> list[Any]:
    """The first process's values, in all of them; all must call, with as many."""
    import torch.distributed as dist

    dist.broadcast_object_list(values, src=0)
    return values


def gather_objects(values: list[Any]) -> list[Any]:
    """The values of all processes, in their order; all must call."""
    if processes().num_processes == 1:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)


def gather_in_first(value: T) -> list[T]:
    """In the first process, the value of each; in the others nothing. All must call."""
    import torch.distributed as dist

    state = processes()
    values: list[Any] = [None] * state.num_processes if state.is_main_process else []
    dist.gather_object(value, values or None)
    return values


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
            broadcast(told)
    if told[0] is not None:
        raise ValueError(told[0])
    return result
