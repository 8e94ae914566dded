"""Image-text pairs from a Hub id, a folder, parquet, CSV or JSON lines with paths, or webdataset tars.

All of them become a [`PairDataset`], in which images stay encoded until a worker needs them. With clips instead of
images, items contain a few frames of each clip.
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..models.masking import RandomStream, generator, mix
from ..models.video_frames import VideoFrames
from .clips import read_clip
from .hashes import hex_digest, stable_id
from .images import BrokenImage, BrokenImageReport, read_image, skip_image
from .loading import not_decoded, read_source, to_text
from .resolve import resolve


logger = logging.getLogger(__name__)

AUTO = "auto"  # the caption column is the one of these names that is there
CAPTION_COLUMNS = ("caption", "captions", "text", "txt")
NUM_FRAMES = 8  # of a clip, as in COTS


def load_pairs(
    data: str | Path,
    image_column: str = "image",
    caption_column: str | None = AUTO,
    image_id_column: str | None = None,
    split: str = "train",
    seed: int = 0,
    report: Path | str | None = None,
    separator: str | None = None,
    video_column: str | None = None,
    num_frames: int = NUM_FRAMES,
    frame_jitter: bool = False,
) -> "PairDataset":
    """Load image-text pairs from a Hub id, folder or files; see [`hf_cots.data.loading.load_table`] for `data`,
    `split` and `separator`, and [`PairDataset`] for the other arguments.

    Args:
        video_column: name of the column of clips, to use clips instead of images; for a folder of clips, "video".
        num_frames, frame_jitter: for clips; ignored for images.

    Raises:
        FileNotFoundError, ValueError: as [`load_table`] and [`PairDataset`], or if both an image column and a clip
            column are given.

    Example:
        >>> Path("shapes").mkdir()
        >>> Image.new("RGB", (8, 8), "red").save("shapes/a.png")
        >>> row = {"file_name": "a.png", "text": ["a red square", "something red"]}
        >>> _ = Path("shapes/metadata.jsonl").write_text(json.dumps(row))
        >>> pairs = load_pairs("shapes")
        >>> len(pairs), pairs[1]["caption"], pairs[1]["image"].size
        (2, 'something red', (8, 8))
    """
    columns = (choose_column(image_column, video_column), caption_column, image_id_column)
    frames: dict[str, Any] = {} if video_column is None else {"num_frames": num_frames, "frame_jitter": frame_jitter}
    source = resolve(data, split, clips=video_column is not None)
    table = read_source(source, split, False, list_wanted(*columns), separator)
    try:
        return PairDataset(table, *columns, source.root, seed, report, source.name, **frames)
    except MissingColumnError as error:
        raise MissingColumnError(f"{error}{source.hint}") from None


def choose_column(image_column: str, video_column: str | None) -> str:
    """Choose the column that captions describe: the clip column if given, else the image column.

    Raises:
        ValueError: if both are given.
    """
    if video_column is not None and image_column not in ("image", video_column):
        raise ValueError(f"give either an image column or a clip column, not both: '{image_column}', '{video_column}'")
    return image_column if video_column is None else video_column


def list_wanted(image_column: str, caption_column: str | None, image_id_column: str | None = None) -> list[str]:
    """The columns that may be asked of a table, for [`read_source`]."""
    captions = CAPTION_COLUMNS if caption_column == AUTO else (caption_column,)
    return [column for column in (image_column, *captions, image_id_column) if column]


def is_blank(cell: Any) -> bool:
    """Whether a cell is no text, or one of nothing but white space: no caption."""
    return not isinstance(cell, str) or not cell.strip()


class MissingColumnError(ValueError):
    """A requested column is missing from the data; the message lists the existing columns."""


def check_columns(name: str, present: list[str], **wanted: str | None) -> None:
    """Check that every requested column, given by the name of its flag, exists.

    Raises:
        ValueError: naming the missing column.
    """
    for flag, column in wanted.items():
        if column is not None and column not in present:
            option = flag.replace("_", "-")
            raise MissingColumnError(
                f"{name} has no column '{column}'; it has {', '.join(present)}. Choose one with --{option}"
            )


def find_caption_column(name: str, present: list[str]) -> str:
    """Find the one column whose name is in [`CAPTION_COLUMNS`].

    Raises:
        ValueError: if there is none, or several.
    """
    found = [column for column in CAPTION_COLUMNS if column in present]
    if not found:
        others, columns = ", ".join(CAPTION_COLUMNS[1:]), ", ".join(present)
        raise MissingColumnError(
            f"{name} has no column 'caption', {others}; it has {columns}. Choose one with --caption-column"
        )
    if len(found) > 1:
        raise MissingColumnError(
            f"{name} has several caption columns: {', '.join(found)}. Choose one with --caption-column"
        )
    logger.info("%s: reading captions from column '%s'", name, found[0])
    return found[0]


class PairSource:
    """Base of [`PairDataset`] and [`PairStream`]: a table, the names of its columns, and how images are read."""

    def __init__(
        self,
        table: datasets.Dataset | datasets.IterableDataset,
        columns: list[str],
        image_column: str,
        caption_column: str | None,
        image_id_column: str | None,
        root: Path | str,
        seed: int,
        report: Path | str | None,
        name: str,
        num_frames: int | None = None,
        frame_jitter: bool = False,
    ):
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        column = "image_column" if num_frames is None else "video_column"
        check_columns(name, columns, **{column: image_column, "image_id_column": image_id_column})
        if caption_column == AUTO and AUTO not in columns:
            caption_column = find_caption_column(name, columns)
        check_columns(name, columns, caption_column=caption_column)
        if table.features:
            table = not_decoded(table, image_column)
        self.num_frames, self.frame_jitter = num_frames, frame_jitter
        self.table, self.name, self.root, self.seed = table, name, Path(root), seed
        self.image_column, self.caption_column, self.image_id_column = image_column, caption_column, image_id_column
        self.report = BrokenImageReport(report) if report else None

    @property
    def medium(self) -> str:
        """What captions describe, in words."""
        return "image" if self.num_frames is None else "clip"

    def read_cell(self, cell: Any, name: str, seed: int | None = None) -> Image.Image | VideoFrames:
        """Read the image of a cell (an `Image` feature that is not decoded, bytes, or a path), upright and RGB; or the
        frames of a clip.

        Args:
            cell: what the table holds.
            name: what to call an image that has no path.
            seed: of the item, for frames at random times; without it they are uniform.

        Raises:
            BrokenImage: naming the file.
        """
        if isinstance(cell, dict):
            path, data = cell.get("path"), cell.get("bytes")
            if data is not None:
                return self._read(data, f"{path} ({name})" if path else name, seed)
            cell = path
        if cell is None or cell == "":
            raise BrokenImage(name, f"column '{self.image_column}' is empty")
        if isinstance(cell, bytes):
            return self._read(cell, name, seed)
        if not isinstance(cell, str):
            article = "an image" if self.num_frames is None else "a clip"
            raise BrokenImage(name, f"column '{self.image_column}' contains {type(cell).__name__}, not {article}")
        return self._read(self.root / cell, None, seed)

    def _read(self, source: Path | bytes, name: str | None, seed: int | None) -> Image.Image | VideoFrames:
        if self.num_frames is None:
            return read_image(source, name, self.report)
        times = None
        if self.frame_jitter and seed is not None:
            duration = read_clip(source, 1, [0.0], name).duration
            times = draw_times(duration, self.num_frames, seed)
        return read_clip(source, self.num_frames, times, name, self.report)

    def make_item(self, media: Image.Image | VideoFrames, caption: str, image_id: int, seed: int) -> dict[str, Any]:
        """`{"image": PIL, "caption": str, "image_id": int, "seed": int}`, of a clip with its frames as `"video"` in
        place of `"image"`."""
        key = "image" if self.num_frames is None else "video"
        return {key: media, "caption": caption, "image_id": image_id, "seed": seed}


def draw_times(duration: float, num_frames: int, seed: int) -> list[float]:
    """A random time in each of `num_frames` equal segments of a clip, as TSN trains (Wang et al. 2016): a pure
    function of the item's seed."""
    within = generator(seed, RandomStream.FRAME_TIMES).random(num_frames)
    return [min((i + part) * duration / num_frames, duration) for i, part in enumerate(within.tolist())]


