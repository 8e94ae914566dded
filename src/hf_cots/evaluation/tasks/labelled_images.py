"""Images with a label each: a folder of class folders, or any table with a label column."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ...data.fingerprint import data_fingerprint
from ...data.folders import is_metadata, read_class_folders
from ...data.images import BrokenImage
from ...data.loading import read_source, to_text
from ...data.resolve import Source, resolve
from ...data.sources import MissingColumnError, PairDataset, check_columns


@dataclass(frozen=True)
class LabelledImages:
    """A data set of images with labels.

    Attributes:
        images: reads the image of each row; its captions are the labels.
        labels: (rows) the label of each row, as text.
        classes: the distinct labels, in the order of the `ClassLabel` feature if there is one, else sorted.
        columns: the cells of further requested columns, as text.
        label_column: name of the column of labels.
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
        """Describe name, fingerprint, sizes and unreadable images for a report."""
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
    separator: str | None = None,
) -> LabelledImages:
    """Open images with labels without decoding them.

    Args:
        data: a folder of class folders, whose names are the labels; or any source of
            [`hf_cots.data.loading.load_table`].
        image_column: column of images or their paths.
        label_column: column of texts, whole numbers, or a `ClassLabel` feature.
        split, separator: as for `load_table`.
        columns: further columns to keep.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if a column is missing, a row has no label, a class folder is empty, or no image can be read.
    """
    source = resolve(data, split)
    wanted = (image_column, label_column, *columns)
    table = _read_class_folders(source)
    if table is None:
        table = read_source(source, split, False, wanted, separator)
    try:
        check_columns(data, table.column_names, label_column=label_column)
        for column in columns:
            check_columns(data, table.column_names, across=column)
    except MissingColumnError as error:
        raise MissingColumnError(f"{error}{source.hint}") from None
    labels, classes = _read_labels(table, label_column, data)
    kept = {column: _read_cells(table, column, data) for column in columns}
    table = table.select_columns([image_column]) if image_column in table.column_names else table
    table = table.add_column("label as text", labels)
    images = PairDataset(table, image_column, "label as text", root=source.root, name=data)
    return LabelledImages(images, labels, classes, kept, label_column)


def _read_class_folders(source: Source) -> datasets.Dataset | None:
    """Read the images of class folders and their labels; None if the data are something else."""
    if source.kind != "images" or any(map(is_metadata, source.files)):
        return None
    if all(path.parent == source.root for path in source.files):
        return None
    return datasets.Dataset.from_list(read_class_folders(source.root, source.files))


def _read_cells(table: datasets.Dataset, column: str, data: str) -> list[str]:
    """Read the cells of a column as text; none may be empty."""
    cells = [to_text(cell) for cell in table[column]]
    _check_filled(cells, column, data)
    return cells  # type: ignore[return-value]  # none is None


def _check_filled(cells: Sequence[Any], column: str, data: str) -> None:
    empty = [row for row, cell in enumerate(cells) if cell is None or not str(cell).strip()]
    if empty:
        raise ValueError(
            f"{data}: column '{column}' is empty in {len(empty)} row(s), the first is row {empty[0]} (counted from 0)"
        )


def _read_labels(table: datasets.Dataset, column: str, data: str) -> tuple[list[str], list[str]]:
    """Read the label of each row and the classes."""
    feature, cells = table.features[column], list(table[column])
    if isinstance(feature, datasets.ClassLabel):
        cells = [None if cell is None or cell < 0 else feature.names[cell] for cell in cells]
    _check_filled(cells, column, data)
    odd = next((row for row, cell in enumerate(cells) if not isinstance(cell, (str, int))), None)
    if odd is not None:
        raise ValueError(
            f"{data}: column '{column}' contains {type(cells[odd]).__name__} in row {odd}, not a text or a whole "
            "number"
        )
    if isinstance(feature, datasets.ClassLabel):
        return cells, list(feature.names)
    labels = [str(cell) for cell in cells]
    numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    return labels, sorted(set(labels), key=(lambda label: (int(label), label)) if numbers else None)
