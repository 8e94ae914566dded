"""The images and clips that an index is built from: those of a folder, or of a data set's rows."""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..data.folders import find_images, is_image, is_metadata, read_image_rows, walk_files
from ..data.images import BrokenImage
from ..data.resolve import kind_of
from ..data.sources import PairDataset, load_pairs
from .clips import is_video


logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 1_000
RECENT = 2 * 10**9  # nanoseconds: a file modified less than this ago may change again without a new time


@dataclass(frozen=True)
class SourceOptions:
    """How a data set is read; not used for a folder of images."""

    image_column: str = "image"
    split: str = "train"
    separator: str | None = None


class Gallery(ABC):
    """The images and clips of a source: their paths, bytes and columns.

    Attributes:
        name: absolute path of the file or folder; a pattern or Hub id as given.
        options: how a data set is read.
        with_columns: whether `columns` returns any.
        root: the folder that paths are relative to; None if images are not files of their own.
        paths: a distinct name of each image.
    """

    name: str
    options: SourceOptions
    with_columns: bool
    root: Path | None
    paths: list[str]

    def __init__(self, source: str | Path, options: SourceOptions, with_columns: bool = True):
        path = Path(source).expanduser()
        self.name = str(path.resolve()) if path.exists() else str(source)
        self.options, self.with_columns = options, with_columns

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Return size and modification time of an image's file, to detect changes; None if it has none that is
        reliable."""
        return None if self.root is None else read_stamp(self.root / self.paths[index])

    def read(self, index: int) -> bytes:
        """Read the encoded image.

        Raises:
            BrokenImage: if it cannot be read.
        """
        assert self.root is not None
        return read_file(self.root / self.paths[index])

    def video(self, index: int) -> Path | None:
        """Return the file of a video, which can be read in parts; None for anything else."""
        path = self.paths[index]
        return self.root / path if self.root is not None and is_video(path) else None

    @abstractmethod
    def columns(self) -> Iterator[dict[str, Any]]:
        """Yield the columns of each image, in the order of `paths`."""


def place(root: Path | None, path: str) -> Path:
    """Return the path of an image as search results give it."""
    return Path(path) if root is None else root / path


def read_stamp(path: Path) -> tuple[int, int] | None:
    """Return size and modification time (ns) of a file; None if it does not exist or was modified just now, so that it
    may change again without a new time."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if time.time_ns() - stat.st_mtime_ns > RECENT else None


