"""Finds what would make a training step on a GPU wait for the device, on a CPU."""

import traceback
from collections import Counter
from contextlib import AbstractContextManager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback


aten = torch.ops.aten
# Operations whose result, or its shape, the host must know; `lift_fresh` makes a tensor of Python's numbers, which is
# copied to the device.
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.multinomial,
    aten.equal,
    aten.bincount,
    aten.unique_consecutive,
    aten._unique2,
    aten.unique_dim,
    aten.masked_scatter_backward,
    aten.lift_fresh,
}


# Methods that copy to the host without an operation, where the tensor is there already.
COPYING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


def has_mask(indices) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def waits(func, args, kwargs) -> bool:
    """Whether the host would wait for an operation."""
    packet = func.overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_):
        return has_mask(args[1])
    return packet in WAITING or (func == aten.repeat_interleave.Tensor and kwargs.get("output_size") is None)


class Copies(TorchFunctionMode):
    """Within, copies to the host are told to `count` by name."""

    def __init__(self, count):
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPYING:
            self.count(func.__name__)
        return func(*args, **kwargs or {})


class WaitsForDevice(TorchDispatchMode):
    """Within, `found` counts operations that wait for a device, or would if their tensors were on one, by the line of
    the program that asks for them."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()
        self.copies = Copies(self.count)

    def __enter__(self):
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def count(self, name: str) -> None:
        frames = [f for f in traceback.extract_stack()[:-2] if "/torch/" not in f.filename and f.filename != __file__]
        self.found[f"{name} at {frames[-1].filename}:{frames[-1].lineno}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if waits(func, args, kwargs or {}):
            self.count(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


class Between(TrainerCallback):
    """Enters a context at the end of one step of a trainer, and leaves it at the end of another."""

    def __init__(self, context: AbstractContextManager, first: int, last: int):
        self.context, self.first, self.last = context, first, last

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            self.context.__enter__()
        if state.global_step == self.last:
            self.context.__exit__(None, None, None)
