"""Images with a label each: a folder of class folders, or any table with a label column."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ...data.images import BrokenImage
from ...data.sources import PairDataset, check_columns, load_table
from ..retrieval.report import data_fingerprint


@dataclass(frozen=True)
class LabelledImages:
    """A data set of images with labels.

    Attributes:
        images: reads the image of each row; its captions are the labels.
        labels: (rows) the label of each row, as text.
        classes: the distinct labels: in the order of the `ClassLabel` feature where there is one, else sorted.
        columns: the cells of further columns that were asked for, as text.
        label_column: name of the labels' own column.
    """

    images: PairDataset
    labels: list[str]
    classes: list[str]
    columns: dict[str, list[str]]
    label_column: str

    @property
    def name(self) -> str:
        return self.images.name

    def describe(self, broken: Sequence[BrokenImage]) -> dict[str, Any]:
        """Name, fingerprint, sizes and unreadable images, for a report."""
        return {
            "name": self.name,
            "fingerprint": data_fingerprint(self.images),
            "rows": len(self.labels),
            "classes": len(self.classes),
            "image_column": self.images.image_column,
            "label_column": self.label_column,
            "left_out": [str(image) for image in broken],
        }


def load_labelled_images(
    data: str,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "test",
    columns: tuple[str, ...] = (),
) -> LabelledImages:
    """Open images with labels without decoding them.

    Args:
        data: a folder of class folders, whose names are the labels; or whatever
            [`hf_cots.data.sources.load_table`] takes.
        image_column: of the images or their paths.
        label_column: of texts, of numbers, or of a `ClassLabel` feature.
        split: of a Hub data set.
        columns: further columns to keep.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if a column is missing, a row has no label, a class folder is empty, or no image can be read.
    """
    folder = Path(data)
    has_class_folders = folder.is_dir() and _has_class_folders(folder)
    table = _load_class_folders(folder) if has_class_folders else load_table(data, split)
    check_columns(data, table.column_names, label_column=label_column)
    for column in columns:
        check_columns(data, table.column_names, across=column)
    labels, classes = _read_labels(table, label_column, data)
    kept = {column: [str(cell) for cell in table[column]] for column in columns}
    table = table.select_columns([image_column]) if image_column in table.column_names else table
    table = table.add_column("label as text", labels)
    root = folder if folder.is_dir() else folder.parent
    images = PairDataset(table, image_column, "label as text", root=root, name=data)
    return LabelledImages(images, labels, classes, kept, label_column)


def _has_class_folders(folder: Path) -> bool:
    """Whether there are folders, and no file at the top that describes or holds a data set."""
    return any(path.is_dir() for path in folder.iterdir()) and not any(
        path.suffix in (".parquet", ".tar") or path.stem == "metadata" for path in folder.iterdir() if path.is_file()
    )


def _load_class_folders(folder: Path) -> datasets.Dataset:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths, labels = [], []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = sorted(path for path in class_folder.iterdir() if path.suffix.lower() in suffixes)
        if not images:
            raise ValueError(
                f"{class_folder} holds no image. In a folder of class folders each must hold some; if this is a "
                f"split, name it as the data"
            )
        paths += [str(path.relative_to(folder)) for path in images]
        labels += [class_folder.name] * len(images)
    return datasets.Dataset.from_dict({"image": paths, "label": labels})


def _read_labels(table: datasets.Dataset, column: str, data: str) -> tuple[list[str], list[str]]:
    """The label of each row and the classes."""
    feature, cells = table.features[column], list(table[column])
    if isinstance(feature, datasets.ClassLabel):
        cells = [None if cell is None or cell < 0 else feature.names[cell] for cell in cells]
    empty = [row for row, cell in enumerate(cells) if cell is None or not str(cell).strip()]
    if empty:
        raise ValueError(
            f"{data}: column '{column}' is empty in {len(empty)} row(s), the first is row {empty[0]} (from 0)"
        )
    odd = next((row for row, cell in enumerate(cells) if not isinstance(cell, (str, int))), None)
    if odd is not None:
        raise ValueError(
            f"{data}: column '{column}' holds {type(cells[odd]).__name__} in row {odd}, not a text or a whole number"
        )
    if isinstance(feature, datasets.ClassLabel):
        return cells, list(feature.names)
    return [str(cell) for cell in cells], [str(cell) for cell in sorted(set(cells))]