class PairDataset(PairSource):
    """A data set with one item per caption: an image, one of its captions, the image's id, and the item's random seed.

    Items are indexed by `(epoch, index)`, as [`PairBatches`] does, or by `index` alone (epoch 0). An image that cannot
    be read is added to the report and replaced by the next readable pair, so that batches keep their size.

    Args:
        table: rows with an image and one or more captions. Images are an `Image` feature, bytes, or paths.
        image_column: name of the column of images.
        caption_column: name of the column of captions; a cell is a text or a list of texts. Defaults to the only
            column named caption, captions, text or txt. If None, each row is one item with an empty caption (images
            only).
        image_id_column: name of a column of image ids. Rows with equal ids show the same image, and are never each
            other's negatives. By default the path is the id if images are paths, else the row.
        root: folder that relative paths start from.
        seed: seed of augmentation and masks.
        report: JSON-lines file for broken images; without it they are only logged as warnings.
        name: name of the data in errors.
        num_frames: if given, the column contains clips (video files or animated images, as paths or bytes), and items
            have this many frames of a clip ([`VideoFrames`]) as `"video"` instead of an `"image"`. Everything said
            about images applies to clips.
        frame_jitter: sample each frame at a random time of its segment, not in the middle.

    Attributes:
        pair_rows: (len(self),) int64, the row of each pair.
        image_ids: (rows,) non-negative int64, the image id of each row.
        dropped: number of pairs that [`keep`] has dropped, by reason.
        other_captions: whether items also contain another caption of their image; False by default.

    Raises:
        ValueError: if a column is missing, several columns could contain the captions, a caption is empty, or none of
            the first eight images can be read.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        image_column: str = "image",
        caption_column: str | None = AUTO,
        image_id_column: str | None = None,
        root: Path | str = ".",
        seed: int = 0,
        report: Path | str | None = None,
        name: str = "data",
        num_frames: int | None = None,
        frame_jitter: bool = False,
    ):
        columns = (image_column, caption_column, image_id_column)
        frames = (num_frames, frame_jitter)
        super().__init__(table, table.column_names, *columns, root, seed, report, name, *frames)
        if len(table) == 0:
            raise ValueError(f"{name} has no rows")
        self.other_captions = False
        self.dropped: dict[str, int] = {}
        self.pair_rows, self.caption_positions = self._index_captions()
        self.image_ids = self._make_image_ids()
        self._check_first_images()

    def _index_captions(self) -> tuple[np.ndarray, np.ndarray]:
        """The row of each caption and its position in the row's cell, after checking that none is empty."""
        if self.caption_column is None:
            return np.arange(len(self.table), dtype=np.int64), np.zeros(len(self.table), dtype=np.int32)
        rows: list[int] = []
        positions: list[int] = []
        empty: list[int] = []
        for row, cell in enumerate(self.table[self.caption_column]):
            captions = list(cell) if isinstance(cell, (list, tuple)) else [cell]
            if not captions or any(map(is_blank, captions)):
                empty.append(row)
            rows.extend([row] * len(captions))
            positions.extend(range(len(captions)))
        if empty:
            shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
            raise ValueError(
                f"{self.name}: column '{self.caption_column}' is empty or not a text in {len(empty)} row(s): {shown} "
                "(counted from 0). Remove or fill them"
            )
        return np.asarray(rows, dtype=np.int64), np.asarray(positions, dtype=np.int32)

    def _make_image_ids(self) -> np.ndarray:
        """(rows,) non-negative int64: a hash of the id or, where there is none, of the path; else the row's index."""
        paths: Sequence[str | None] = self.image_paths() or [None] * len(self.table)
        cells = paths if self.image_id_column is None else map(to_text, self.table[self.image_id_column])
        names = (cell or path for cell, path in zip(cells, paths))
        ids = (stable_id(name) if name else index for index, name in enumerate(names))
        return np.fromiter(ids, dtype=np.int64, count=len(self.table))

    def image_paths(self) -> list[str | None] | None:
        """Each row's image file (None for an empty cell), or None where the images themselves are in the table."""
        feature, first = self.table.features[self.image_column], self.table[0][self.image_column]
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
            return list(self.table[self.image_column])
        if isinstance(first, dict) and first.get("bytes") is None and first.get("path"):
            return [(cell or {}).get("path") for cell in self.table[self.image_column]]
        return None

    def fingerprint(self) -> str:
        """16 hexadecimal digits: blake2b over the captions and the images' file names, all in their order.

        Images within the table have no name and do not count; nor do folders, which may be moved."""
        paths = self.image_paths()
        names = [None] * len(self.table) if paths is None else [Path(path or "").name for path in paths]
        rows = zip(names, self.table[self.caption_column])
        return hex_digest((json.dumps(row, ensure_ascii=False).encode() for row in rows), digest_size=8)

    def keep(self, kept: np.ndarray, reason: str = "mask") -> None:
        """Drop the pairs that are False in a mask of all pairs, (len(self),) bool.

        Raises:
            ValueError: if the mask has another length, or keeps nothing.
        """
        if kept.shape != self.pair_rows.shape:
            raise ValueError(f"{self.name} has {len(self)} pairs, but the mask has {len(kept)} entries")
        if not kept.any():
            raise ValueError(f"{self.name}: the mask drops all {len(self)} pairs")
        self.dropped[reason] = self.dropped.get(reason, 0) + int((~kept).sum())
        self.pair_rows, self.caption_positions = self.pair_rows[kept], self.caption_positions[kept]

    def first_rows(self) -> np.ndarray:
        """(rows,) int64: for each row the first one that names the same file, or else the row itself."""
        paths = self.image_paths()
        if paths is None:
            return np.arange(len(self.table), dtype=np.int64)
        first: dict[str, int] = {}
        rows = (first.setdefault(path, row) if path else row for row, path in enumerate(paths))
        return np.fromiter(rows, dtype=np.int64, count=len(paths))

    def _check_first_images(self, count: int = 8) -> None:
        """Fail at once if the column or folder is wrong: then none of the first images can be read."""
        reasons = []
        for row in range(min(count, len(self.table))):
            try:
                self.read_row(row)
                return
            except BrokenImage as broken:
                reasons.append(str(broken))
        raise ValueError(
            f"{self.name}: none of the first {len(reasons)} {self.medium}s in column '{self.image_column}' can be "
            f"read; row 0 is {reasons[0]}"
        )

    def __len__(self) -> int:
        return len(self.pair_rows)

    def read_row(self, row: int, seed: int | None = None) -> Any:
        """Read the image of a row, upright and RGB; or the frames of its clip.

        Args:
            seed: of an item, for frames at random times.

        Raises:
            BrokenImage: naming the file, or data set and row for an image that has no name.
        """
        return self.read_cell(self.table[row][self.image_column], f"{self.name}, row {row}", seed)

    def image_name(self, row: int) -> str:
        """The file of a row's image as the data names it, or else data set and row."""
        cell = self.table[row][self.image_column]
        path = cell.get("path") if isinstance(cell, dict) else cell
        return path if isinstance(path, str) else f"{self.name}, row {row}"

    def caption(self, index: int) -> str:
        """Get the caption of pair `index`."""
        if self.caption_column is None:
            return ""
        cell = self.table[int(self.pair_rows[index])][self.caption_column]
        return cell if isinstance(cell, str) else cell[int(self.caption_positions[index])]

    def captions(self, index: np.ndarray) -> list[str]:
        """Get the captions of many pairs, which is faster than one by one."""
        if self.caption_column is None:
            return [""] * len(index)
        rows, inverse = np.unique(self.pair_rows[index], return_inverse=True)
        table = self.table.select_columns([self.caption_column])
        cells = table[self.caption_column] if len(rows) == len(table) else table.select(rows)[self.caption_column]
        cells, positions = list(cells), self.caption_positions[index].tolist()
        found = ((cells[i], position) for i, position in zip(inverse.tolist(), positions))
        return [cell if isinstance(cell, str) else cell[position] for cell, position in found]

    @cached_property
    def _pairs_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs in the order of their images' ids, and those ids."""
        ids = self.image_ids[self.pair_rows]
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    def other_caption(self, index: int, seed: int) -> str | None:
        """Draw another caption of the image of pair `index`, using the seed; None if it has no other."""
        order, ids = self._pairs_by_image
        image_id = self.image_ids[self.pair_rows[index]]
        pairs = order[np.searchsorted(ids, image_id) : np.searchsorted(ids, image_id, side="right")]
        others = pairs[pairs != index]
        if len(others) == 0:
            return None
        return self.caption(int(others[generator(seed, RandomStream.OTHER_CAPTION).integers(len(others))]))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Get an item as [`make_item`] returns it, with `"other_caption"` if enabled. Its seed is a pure function of
        (seed, epoch, index).

        Raises:
            IndexError: if the index is out of range.
            ValueError: if no image of the data can be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: {self.name} has {len(self)} pairs")
        for candidate in range(index, index + len(self)):
            pair = candidate % len(self)
            row, seed = int(self.pair_rows[pair]), mix(self.seed, epoch, pair)
            try:
                media = self.read_row(row, seed) if self.frame_jitter else self.read_row(row)
            except BrokenImage as broken:
                skip_image(broken, self.report)
                continue
            item = self.make_item(media, self.caption(pair), int(self.image_ids[row]), seed)
            return item | {"other_caption": self.other_caption(pair, seed)} if self.other_captions else item
        raise ValueError(f"{self.name}: none of its {self.medium}s can be read")
