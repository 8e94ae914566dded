"""The files of a saved model on disk: which of them cannot be read and why, and the mode of new ones."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open


LFS_POINTER = b"version https://git-lfs"


@contextmanager
def named_damage(source: str | Path) -> Iterator[None]:
    """Name the file, where loading a model by Hub id or folder fails because one of its files cannot be read.

    Raises:
        OSError: naming the file and what is wrong with it; any other error passes.
    """
    try:
        yield
    except Exception as error:  # each reader has its own errors, tokenizers even plain `Exception`
        damage = find_damage(source)
        if damage is None:
            raise
        raise OSError(damage) from error


def find_damage(source: str | Path) -> str | None:
    """Which file of a saved model cannot be read, and why; None if there is none, or no such folder."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            known = try_to_load_from_cache(str(source), "config.json")
        except ValueError:  # no Hub id either
            return None
        if not isinstance(known, str):
            return None
        folder = Path(known).parent
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    first = [path for path in (folder / "config.json",) if path.is_file()]
    for path in (*first, *weights, *sorted(folder.glob("*.json"))):
        reason = _damage_of(path)
        if reason is not None:
            return f"{path} {reason}"
    return None


def _damage_of(path: Path) -> str | None:
    with path.open("rb") as file:
        beginning = file.read(len(LFS_POINTER))
    if beginning == LFS_POINTER:
        return "is a git-lfs pointer in place of the file: install git-lfs and run `git lfs pull` in the repository"
    again = "copy or download it again"
    if not beginning:
        return f"is empty: {again}"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np"):  # of whichever, only the header is read
                pass
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif beginning.startswith(b"PK") and not zipfile.is_zipfile(path):
            return f"is truncated: {again}"
    except SafetensorError as error:
        return f"is truncated or not a safetensors file ({error}): {again}"
    except ValueError as error:
        return f"is truncated or not JSON ({error}): {again}"
    return None


def give_default_mode(*files: Path) -> None:
    """Let files that safetensors wrote, which only their owner may read, have the mode of any new file."""
    for path in files:
        ordinary = path.with_name(f"{path.name}.mode")
        ordinary.touch()
        shutil.copymode(ordinary, path)
        ordinary.unlink()


__all__ = ["find_damage", "give_default_mode", "named_damage"]
