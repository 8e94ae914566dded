"""Reading modules from files of torch.save without running them: tensors, plain containers, stand-ins for classes.

A pickle runs what it names. This reader knows the names of tensors' rebuilders, of a few containers, and of the
classes that the caller expects, which it replaces by empty ones. Any other name is refused with an error.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch


# How files begin that torch.save wrote before PyTorch 1.6, as pickles of these two numbers.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
}
PLAIN = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,  # as protocol 2 calls it
    "torch.device": torch.device,
}


class Refused(pickle.UnpicklingError):
    """Says what a file asks for and does not get."""


class StandIn:
    """Replaces a module's class: it takes the attributes of the pickled instance, and has no behavior."""


def make_stand_ins(names: Iterable[str], base: type = StandIn) -> dict[str, type]:
    """Make a new sub-class of `base` for each full name of a class; what a pickle does to them goes with it."""
    return {name: type(name.rpartition(".")[2], (base,), {}) for name in names}


def _tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_gradient_and_hooks) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


def _parameter(data: torch.Tensor, *_gradient_and_hooks) -> torch.Tensor:
    return data


class _Unpickler(pickle.Unpickler):
    """Args: the pickle; names of classes to replace; a function from a storage's key, dtype and number of elements to
    a flat tensor."""

    def __init__(self, file: IO[bytes], classes: Iterable[str], storage: Callable[[str, torch.dtype, int], Any]):
        super().__init__(file)
        self._storage = storage
        rebuilders = {"torch._utils._rebuild_tensor_v2": _tensor, "torch._utils._rebuild_parameter": _parameter}
        self._admitted: dict[str, Any] = PLAIN | STORAGES | rebuilders | make_stand_ins(classes)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._admitted:
            raise Refused(f"it asks for '{full}', which is refused")
        return self._admitted[full]

    def persistent_load(self, saved_id: Any) -> Any:
        match saved_id:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length)):
                return self._storage(key, dtype, length)
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length), None):
                return self._storage(key, dtype, length)
            case ("module", type() as stand_in, str(), str()):  # a class with the source that it had
                return stand_in
        raise Refused("it refers to something outside of itself that is no tensor's storage")


def _read_zip(path: Path, classes: Iterable[str]) -> Any:
    """The object in a file since PyTorch 1.6: an archive of one pickle, and one record for each storage."""
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if name is None:
            raise Refused("it is an archive, but not of torch.save")
        folder = name.removesuffix("data.pkl")

        def storage(key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
            record = bytearray(archive.read(f"{folder}data/{key}"))
            return torch.frombuffer(record, dtype=dtype, count=length)

        return _Unpickler(io.BytesIO(archive.read(name)), classes, storage).load()


def _read_old(path: Path, classes: Iterable[str]) -> Any:
    """The object in a file before PyTorch 1.6: pickles one after another, then all storages."""
    left = path.stat().st_size
    storages: dict[str, torch.Tensor] = {}

    def storage(key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
        if length * dtype.itemsize > left:
            raise Refused(f"it is smaller than the {length} numbers that it should hold")
        return storages.setdefault(key, torch.empty(length, dtype=dtype))

    with path.open("rb") as file:
        magic, protocol, _machine, found, keys = (_Unpickler(file, classes, storage).load() for _ in range(5))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise Refused("it was not written by torch.save")
        for key in keys:
            tensor, length = storages[key], int.from_bytes(file.read(8), "little")
            record = bytearray(file.read(length * tensor.itemsize))
            tensor.copy_(torch.frombuffer(record, dtype=tensor.dtype, count=len(tensor)))
    return found


def read_saved_module(path: Path | str, classes: Iterable[str]) -> Any:
    """Read what `torch.save(module, path)` wrote, in its present format or the one before PyTorch 1.6.

    Args:
        path: the file.
        classes: full names of the modules' classes; their instances become ones of [`StandIn`], whose `vars` are the
            attributes of the modules. Parameters become tensors without gradients.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it asks for anything else, which the message names, or is no complete file of torch.save.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return (_read_zip if zipfile.is_zipfile(path) else _read_old)(path, classes)
    except Exception as error:  # a hostile or damaged pickle can bring the unpickler to raise anything
        damaged = f"it is damaged, or no file of torch.save ({type(error).__name__}: {error})"
        raise ValueError(f"{path} is not read: {error if isinstance(error, Refused) else damaged}") from None
