"""Helpers of the data sets: images from PNG and SVG files, and folders in the format of `imagefolder`."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image


def rasterize(path: Path, size: int) -> Image.Image:
    """Render a PNG or SVG file as a `size` x `size` RGB image on white."""
    if path.suffix == ".svg":
        import resvg_py

        # Without an explicit dpi, half of the files fail with "invalid size".
        data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, dpi=96))
    else:
        data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def read_counts(report: Path, settings: dict[str, Any]) -> dict[str, int] | None:
    """Read the numbers of pairs of a complete set that was written with the same settings; None if there is none."""
    written = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
    return written["pairs"] if written and written["settings"] == settings else None


def write_image_folder(folder: Path, pairs: list[tuple[Any, Image.Image]]) -> int:
    """Write images and `metadata.jsonl`, with one line per row; returns the number of rows.

    Args:
        folder: a folder that does not exist yet.
        pairs: rows (dataclasses with a `file_name`) with their images.
    """
    folder.mkdir(parents=True)
    for row, image in pairs:
        image.save(folder / row.file_name)
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row, _ in pairs]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(pairs)
