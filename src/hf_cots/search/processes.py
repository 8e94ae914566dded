"""Several processes that encode together, started by torchrun or accelerate; without torch there is only one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from transformers.utils import is_torch_available

from .._errors import explain


if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
PATIENCE = timedelta(days=2)  # timeout of the processes that wait while one writes


@dataclass(frozen=True)
class OneProcess:
    """A stand-in for `accelerate.PartialState` in environments without torch, with the attributes used here."""

    process_index: int = 0
    num_processes: int = 1
    is_main_process: bool = True

    def wait_for_everyone(self) -> None: ...

    def destroy_process_group(self) -> None: ...


def processes() -> "PartialState | OneProcess":
    """Return the state of the processes started by torchrun or accelerate, or of this one alone. Without accelerators
    they communicate through gloo."""
    if not is_torch_available():
        return OneProcess()
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def broadcast(values: list[Any]) -> list[Any]:
    """Send the first process's values to all processes; all must call, with lists of the same length."""
    import torch.distributed as dist

    dist.broadcast_object_list(values, src=0)
    return values


def gather_objects(values: list[Any]) -> list[Any]:
    """Concatenate the values of all processes, in the order of their ranks; all must call."""
    if processes().num_processes == 1:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)


def gather_in_first(value: T) -> list[T]:
    """Return each process's value in the first process, and an empty list in the others; all must call."""
    import torch.distributed as dist

    state = processes()
    values: list[Any] = [None] * state.num_processes if state.is_main_process else []
    dist.gather_object(value, values or None)
    return values


def own_blocks(items: Sequence[T], size: int) -> list[tuple[int, Sequence[T]]]:
    """Return this process's blocks of `size` consecutive items, assigned round-robin, each with its number."""
    state = processes()
    starts = range(0, len(items), size)
    return [(start // size, items[start : start + size]) for start in starts][
        state.process_index :: state.num_processes
    ]


def in_first_process(work: Callable[[], T]) -> T | None:
    """Run a function in the first process only, while the others wait; an error is raised in all. All must call.

    Returns:
        The result of `work` in the first process; None in the others.

    Raises:
        ValueError: in the others, with the one-line message of the first process's error.
    """
    state = processes()
    told: list[str | None] = [None]
    result: T | None = None
    try:
        if state.is_main_process:
            result = work()
    except Exception as error:
        told = [explain(error) or repr(error)]  # as text, since not every error can be pickled
        raise
    finally:
        if state.num_processes > 1:
            broadcast(told)
    if told[0] is not None:
        raise ValueError(told[0])
    return result
