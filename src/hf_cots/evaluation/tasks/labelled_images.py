"""Pictures with a label each: a folder of class folders, or any table with a label column."""

from dataclasses import dataclass
from pathlib import Path

import datasets
from PIL import Image

from ...data.sources import PairDataset, load_table


@dataclass(frozen=True)
class LabelledImages:
    """A data set of pictures with labels.

    Attributes:
        pictures: reads the picture of each row; its captions are the labels.
        labels: (rows) the label of each row, as text.
        classes: the distinct labels: in the order of the `ClassLabel` feature where there is one, else sorted.
        columns: the cells of further columns that were asked for, as text.
        label_column: the labels' own column.
    """

    pictures: PairDataset
    labels: list[str]
    classes: list[str]
    columns: dict[str, list[str]]
    label_column: str

    @property
    def name(self) -> str:
        return self.pictures.name


def load_labelled_images(
    data: str,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "test",
    columns: tuple[str, ...] = (),
) -> LabelledImages:
    """Open pictures with labels without decoding them.

    Args:
        data: a folder of class folders, whose names are the labels; or whatever
            [`hf_cots.data.sources.load_table`] takes.
        image_column: of the pictures or their paths.
        label_column: of texts, of numbers, or of a `ClassLabel` feature.
        split: of a Hub data set.
        columns: further columns to keep.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if a column is missing, a row has no label, a class folder is empty, or no picture can be read.
    """
    folder = Path(data)
    of_class_folders = folder.is_dir() and _is_folder_of_classes(folder)
    table = _class_folders(folder) if of_class_folders else load_table(data, split)
    for flag, column in (("label-column", label_column), *(("across", column) for column in columns)):
        if column not in table.column_names:
            raise ValueError(
                f"{data} has no column '{column}'; it has {', '.join(table.column_names)}. Name one with --{flag}"
            )
    labels, classes = _labels(table, label_column, data)
    kept = {column: [str(cell) for cell in table[column]] for column in columns}
    table = table.select_columns([image_column]) if image_column in table.column_names else table
    table = table.add_column("label as text", labels)
    root = folder if folder.is_dir() else folder.parent
    pictures = PairDataset(table, image_column, "label as text", root=root, name=data)
    return LabelledImages(pictures, labels, classes, kept, label_column)


def _is_folder_of_classes(folder: Path) -> bool:
    """Folders and no file at its top that describes or holds a data set."""
    return any(path.is_dir() for path in folder.iterdir()) and not any(
        path.suffix in (".parquet", ".tar") or path.stem == "metadata" for path in folder.iterdir() if path.is_file()
    )


def _class_folders(folder: Path) -> datasets.Dataset:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths, labels = [], []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        pictures = sorted(path for path in class_folder.iterdir() if path.suffix.lower() in suffixes)
        if not pictures:
            raise ValueError(
                f"{class_folder} holds no picture. In a folder of class folders each must hold some; if this is a "
                f"split, name it as the data"
            )
        paths += [str(path.relative_to(folder)) for path in pictures]
        labels += [class_folder.name] * len(pictures)
    return datasets.Dataset.from_dict({"image": paths, "label": labels})


def _labels(table: datasets.Dataset, column: str, data: str) -> tuple[list[str], list[str]]:
    """The label of each row and the classes."""
    feature, cells = table.features[column], list(table[column])
    if isinstance(feature, datasets.ClassLabel):
        cells = [None if cell is None or cell < 0 else feature.names[cell] for cell in cells]
    without = [row for row, cell in enumerate(cells) if cell is None or not str(cell).strip()]
    if without:
        raise ValueError(
            f"{data}: column '{column}' is empty in {len(without)} row(s), the first is row {without[0]} (from 0)"
        )
    odd = next((row for row, cell in enumerate(cells) if not isinstance(cell, (str, int))), None)
    if odd is not None:
        raise ValueError(
            f"{data}: column '{column}' holds {type(cells[odd]).__name__} in row {odd}, not a text or a whole number"
        )
    if isinstance(feature, datasets.ClassLabel):
        return cells, list(feature.names)
    return [str(cell) for cell in cells], [str(cell) for cell in sorted(set(cells))]
