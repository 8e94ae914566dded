"""Image-text pairs from a Hub id, a folder, parquet, CSV or JSON lines with paths, or webdataset tars.

All of them become one [`PairDataset`]; pictures stay encoded until a worker needs them.
"""

import glob
import hashlib
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.data_files import SPLIT_KEYWORDS
from PIL import Image
from torch.utils.data import Dataset

from ..models.masking import generator, mix
from .images import BrokenImage, BrokenImageReport, read_image


logger = logging.getLogger(__name__)

SIBLING_STREAM = 7
BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".tar": "webdataset",
}


def load_table(
    data: str, split: str = "train", streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Open the data without decoding anything.

    Args:
        data: a folder (imagefolder with metadata.jsonl, or one of parquet files or tars), a file, a glob pattern
            such as `shards/*.tar`, or a Hub id.
        split: which split of a Hub data set, or of a folder that has several.
        streaming: read rows as they are needed, and keep no copy on this machine.

    Raises:
        FileNotFoundError: if a path or pattern matches nothing.
        ValueError: if the kind of a file is unknown or the split does not exist.
    """
    path = Path(data)
    if path.is_dir():
        kind = next((suffix for suffix in (".parquet", ".tar") if any(path.glob(f"*{suffix}"))), None)
        if kind is None:
            splits = datasets.load_dataset("imagefolder", data_files=_split_files(path), streaming=streaming)
            return _pick_split(splits, data, split if len(splits) > 1 else next(iter(splits)))
        files = sorted(str(file) for file in path.glob(f"*{kind}"))
    elif path.is_file() or any(sign in data for sign in "*?["):
        files = sorted(glob.glob(data))
        if not files:
            raise FileNotFoundError(f"no file matches {data}")
    elif path.suffix.lower() in BUILDERS or data.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no such file or folder: {data}")
    else:
        return _pick_split(datasets.load_dataset(data, streaming=streaming), data, split)
    suffix = Path(files[0]).suffix.lower()
    if suffix not in BUILDERS:
        raise ValueError(f"{files[0]}: cannot read '{suffix}' files; known are {', '.join(BUILDERS)} and folders")
    options: dict[str, Any] = {"sep": "\t"} if suffix == ".tsv" else {}
    return datasets.load_dataset(BUILDERS[suffix], data_files=files, split="train", streaming=streaming, **options)


def _split_files(folder: Path) -> dict[str, list[str]]:
    """Patterns of the files of each split of a folder of pictures: its sub-folders of that name, or the whole of it.

    Left to itself, `datasets` would look for these words in the names of files, too, and drop all others if a picture
    is called `toy_train_02.png`.
    """
    found = {
        str(split): [f"{glob.escape(str(folder / word))}/**" for word in words if (folder / word).is_dir()]
        for split, words in SPLIT_KEYWORDS.items()
    }
    return {split: files for split, files in found.items() if files} or {"train": [f"{glob.escape(str(folder))}/**"]}


def _pick_split(splits: dict[str, Any], data: str, split: str) -> datasets.Dataset | datasets.IterableDataset:
    if split not in splits:
        raise ValueError(f"{data} has no split '{split}'; it has {', '.join(map(str, splits))}")
    return splits[split]


def load_pairs(
    data: str,
    image_column: str = "image",
    caption_column: str | None = "caption",
    image_id_column: str | None = None,
    split: str = "train",
    seed: int = 0,
    report: Path | str | None = None,
) -> "PairDataset":
    """Open data as image-text pairs; see [`load_table`] for what `data` may be and [`PairDataset`] for the rest.

    Raises:
        FileNotFoundError, ValueError: as [`load_table`] and [`PairDataset`] say.
    """
    table = load_table(data, split)
    return PairDataset(table, image_column, caption_column, image_id_column, root_of(data), seed, report, name=data)


def root_of(data: str) -> Path:
    """The folder that relative paths in the data start from."""
    return Path(data) if Path(data).is_dir() else Path(data).parent


def check_columns(name: str, present: list[str], **wanted: str | None) -> None:
    """Every wanted column, by the name of its flag, must be present.

    Raises:
        ValueError: naming the one that is not.
    """
    for flag, column in wanted.items():
        if column is not None and column not in present:
            option = flag.replace("_", "-")
            raise ValueError(f"{name} has no column '{column}'; it has {', '.join(present)}. Name one with --{option}")


def identity(text: str) -> int:
    """A non-negative int64 that stands for a path or another name of a picture."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def read_cell(cell: Any, name: str, column: str, root: Path, report: BrokenImageReport | None = None) -> Image.Image:
    """The picture of a table's cell (an `Image` feature that is not decoded, bytes, or a path), upright and RGB.

    Args:
        cell: what the table holds.
        name: what to call a picture that has no path.
        column: where the cell is from, for errors.
        root: folder that relative paths start from.
        report: told of pictures that are used, but odd.

    Raises:
        BrokenImage: naming the file.
    """
    if isinstance(cell, dict):
        path, data = cell.get("path"), cell.get("bytes")
        if data is not None:
            return read_image(data, f"{path} ({name})" if path else name, report)
        cell = path
    if isinstance(cell, bytes):
        return read_image(cell, name, report)
    if not isinstance(cell, str):
        raise BrokenImage(name, f"column '{column}' holds {type(cell).__name__}, not a picture")
    return read_image(root / cell, report=report)


class PairDataset(Dataset):
    """One item per caption: a picture, one of its captions, the picture's id, and the item's random seed.

    An item is asked for by `(epoch, index)`, as [`PairBatches`] does, or by `index` alone (epoch 0). A picture that
    cannot be read is written to the report, and the next readable pair takes its place: batches keep their size.

    Args:
        table: rows with a picture and one or several captions. Pictures are an `Image` feature, bytes, or paths.
        image_column, caption_column: names of its columns; a caption cell is a text or a list of texts. Without a
            caption column each row is one item with an empty caption: pictures alone.
        image_id_column: cells that are equal mean "the same picture": such pairs are never each other's negatives. By
            default the path is the id where pictures are paths, the row otherwise.
        root: folder that relative paths start from.
        seed: of augmentation and masks.
        report: JSON-lines file for broken pictures; without one they are only printed as warnings.
        name: what errors call the data.

    Attributes:
        other_captions: whether items carry another caption of their picture, too; off at first.

    Raises:
        ValueError: naming the column that is missing, the rows whose caption is empty, or, if none of the first eight
            pictures can be read, why.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        image_column: str = "image",
        caption_column: str | None = "caption",
        image_id_column: str | None = None,
        root: Path | str = ".",
        seed: int = 0,
        report: Path | str | None = None,
        name: str = "data",
    ):
        check_columns(
            name,
            table.column_names,
            image_column=image_column,
            caption_column=caption_column,
            image_id_column=image_id_column,
        )
        if len(table) == 0:
            raise ValueError(f"{name} holds no rows")
        if isinstance(table.features[image_column], datasets.Image):
            table = table.cast_column(image_column, datasets.Image(decode=False))
        self.table, self.name, self.root, self.seed = table, name, Path(root), seed
        self.image_column, self.caption_column = image_column, caption_column
        self.report = BrokenImageReport(report) if report else None
        self.other_captions = False
        self.row_of_pair, self.caption_of_pair = self._index_captions()
        self.image_ids = self._image_ids(image_id_column)
        self._check_first_images()

    def _index_captions(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and position of each caption, after checking that none is empty."""
        if self.caption_column is None:
            return np.arange(len(self.table), dtype=np.int64), np.zeros(len(self.table), dtype=np.int32)
        rows: list[int] = []
        positions: list[int] = []
        empty: list[int] = []
        for row, cell in enumerate(self.table[self.caption_column]):
            captions = list(cell) if isinstance(cell, (list, tuple)) else [cell]
            if not captions or any(not isinstance(text, str) or not text.strip() for text in captions):
                empty.append(row)
            rows.extend([row] * len(captions))
            positions.extend(range(len(captions)))
        if empty:
            shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
            raise ValueError(
                f"{self.name}: column '{self.caption_column}' is empty or no text in {len(empty)} row(s), counted "
                f"from 0: {shown}. Remove or fill them"
            )
        return np.asarray(rows, dtype=np.int64), np.asarray(positions, dtype=np.int32)

    def _image_ids(self, column: str | None) -> np.ndarray:
        """(rows,) non-negative int64: a hash of the id column or of the path, else the row's number."""
        cells = self._paths() if column is None else self.table[column]
        if cells is None:
            return np.arange(len(self.table), dtype=np.int64)
        return np.fromiter((identity(str(cell)) for cell in cells), dtype=np.int64, count=len(self.table))

    def _paths(self) -> list[str] | None:
        """Each row's picture file, or None where the pictures themselves are in the table."""
        feature, first = self.table.features[self.image_column], self.table[0][self.image_column]
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
            return list(self.table[self.image_column])
        if isinstance(first, dict) and first.get("bytes") is None and first.get("path"):
            return [cell["path"] for cell in self.table[self.image_column]]
        return None

    def fingerprint(self) -> str:
        """16 hex digits that stand for the captions and the pictures' file names, all in their order.

        Pictures within the table have no name and do not count; nor do folders, which may be moved."""
        digest = hashlib.blake2b(digest_size=8)
        paths = self._paths()
        for row, cell in enumerate(self.table[self.caption_column]):
            name = None if paths is None else Path(paths[row]).name
            digest.update(json.dumps([name, cell], ensure_ascii=False).encode())
        return digest.hexdigest()

    def keep(self, kept: np.ndarray) -> None:
        """Leave out pairs for good: those that a mask of all pairs, (len(self),) bool, does not keep.

        Raises:
            ValueError: if the mask has another length, or keeps nothing.
        """
        if kept.shape != self.row_of_pair.shape:
            raise ValueError(f"{self.name} has {len(self)} pairs, the mask speaks of {len(kept)}")
        if not kept.any():
            raise ValueError(f"{self.name}: the mask keeps none of the {len(self)} pairs")
        self.row_of_pair, self.caption_of_pair = self.row_of_pair[kept], self.caption_of_pair[kept]

    def first_rows(self) -> np.ndarray:
        """(rows,) int64: for each row the first one that names the same file, or else the row itself."""
        paths = self._paths()
        if paths is None:
            return np.arange(len(self.table), dtype=np.int64)
        first: dict[str, int] = {}
        return np.asarray([first.setdefault(path, row) for row, path in enumerate(paths)], dtype=np.int64)

    def _check_first_images(self, count: int = 8) -> None:
        """A wrong column or folder shows at once: then none of the first pictures can be read."""
        reasons = []
        for row in range(min(count, len(self.table))):
            try:
                self.read_row(row)
                return
            except BrokenImage as broken:
                reasons.append(str(broken))
        raise ValueError(
            f"{self.name}: none of the first {len(reasons)} pictures in column '{self.image_column}' can be read; "
            f"row 0 is {reasons[0]}"
        )

    def __len__(self) -> int:
        return len(self.row_of_pair)

    def read_row(self, row: int) -> Image.Image:
        """The picture of a row, upright and RGB.

        Raises:
            BrokenImage: naming the file, or data set and row for a picture that has no name.
        """
        cell = self.table[row][self.image_column]
        return read_cell(cell, f"{self.name}, row {row}", self.image_column, self.root, self.report)

    def caption(self, index: int) -> str:
        """The caption of pair `index`."""
        if self.caption_column is None:
            return ""
        cell = self.table[int(self.row_of_pair[index])][self.caption_column]
        return cell if isinstance(cell, str) else cell[int(self.caption_of_pair[index])]

    @cached_property
    def _pairs_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs in the order of their pictures' ids, and those ids."""
        ids = self.image_ids[self.row_of_pair]
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    def other_caption(self, index: int, seed: int) -> str | None:
        """Another caption of the image of pair `index`, drawn by the seed; None if it has no other."""
        order, ids = self._pairs_by_image
        image_id = self.image_ids[self.row_of_pair[index]]
        pairs = order[np.searchsorted(ids, image_id) : np.searchsorted(ids, image_id, side="right")]
        others = pairs[pairs != index]
        if len(others) == 0:
            return None
        return self.caption(int(others[generator(seed, SIBLING_STREAM).integers(len(others))]))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """`{"image": PIL, "caption": str, "image_id": int, "seed": int}`, and `"other_caption"` if wanted; the seed is
        a pure function of (seed, epoch, index).

        Raises:
            ValueError: if no picture of the whole data can be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        for candidate in range(index, index + len(self)):
            pair = candidate % len(self)
            row = int(self.row_of_pair[pair])
            try:
                image = self.read_row(row)
            except BrokenImage as broken:
                if self.report:
                    self.report.add(broken.name, broken.reason)
                else:
                    logger.warning("skipped: %s", broken)
                continue
            seed = mix(self.seed, epoch, pair)
            item = {
                "image": image,
                "caption": self.caption(pair),
                "image_id": int(self.image_ids[row]),
                "seed": seed,
            }
            return item | {"other_caption": self.other_caption(pair, seed)} if self.other_captions else item
        raise ValueError(f"{self.name}: no picture can be read")


def image_name(pairs: PairDataset, row: int) -> str:
    """The file of a row's picture as the data names it, or else data set and row."""
    cell = pairs.table[row][pairs.image_column]
    path = cell.get("path") if isinstance(cell, dict) else cell
    return path if isinstance(path, str) else f"{pairs.name}, row {row}"
