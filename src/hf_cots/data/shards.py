"""Files of what was computed once: each is written whole or not at all, and a damaged one is named."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def open_shard(path: Path, maker: str, framework: str = "np") -> Any:
    """A safetensors file, opened for reading.

    Args:
        path: of the file.
        maker: what writes such a file again, for the error.
        framework: "np" or "pt", what its tensors become.

    Raises:
        ValueError: if it is damaged, as a machine that lost its power can leave it.
    """
    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and {maker} writes it again") from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in one atomic step: a kill leaves the whole file or none."""
    draft = path.with_name(f"{path.name}.draft")
    write(draft)
    os.replace(draft, path)
