"""Reading modules from files of torch.save without running them: tensors, plain containers, stand-ins for classes.

A pickle runs what it names. This reader knows the names of tensors' rebuilders, of a few containers, and of the
classes that the caller expects, which it replaces by empty ones. Any other name is refused with an error.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch


# How files begin that torch.save wrote before PyTorch 1.6, as pickles of these two numbers.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_AXES = 8  # twice as many as a convolution's weight has

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


def find_misfit(size: tuple, stride: tuple, offset: int, held: int) -> str | None:
    """Why a tensor cannot lie in its storage, in words; None if it can, and no two of its elements in one place.

    A stride of 0 lets a storage of one number stand for billions, which take memory as soon as they are used.

    Args:
        size, stride, offset: of the tensor, as a file gives them.
        held: numbers in the storage.
    """
    numbers = (*size, *stride, offset) if isinstance(size, tuple) and isinstance(stride, tuple) else ("",)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(size) != len(stride):
        return "is no tensor: size, strides and offset must be whole numbers from 0 on, one of each for an axis"
    if len(size) > MOST_AXES:
        return f"has {len(size)} axes"
    if 0 in size:
        return None
    last = 0  # the last place that the axes of smaller strides reach
    for step, length in sorted(axis for axis in zip(stride, size) if axis[1] > 1):
        if step <= last:
            return f"of size {size} and strides {stride} overlaps itself in a storage of {held} numbers"
        last += step * (length - 1)
    if offset + last >= held:
        return f"of size {size}, strides {stride} and offset {offset} is out of bounds of a storage of {held} numbers"
    return None


def check_tensor(tensor: torch.Tensor) -> None:
    """Check a tensor that torch has read, as [`find_misfit`] does.

    Raises:
        Refused: saying what is wrong with it.
    """
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    misfit = find_misfit(tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), held)
    if misfit:
        raise Refused(f"a tensor {misfit}")


def _rebuilders() -> dict[str, Callable]:
    """torch's functions that rebuild a tensor; new ones for each file, which may set attributes of them."""

    def tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_gradient_and_hooks) -> torch.Tensor:
        misfit = find_misfit(size, stride, offset, len(storage))
        if misfit:
            raise Refused(f"a tensor {misfit}")
        return storage.as_strided(size, stride, offset)

    def parameter(data: torch.Tensor, *_gradient_and_hooks) -> torch.Tensor:
        return data

    return {"torch._utils._rebuild_tensor_v2": tensor, "torch._utils._rebuild_parameter": parameter}


class _Unpickler(pickle.Unpickler):
    """Args: the pickle; names of classes to replace; a function from a storage's key, dtype and number of elements to
    a flat tensor."""

    def __init__(self, file: IO[bytes], classes: Iterable[str], storage: Callable[[str, torch.dtype, int], Any]):
        super().__init__(file)
        self._storage = storage
        self._admitted: dict[str, Any] = PLAIN | STORAGES | _rebuilders() | make_stand_ins(classes)

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


def _unpickle(file: IO[bytes], size: int, classes: Iterable[str], storage: Callable[[str, torch.dtype, int], Any]):
    """The object of the pickle that begins here, in a file of `size` bytes.

    Its codes are read once without being followed: the number of a remembered object is the index of an array that
    the unpickler would make as long as that.
    """
    start = file.tell()
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > size:
                raise Refused(f"it asks for room for {argument:,} objects, and has {size:,} bytes")
    except ValueError:
        pass  # no pickle from here on; the unpickler stops there too, and says why
    file.seek(start)
    return _Unpickler(file, classes, storage).load()


def check_archive(path: Path) -> dict[str, int]:
    """Look at the directory of an archive of torch.save, before anything of it is read.

    Returns:
        The bytes in each of its records, by name.

    Raises:
        Refused: if it is larger when read than it is on the disk, or holds a record of a kind that torch.save does not
            write.
    """
    size, records = path.stat().st_size, {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise Refused(
                    f"its record '{name}' of {info.compress_size:,} bytes claims to hold {info.file_size:,}, and "
                    "torch.save compresses nothing"
                )
            if name in records:
                raise Refused(f"it has two records '{name}'")
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise Refused(f"its record '{name}' lies outside of it")
            records[name] = info.file_size
    total = sum(records.values())
    if total > size:
        raise Refused(f"its records claim to hold {total:,} bytes, and it has {size:,}")
    return records


def _read_zip(path: Path, classes: Iterable[str]) -> Any:
    """The object in a file since PyTorch 1.6: an archive of one pickle, and one record for each storage."""
    sizes = check_archive(path)
    name = next((name for name in sizes if name.endswith("/data.pkl")), None)
    if name is None:
        raise Refused("it is an archive, but not of torch.save")
    folder = name.removesuffix("data.pkl")
    read: dict[str, torch.Tensor] = {}
    with zipfile.ZipFile(path) as archive:

        def storage(key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
            record = f"{folder}data/{key}"
            if sizes.get(record) != length * dtype.itemsize:
                raise Refused(f"'{record}' must hold {length:,} numbers of {dtype}, and has {sizes.get(record)} bytes")
            if record not in read:
                numbers = bytearray(archive.read(record))
                read[record] = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
            if read[record].dtype != dtype:
                raise Refused(f"it takes '{record}' for numbers of two kinds")
            return read[record]

        data = archive.read(name)
        return _unpickle(io.BytesIO(data), len(data), classes, storage)


def _read_old(path: Path, classes: Iterable[str]) -> Any:
    """The object in a file before PyTorch 1.6: pickles one after another, then all storages."""
    size = path.stat().st_size
    storages: dict[str, torch.Tensor] = {}

    def storage(key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
        if key not in storages:
            held = sum(tensor.nbytes for tensor in storages.values())
            if length < 0 or held + length * dtype.itemsize > size:
                raise Refused(f"it is smaller than the {length} numbers that it should hold")
            storages[key] = torch.empty(length, dtype=dtype)
        return storages[key]

    with path.open("rb") as file:
        magic, protocol, _machine, found, keys = (_unpickle(file, size, classes, storage) for _ in range(5))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise Refused("it was not written by torch.save")
        if sorted(keys) != sorted(storages):
            raise Refused("its list of storages names others than its tensors do")
        for key in keys:
            tensor, length = storages[key], int.from_bytes(file.read(8), "little")
            if length != len(tensor):
                raise Refused(f"storage '{key}' has {length} numbers in one place and {len(tensor)} in another")
            record = bytearray(file.read(tensor.nbytes))
            if len(tensor):
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
        reason = " ".join(str(error).split())[:300]
        damaged = f"it is damaged, or no file of torch.save ({type(error).__name__}: {reason})"
        raise ValueError(f"{path} is not read: {error if isinstance(error, Refused) else damaged}") from None
