"""Files below a folder, and folders of images as rows.

A folder can describe its images in three ways: `metadata.jsonl` or `metadata.csv` with a column `file_name`
(imagefolder), files beside each image with its name and the suffix .txt or .json (img2dataset's "files" format), or
the names of its sub-folders (labels).
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from .tables import TABLE_SUFFIXES, TableError, data_suffix, parse_json, read_rows


logger = logging.getLogger(__name__)

# Formats that PIL lists but opens only with another program, or only to look at the header.
STUB_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in STUB_FORMATS
)
SIDECARS = (".txt", ".json")


def cache_folder(*names: str) -> Path:
    """The cache folder: `$HF_COTS_CACHE`, or else `~/.cache/hf_cots`. It need not exist yet."""
    root = os.environ.get("HF_COTS_CACHE") or os.path.join("~", ".cache", "hf_cots")
    return Path(root).expanduser().joinpath(*names)


def is_image(path: Path) -> bool:
    """Whether PIL opens files of this suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_metadata(path: Path) -> bool:
    """Whether a file is imagefolder's `metadata.csv`, `.jsonl` or `.parquet`, compressed or not."""
    return path.name.split(".")[0] == "metadata" and data_suffix(path) in (".csv", ".tsv", ".jsonl", ".parquet")


def walk_files(folder: Path) -> list[Path]:
    """All files below a folder in sorted order, without hidden ones. Links to folders are followed, each real folder
    once; folders that may not be read are passed over with a warning."""
    files, seen, waiting = [], set(), [str(folder)]
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(parent) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except PermissionError as error:
            logger.warning("skipping %s: %s", parent, error.strerror)
            continue
        waiting += [entry.path for entry in reversed(entries) if entry.is_dir()]
        # A link that leads nowhere is kept, to be told of; pipes and devices are not files.
        files += [Path(e.path) for e in entries if e.is_file() or (e.is_symlink() and not os.path.exists(e.path))]
    return sorted(files)


def find_images(folder: Path, is_wanted: Callable[[Path], bool] = is_image) -> list[Path]:
    """Find the images below a folder, in sorted order; the number of other files is logged.

    Args:
        is_wanted: whether a file counts, by its name.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    files = walk_files(folder)
    images = [path for path in files if is_wanted(path)]
    if not images:
        raise FileNotFoundError(
            f"no image (.avif, .bmp, .gif, .jpeg, .jpg, .png, .tif, .webp, or another PIL format) below {folder}; "
            f"{len(files)} other files"
        )
    if len(images) < len(files):
        suffixes = sorted({path.suffix.lower() or "no suffix" for path in files if not is_wanted(path)})
        logger.info(
            "%s: skipping %d files that are not images (%s)", folder, len(files) - len(images), ", ".join(suffixes)
        )
    return images


def read_image_rows(
    folder: Path,
    files: Sequence[Path],
    separator: str | None = None,
    is_wanted: Callable[[Path], bool] = is_image,
    column: str = "image",
) -> Iterator[dict[str, Any]]:
    """One row per image of a folder: `image` (its absolute path) and what is said of it.

    Args:
        folder: of the split; its sub-folders are labels.
        files: all files of the split.
        separator: of `metadata.csv`, if its header does not tell.
        is_wanted: whether a file is an image of the folder, by its name.
        column: in place of `image`.

    Raises:
        TableError: if a folder has two files of metadata, or they lack the column `file_name`.
    """
    metadata = [path for path in files if is_metadata(path)]
    images = [path for path in files if is_wanted(path)]
    if metadata:
        yield from _rows_of_metadata(folder, metadata, images, separator, column)
        return
    others = {path.with_suffix(path.suffix.lower()): path for path in files if path.suffix.lower() in SIDECARS}
    for path in images:
        row: dict[str, Any] = {column: os.path.abspath(path)}
        for suffix in SIDECARS:
            beside = others.get(path.with_suffix(suffix))
            if beside is not None:
                row[suffix[1:]] = _read_sidecar(beside)
        label = find_label(folder, path)
        yield row if label is None else row | {"label": label}


def find_label(folder: Path, path: Path) -> str | None:
    """The first sub-folder of `folder` on the way to a file; None for a file at its top."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def read_class_folders(folder: Path, files: Sequence[Path]) -> list[dict[str, str]]:
    """One row per image below the sub-folders of a folder: `image`, its path from the folder, and `label`.

    Raises:
        ValueError: if a sub-folder holds no image.
    """
    images = [path for path in files if is_image(path)]
    rows = [
        {"image": str(path.relative_to(folder)), "label": label}
        for path in images
        if (label := find_label(folder, path)) is not None
    ]
    classes = {row["label"] for row in rows}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in classes:
            raise ValueError(
                f"{path} contains no images: in a folder of class folders each must contain some; if it is a split, "
                "pass it as the data"
            )
    if len(rows) < len(images):
        logger.warning("%s: skipping %d images that are not in a class folder", folder, len(images) - len(rows))
    return rows


def _rows_of_metadata(
    folder: Path, metadata: list[Path], images: list[Path], separator: str | None, column: str
) -> Iterator[dict[str, Any]]:
    """The rows of the metadata files, in their order."""
    named: set[Path] = set()
    for file, following in itertools.zip_longest(metadata, metadata[1:]):
        if following is not None and following.parent == file.parent:
            raise TableError(f"{file} and {following.name} are both metadata of one folder: keep only one of them")
        rows = pq.read_table(file).to_pylist() if data_suffix(file) == ".parquet" else read_rows(file, separator)
        for number, row in enumerate(rows):
            name = row.pop("file_name", None)
            if not isinstance(name, str):
                raise TableError(f"{file}, row {number}: 'file_name', the name of the image, is missing")
            path = file.parent / name
            named.add(path)
            yield {column: os.path.abspath(path)} | row
    unnamed = [path for path in images if path not in named]
    if unnamed:
        logger.warning(
            "%s: skipping %d images that are not in the metadata, such as %s", folder, len(unnamed), unnamed[0].name
        )


def _read_sidecar(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return parse_json(text) if path.suffix.lower() == ".json" else text.strip()
    except ValueError as error:  # of decoding, of JSON
        raise TableError(f"{path}: {error}") from None


def looks_like_metadata(files: Sequence[Path]) -> list[Path]:
    """Tables beside images that are not called `metadata.csv` or `metadata.jsonl`."""
    names = [path for path in files if data_suffix(path) in TABLE_SUFFIXES and not is_metadata(path)]
    stems = {path.with_suffix("") for path in files if is_image(path)}
    return [path for path in names if path.with_suffix("") not in stems]