def read_file(path: Path) -> bytes:
    """Read the bytes of a file.

    Raises:
        BrokenImage: if it cannot be read; names the file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BrokenImage(str(path), "no such file") from None
    except OSError as error:
        raise BrokenImage(str(path), f"{type(error).__name__}: {error.strerror}") from None


def is_media(path: Path) -> bool:
    """Whether a file is an image or a clip, by the suffix of its name."""
    return is_image(path) or is_video(path)


def holds_images(source: Path) -> bool:
    """Whether a folder contains images or clips, and no tar shards."""
    if not source.is_dir():
        return False
    files = walk_files(source)
    return any(map(is_media, files)) and not any(kind_of(path) == "tar" for path in files)


def open_gallery(source: str | Path, options: SourceOptions | None = None, with_columns: bool = True) -> Gallery:
    """Open a folder of images and clips, or a data set, as a gallery.

    A folder that contains any image or clip, also in sub-folders of any name, is read as a folder of images; to index
    what a table in it lists, give the path of the table instead.

    Args:
        source: a folder, or any source of [`load_pairs`].
        options: how a data set is read.
        with_columns: also read the columns of the source.

    Raises:
        FileNotFoundError, ValueError: as for [`find_images`] and [`load_pairs`].
    """
    path = Path(source).expanduser()
    if holds_images(path) or (path.is_dir() and not any(path.iterdir())):
        return FolderGallery(path, with_columns)
    return TableGallery(str(source), options or SourceOptions(), with_columns)


class FolderGallery(Gallery):
    """The images and clips in a folder and its sub-folders. The columns come from metadata.csv or metadata.jsonl and
    from .txt and .json files beside the images; `label` is the name of the first sub-folder.

    Raises:
        FileNotFoundError: if the folder does not exist or contains no image or clip.
    """

    def __init__(self, folder: Path, with_columns: bool = True):
        super().__init__(folder, SourceOptions(), with_columns)
        self.root = self.folder = folder
        images = find_images(folder, is_media)
        self._rows = self._read_rows() if with_columns else {}
        found = {str(path.relative_to(folder)) for path in images}
        self.paths = sorted(found | self._rows.keys())

    def _read_rows(self) -> dict[str, dict[str, Any]]:
        files = walk_files(self.folder)
        metadata = [path for path in files if is_metadata(path)]
        # Images need not be listed in the metadata here, so the reader is not given them and does not warn.
        rows: dict[str, dict[str, Any]] = {}
        top = os.path.abspath(self.folder)
        for row in read_image_rows(self.folder, metadata or files, is_wanted=is_media):
            rows.setdefault(os.path.relpath(row.pop("image"), top), row)
        return rows

    def columns(self) -> Iterator[dict[str, Any]]:
        return (self._rows.get(path, {}) for path in self.paths)


class TableGallery(Gallery):
    """The images of a data set's rows. Rows that name the same file are one image, with the columns of the first row;
    an image stored inside the table is named by the table, or else by its row number.

    Raises:
        FileNotFoundError, ValueError: as for [`load_pairs`].
    """

    def __init__(self, source: str, options: SourceOptions, with_columns: bool = True):
        super().__init__(source, options, with_columns)
        self.pairs: PairDataset = load_pairs(
            source, options.image_column, None, split=options.split, separator=options.separator
        )
        self._files = self.pairs.image_paths() is not None
        self.root = self.pairs.root if self._files else None
        named: dict[str, int] = {}
        repeated = 0
        for row, name in enumerate(self._names()):
            if name is None or (name in named and not self._files):
                name = f"{name or ''}#{row}"
            if name in named:
                repeated += 1
            named.setdefault(name, row)
        if repeated:
            logger.info("%s: %d rows name the same image as an earlier row, whose columns are kept", source, repeated)
        self.paths, self._row_numbers = list(named), list(named.values())

    def _names(self) -> Iterable[str | None]:
        paths = self.pairs.image_paths()
        if paths is not None:
            return paths
        table, column = self.pairs.table, self.pairs.image_column
        if "__key__" in table.column_names:
            return table["__key__"]
        cells = table.select_columns([column]).with_format("arrow")[:][column]
        if pa.types.is_struct(cells.type) and any(field.name == "path" for field in cells.type):
            return pc.struct_field(cells, "path").to_pylist()
        return [None] * len(table)

    def read(self, index: int) -> bytes:
        if self._files and not self.paths[index].startswith("#"):
            return super().read(index)
        cell = self.pairs.table[self._row_numbers[index]][self.pairs.image_column]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise BrokenImage(self.paths[index], f"column '{self.pairs.image_column}' contains no image")
        return data

    def columns(self) -> Iterator[dict[str, Any]]:
        table = self.pairs.table
        left_out = [
            name
            for name, feature in (table.features or {}).items()
            if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video))
            or getattr(feature, "dtype", "") in ("binary", "large_binary")
        ]
        kept = [name for name in table.column_names if name not in {*left_out, self.pairs.image_column}]
        kept = kept if self.with_columns else []
        others = [name for name in left_out if name != self.pairs.image_column]
        if others and self.with_columns:
            logger.info("columns without text or numbers are not stored: %s", ", ".join(others))
        if not kept:
            yield from ({} for _ in self.paths)
            return
        table = table.select_columns(kept)
        for start in range(0, len(self._row_numbers), ROWS_AT_ONCE):
            rows = self._row_numbers[start : start + ROWS_AT_ONCE]
            whole = table[rows[0] : rows[-1] + 1]
            for row in rows:
                yield {name: cells[row - rows[0]] for name, cells in whole.items()}
