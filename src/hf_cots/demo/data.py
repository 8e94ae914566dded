"""The demo's images: the emoji sets, the galleries of unseen concepts, and a folder of images to search."""

import json
import logging
import re
import shutil
from pathlib import Path

from ..data.loading import load_table
from ..data.sets.emoji import write_emoji_set
from ..data.sets.emoji_styles import PYTHON_STYLES, TRAIN_STYLES, write_emoji_styles
from ..data.sets.packages import EMOJIBASE, ICONIFY, fetch_package
from ..data.sources import PairDataset
from .recipe import NEW_STYLE, TEST_STYLE


logger = logging.getLogger(__name__)


def write_data(folder: Path, from_scratch: bool = False) -> dict[str, int]:
    """Write the emoji set into `folder/data`: in all drawing styles as parquet, or in two as image folders.

    If the npm packages are neither present nor reachable, the parquet files have only the two styles.

    Args:
        folder: the demo's folder.
        from_scratch: write two styles, as image folders.

    Returns:
        The number of pairs in each part.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
    """
    if from_scratch:
        return write_emoji_set(folder / "data", seed=0)
    try:
        iconify, emojibase = fetch_package(ICONIFY), fetch_package(EMOJIBASE)
    except FileNotFoundError as error:
        logger.warning("emoji in two drawing styles only, the others are not there: %s", error)
        return write_emoji_styles(folder / "data", styles=PYTHON_STYLES, seed=0)
    return write_emoji_styles(folder / "data", iconify, emojibase, (*TRAIN_STYLES, NEW_STYLE), seed=0)


def load_gallery(folder: Path) -> PairDataset:
    """Load the held-out concepts of the image folders in `folder/data` in one style, with one image per name."""
    held_out = load_table(str(folder / "data" / "test"))
    own_style = held_out.filter(lambda row: row["style"] == TEST_STYLE)
    return PairDataset(own_style, "image", "text", "text", name="unseen concepts")


def load_galleries(folder: Path, from_scratch: bool = False) -> dict[str, PairDataset]:
    """Load the held-out concepts by drawing style: those of [`load_gallery`], and those of a style that is never
    trained on, if the set has it.

    Args:
        folder, from_scratch: as for [`write_data`].
    """
    if from_scratch:
        return {TEST_STYLE: load_gallery(folder)}
    galleries = {}
    counts = json.loads((folder / "data" / "report.json").read_text(encoding="utf-8"))["pairs"]
    for side, style, name in (
        ("test", TEST_STYLE, "unseen concepts"),
        ("test_new_styles", NEW_STYLE, "unseen concepts in an unseen style"),
    ):
        if counts[side]:
            table = load_table(str(folder / "data" / f"{side}.parquet"))
            columns = zip(table["style"], table["seen_concept"])
            rows = [row for row, (own, seen) in enumerate(columns) if own == style and not seen]
            galleries[style] = PairDataset(table.select(rows), "image", "text", "text", name=name)
    return galleries


def write_images(galleries: dict[str, PairDataset], folder: Path) -> int:
    """Write the galleries to one folder of PNG files named by caption and style, such as `alarm-clock.twemoji.png`,
    with a `metadata.jsonl`; returns the number of images.

    Args:
        galleries: as returned by [`load_galleries`].
        folder: the folder; files of an earlier run are removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines: list[dict[str, str]] = []
    for style, pairs in galleries.items():
        for index in range(len(pairs)):
            item = pairs[index]
            stem = re.sub(r"[^\w()&.]+", "-", item["caption"]).strip("-")
            file_name, number = f"{stem}.{style}.png", 1
            while any(line["file_name"] == file_name for line in lines):  # a second drawing
                number += 1
                file_name = f"{stem}-{number}.{style}.png"
            item["image"].save(folder / file_name)
            lines.append({"file_name": file_name, "text": item["caption"], "style": style})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return len(lines)
