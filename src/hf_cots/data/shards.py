"""Files of computed results: each is written completely or not at all, and errors name damaged files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..models.model_files import give_default_mode


def open_shard(path: Path, writer: str, framework: str = "np") -> Any:
    """Open a safetensors file for reading.

    Args:
        path: of the file.
        writer: what writes such a file again, for the error.
        framework: "np" or "pt", what its tensors become.

    Raises:
        ValueError: if it is damaged, as a machine that lost its power can leave it.
    """
    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and {writer} will write it again") from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in one atomic step: a kill leaves the complete file, or the one that was there before.

    Args:
        path: of the file.
        write: called with the path of a draft beside it, which it writes.
    """
    draft = path.with_name(f"{path.name}.draft")
    write(draft)
    give_default_mode(draft)
    os.replace(draft, path)
