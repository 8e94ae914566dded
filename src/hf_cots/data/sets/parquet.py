"""Parquet files of the data sets, with images embedded as PNG, as `datasets` and the Hub's viewer expect."""

import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


ROWS_IN_GROUP = 1000  # few enough for a viewer to read a group, enough to compress well
STRING, BOOL = datasets.Value("string"), datasets.Value("bool")
STRINGS = datasets.List(STRING)


def finished_report(report_file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Read the report of a set that is complete with these settings; None if there is none. A report of other settings
    is deleted, so that an interrupted rebuild leaves no report."""
    report = json.loads(report_file.read_text(encoding="utf-8")) if report_file.is_file() else {}
    if report.get("settings") == settings:
        return report
    report_file.unlink(missing_ok=True)
    return None


def encode_png(image: Image.Image) -> bytes:
    """Encode an RGB image as PNG, with a single channel if it is gray."""
    pixels = np.asarray(image)
    gray = pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all()
    buffer = io.BytesIO()
    (image.getchannel(0) if gray else image).save(buffer, "png")
    return buffer.getvalue()


def decode_png(data: bytes) -> Image.Image:
    """Decode a PNG to an RGB image."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def write_parquet(
    path: Path, rows: Sequence[dict[str, Any]], features: dict[str, Any], rows_in_group: int = ROWS_IN_GROUP
) -> int:
    """Write rows to a temporary file and rename it when complete; returns the number of rows.

    Args:
        path: path of the file.
        rows: rows with a value for each feature; an image is `{"bytes": ..., "path": file name}`.
        features: features of `datasets` by column.
        rows_in_group: number of rows that are compressed and read together.
    """
    with ParquetFile(path, features) as file:
        for first in range(0, len(rows), rows_in_group):
            file.write(rows[first : first + rows_in_group])
    return len(rows)


class ParquetFile:
    """A parquet file that is written group by group and renamed into place when it is complete."""

    def __init__(self, path: Path, features: dict[str, Any]):
        self.path = path
        self.draft = path.with_name(f".{path.name}.{os.getpid()}")
        self.schema = datasets.Features(features).arrow_schema
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer = pq.ParquetWriter(self.draft, self.schema, compression="zstd")

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write one group of rows."""
        self.writer.write_table(pa.Table.from_pylist(list(rows), schema=self.schema))

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, error_type: object, *error: object) -> None:
        self.writer.close()
        if error_type is None:
            os.replace(self.draft, self.path)
        else:
            self.draft.unlink(missing_ok=True)
