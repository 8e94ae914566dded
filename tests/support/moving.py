"""Small animated WebP files, made as they are needed."""

import io
import json
from pathlib import Path

from PIL import Image


SIDE = 24


def frame(color: str, at: int = 0) -> Image.Image:
    """A square of a color on white, `at` pixels from the left."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.paste(Image.new("RGB", (10, 10), color), (at % (SIDE - 10), 7))
    return image


def animation(frames: list[Image.Image], duration: int = 100) -> bytes:
    """A lossless animated WebP; of one frame a still one."""
    buffer = io.BytesIO()
    first, *others = frames
    first.save(buffer, "webp", lossless=True, save_all=bool(others), append_images=others, duration=duration)
    return buffer.getvalue()


def moving(color: str, frames: int = 6, step: int = 2) -> bytes:
    """A square that moves to the right."""
    return animation([frame(color, step * i) for i in range(frames)])


COLORS = ("red", "blue", "green", "orange", "purple", "black", "brown", "gray", "pink", "cyan", "gold", "navy")


def write_clip_folder(folder: Path, count: int = 6, broken: int = 0) -> Path:
    """A folder of clips with `metadata.jsonl`; the last `broken` files are no clips."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        name = f"clip-{i:02}.webp"
        data = b"RIFF0000WEBP, or not" if i >= count - broken else moving(COLORS[i % len(COLORS)], 4 + i % 3)
        (folder / name).write_bytes(data)
        lines.append(json.dumps({"file_name": name, "text": f"a {COLORS[i % len(COLORS)]} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
