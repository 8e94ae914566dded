"""Emoji in up to eleven drawing styles, split by the same concepts as the two-style set of [`emoji`].

Twemoji and OpenMoji come from Python packages, the other styles from the npm package `@iconify/json`, and keywords
from `emojibase-data`. The three `fluent-emoji` styles are for testing only: they measure how a model generalizes to
unseen styles, for seen and for unseen concepts.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from tqdm.auto import tqdm

from ..hashes import is_in_fraction
from .emoji import (
    FULLY_QUALIFIED,
    EmojiPair,
    drop_identical_images,
    find_package,
    list_emoji_pairs,
)
from .folders import rasterize
from .iconify import IconSet, describe_license, make_svg, read_collections, read_sets, render_svg
from .packages import read_members
from .parquet import BOOL, STRING, STRINGS, encode_png, finished_report, write_parquet


PYTHON_STYLES = ("twemoji", "openmoji")
TRAIN_STYLES = (*PYTHON_STYLES, "noto", "noto-v1", "emojione", "emojione-monotone", "fxemoji", "streamline-emojis")
NEW_STYLES = ("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast")
STYLES = TRAIN_STYLES + NEW_STYLES
# Sets that list the code points of their icons; their names are used to match icons of the other sets.
NAMING_SETS = ("noto", "fluent-emoji-flat", "fluent-emoji-high-contrast", "twemoji")
SIDES = ("train", "test", "test_new_styles")
FEATURES = {
    "image": datasets.Image(),
    "text": STRING,
    "texts": STRINGS,
    "keywords": STRINGS,
    "concept": STRING,
    "seen_concept": BOOL,
    "style": STRING,
    "kind": STRING,
    "codepoints": STRING,
    "license": STRING,
}
PYTHON_LICENSES = {
    "twemoji": {
        "name": "Twemoji",
        "author": {"name": "Twitter and jdecked", "url": "https://github.com/jdecked/twemoji"},
        "license": {"spdx": "CC-BY-4.0", "url": "https://creativecommons.org/licenses/by/4.0/"},
    },
    "openmoji": {
        "name": "OpenMoji",
        "author": {"name": "OpenMoji", "url": "https://openmoji.org"},
        "license": {"spdx": "CC-BY-SA-4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"},
    },
}
# Names that mean another emoji in one set than in all others.
MISNAMED = {
    ("fxemoji", "bow"): "1f380",
    ("fxemoji", "couple"): "1f491",
    ("fxemoji", "down"): "1f447",
    ("fxemoji", "kiss"): "1f617",
    ("fxemoji", "pout"): "1f64e",
    ("fxemoji", "pouting"): "1f621",
    ("fxemoji", "sunglasses"): "1f60e",
    ("fxemoji", "wave"): "1f30a",
}
MOST_DRAWINGS = 2  # drawings of one emoji in one style
MOST_KEYWORDS = 5  # keywords in the caption made of them
FORMAT = 1


@dataclass
class EmojiNames:
    """Names of emojis, which are identified by code points without presentation selectors ("1f469-200d-1f527").

    Attributes:
        levels: from the most to the least reliable names; each maps a name, reduced by [`squeeze`], to its emojis.
        others: further names of each emoji.
        keywords: keywords of each emoji.
    """

    levels: tuple[dict[str, set[str]], ...] = field(default_factory=lambda: ({}, {}, {}))
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    keywords: dict[str, list[str]] = field(default_factory=dict)

    def add(self, level: int, name: str, key: str) -> None:
        self.levels[level].setdefault(squeeze(name), set()).add(key)

    def find(self, name: str) -> str | None:
        """Return the emoji of this name at the most reliable level that has any; None if there are several or none."""
        for level in self.levels:
            found = level.get(squeeze(name), set())
            if found:
                return next(iter(found)) if len(found) == 1 else None
        return None


def squeeze(name: str) -> str:
    """Reduce a name to letters and digits: "Piñata & Co." -> "pinataandco"."""
    letters = unicodedata.normalize("NFKD", name.casefold().replace("&", " and "))
    return "".join(c for c in letters if c.isalnum())


def make_key(codepoints: Iterable[int] | str) -> str:
    """Join code points in lower-case hexadecimal digits by "-", without presentation selectors."""
    if isinstance(codepoints, str):
        codepoints = [int(c, 16) for c in re.split(r"[-_ ]", codepoints)]
    return "-".join(f"{c:x}" for c in codepoints if c != 0xFE0F)


def list_entries(pairs: list[tuple[EmojiPair, Path]]) -> dict[str, EmojiPair]:
    """Return every emoji of the two-style set by its key; the style of the returned pair does not matter."""
    entries: dict[str, EmojiPair] = {}
    for pair, _ in pairs:
        entries.setdefault(make_key(pair.codepoints), pair)
    return entries


def collect_names(entries: dict[str, EmojiPair], sets: dict[str, IconSet], emojibase: Path | None) -> EmojiNames:
    """Collect names from the `emoji` package, Unicode, the sets with code points, and emojibase."""
    import emoji

    names = EmojiNames()
    for key, pair in entries.items():
        names.add(0, pair.text, key)
        if "-" not in key:
            names.add(1, unicodedata.name(chr(int(key, 16)), ""), key)
    for icon_set in (sets[prefix] for prefix in NAMING_SETS if prefix in sets):
        keys = {name: make_key(code) for code, name in icon_set.data.get("chars", {}).items()}
        keys = {name: key for name, key in keys.items() if key in entries}
        for name, key in keys.items():
            names.add(0, name, key)
        for alias, parent in icon_set.other_names():
            if parent in keys:
                names.add(1, alias, keys[parent])
    for characters, entry in emoji.EMOJI_DATA.items():
        key = make_key(map(ord, characters))
        if entry["status"] == FULLY_QUALIFIED and key in entries:
            for alias in entry.get("alias", ()):
                names.add(2, alias, key)
    if emojibase is not None:
        for _, data in read_members(emojibase, ["en/data.json"]):
            for entry in json.loads(data):
                key = make_key(entry["hexcode"])
                if key in entries:
                    names.add(0, entry["label"], key)
                    names.others[key].append(entry["label"])
                    names.keywords[key] = entry.get("tags", [])
        for _, data in read_members(emojibase, ["en/shortcodes/emojibase.json", "en/shortcodes/joypixels.json"]):
            for code, short in json.loads(data).items():
                if (key := make_key(code)) in entries:
                    for name in [short] if isinstance(short, str) else short:
                        names.add(2, name, key)
    for level in names.levels:
        level.pop("", None)
    return names


def match_icons(icon_set: IconSet, names: EmojiNames, chars: dict[str, str] | None = None) -> dict[str, str]:
    """Find which emoji each drawing of a set shows.

    Args:
        icon_set: the set of one style.
        names: names of all emojis.
        chars: icon names by code points, from the set or one with the same names; if None, icons are matched by name.

    Returns:
        Keys of emojis by icon name, in the order of the names. Hidden icons are left out.
    """
    found: dict[str, str] = {}
    if chars:
        found = {name: make_key(code) for code, name in chars.items()}
    else:
        other_names = defaultdict(list)
        for alias, parent in icon_set.other_names():
            other_names[parent].append(alias)
        for name in icon_set.icons:
            # "astronaut-2" is a second drawing, "keycap-2" is not: try the whole name first
            candidates = [name, *other_names[name], re.sub(r"-\d$", "", name)]
            key = next((key for key in map(names.find, candidates) if key), None)
            key = MISNAMED.get((icon_set.prefix, name), key)
            if key:
                found[name] = key
    shown = {name: icon_set.resolve(name) for name in found}
    return {name: found[name] for name in sorted(found) if shown[name] and not shown[name][1].get("hidden")}  # type: ignore[index]


def render_style(
    icon_set: IconSet, matches: dict[str, str], entries: dict[str, EmojiPair], size: int
) -> list[tuple[EmojiPair, Image.Image]]:
    """Render the drawings of one style, at most [`MOST_DRAWINGS`] per emoji."""
    pairs, drawn = [], Counter[str]()
    for name, key in matches.items():
        if key not in entries or drawn[key] == MOST_DRAWINGS:
            continue
        resolved = icon_set.resolve(name)
        assert resolved is not None  # match_icons checks it
        image = render_svg(make_svg(resolved[1], size), size)
        if image.getcolors(1) is not None:
            continue
        drawn[key] += 1
        entry, style = entries[key], icon_set.prefix
        file_name = f"{style}-{entry.codepoints}{f'-{drawn[key]}' if drawn[key] > 1 else ''}.png"
        pair = EmojiPair(file_name, entry.text, entry.concept, style, entry.kind, entry.codepoints)
        pairs.append((pair, image))
    return pairs


def collect_pairs(
    styles: Sequence[str], iconify: Path | None, emojibase: Path | None, size: int, progress: bool
) -> tuple[list[tuple[EmojiPair, Image.Image]], EmojiNames, dict[str, dict[str, Any]]]:
    """Return all pairs of the styles, names and keywords, and the license entry of each style."""
    python_pairs = list_emoji_pairs()
    entries = list_entries(python_pairs)
    wanted = [style for style in styles if style not in PYTHON_STYLES]
    sets: dict[str, IconSet] = {}
    if wanted and iconify is not None:
        collections = read_collections(iconify)
        there = {prefix for prefix in {*wanted, *NAMING_SETS} if prefix in collections}
        if missing := sorted(set(wanted) - there):
            raise ValueError(f"{iconify} has no set {', '.join(missing)}")
        sets = {icon_set.prefix: icon_set for icon_set in read_sets(iconify, there, collections)}
    names = collect_names(entries, sets, emojibase)
    # Before selecting styles, so that the same one of several equal drawings is kept as in the two-style set.
    bar = tqdm(python_pairs, desc="drawing twemoji and openmoji", disable=not progress)
    rendered = drop_identical_images([(pair, rasterize(path, size)) for pair, path in bar])
    pairs = [(pair, image) for pair, image in rendered if pair.style in styles]
    for style in tqdm(wanted, desc="drawing styles", disable=not progress):
        alike = sets.get("fluent-emoji-flat") if style == "fluent-emoji" else None  # same names and code points
        chars = (alike or sets[style]).data.get("chars")
        matches = match_icons(sets[style], names, chars)
        pairs += drop_identical_images(render_style(sets[style], matches, entries, size))
    licenses = {prefix: icon_set.info for prefix, icon_set in sets.items()} | PYTHON_LICENSES
    return pairs, names, {style: licenses[style] for style in styles}


def write_emoji_styles(
    folder: Path,
    iconify: Path | None = None,
    emojibase: Path | None = None,
    styles: Sequence[str] = STYLES,
    size: int = 72,
    test_fraction: float = 0.16,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, int]:
    """Write `train.parquet`, `test.parquet` (held-out concepts), `test_new_styles.parquet` (held-out styles; the
    column `seen_concept` says whether the concept is in training), `report.json` and `LICENSES.md`.

    Concepts, names and test images in the two styles of [`write_emoji_set`] are the same as there, for equal `size`,
    `test_fraction` and `seed`.

    Columns: `image`, `text` (the name), `texts` (the name, other names, and up to five keywords as one text),
    `keywords`, `concept`, `seen_concept`, `style`, `kind` ("picture", "flag" or "sign"), `codepoints`, `license`.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        iconify: file of the npm package `@iconify/json`, for all styles except twemoji and openmoji.
        emojibase: file of the npm package `emojibase-data`, for keywords and more names; optional.
        styles: some of [`STYLES`].
        size: side of the square images in pixels.
        test_fraction: fraction of the concepts that is held out.
        seed: random seed of the choice of held-out concepts.
        progress: show progress bars.

    Returns:
        The number of rows in each file.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
        ValueError: if a style is unknown, or needs the package that was not given.
    """
    if unknown := sorted(set(styles) - set(STYLES)):
        raise ValueError(f"unknown styles {', '.join(unknown)}: choose from {', '.join(STYLES)}")
    if iconify is None and set(styles) - set(PYTHON_STYLES):
        raise ValueError(
            f"without the package @iconify/json, only the styles {' and '.join(PYTHON_STYLES)} are available"
        )
    styles = [style for style in STYLES if style in styles]
    settings = {
        "size": size,
        "test_fraction": test_fraction,
        "seed": seed,
        "styles": styles,
        "keywords": emojibase is not None,
        "format": FORMAT,
    }
    report_file = folder / "report.json"
    if written := finished_report(report_file, settings):
        return written["pairs"]
    find_package("emoji")
    pairs, names, licenses = collect_pairs(styles, iconify, emojibase, size, progress)
    sides, dropped = split_pairs(pairs, test_fraction, seed)
    rows = make_rows(sides, names, licenses)
    check_no_leak(rows)
    counts = {side: write_parquet(folder / f"{side}.parquet", rows[side], FEATURES) for side in SIDES}
    write_licenses(folder / "LICENSES.md", licenses, rows)
    report = {
        "settings": settings,
        "pairs": counts,
        "styles": {
            style: {side: sum(row["style"] == style for row in rows[side]) for side in SIDES} for style in styles
        },
        "seen_concepts_in_new_styles": sum(row["seen_concept"] for row in rows["test_new_styles"]),
        "dropped": dropped,
    }
    report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return counts


def split_pairs(
    pairs: list[tuple[EmojiPair, Image.Image]], test_fraction: float, seed: int
) -> tuple[dict[str, list[tuple[EmojiPair, Image.Image]]], dict[str, int]]:
    """Split by concept and style, and count what is dropped: held-out names, concepts on neither side, and images that
    are in training under another style."""
    held_out = {pair.concept for pair, _ in pairs if is_in_fraction(pair.concept, test_fraction, seed)}
    texts = {pair.text.casefold() for pair, _ in pairs if pair.concept in held_out}
    sides: dict[str, list[tuple[EmojiPair, Image.Image]]] = {side: [] for side in SIDES}
    dropped: Counter[str] = Counter()
    old_styles = [(pair, image) for pair, image in pairs if pair.style not in NEW_STYLES]
    for pair, image in old_styles:
        if pair.concept in held_out:
            sides["test"].append((pair, image))
        elif pair.text.casefold() in texts:
            dropped["name of a held-out concept"] += 1
        else:
            sides["train"].append((pair, image))
    trained = {pair.concept for pair, _ in sides["train"]}
    pixels = {image.tobytes() for _, image in sides["train"]}
    sides["test"] = _without_copies(sides["test"], pixels, dropped)
    new = [each for each in pairs if each[0].style in NEW_STYLES]
    for pair, image in _without_copies(new, pixels, dropped):
        if pair.concept in trained and pair.text.casefold() in texts:
            dropped["name of a held-out concept"] += 1
        elif pair.concept in trained or pair.concept in held_out:
            sides["test_new_styles"].append((pair, image))
        else:
            dropped["concept on neither side"] += 1
    return sides, dict(sorted(dropped.items()))


def _without_copies(
    pairs: list[tuple[EmojiPair, Image.Image]], pixels: set[bytes], dropped: Counter[str]
) -> list[tuple[EmojiPair, Image.Image]]:
    kept = [(pair, image) for pair, image in pairs if image.tobytes() not in pixels]
    if len(kept) < len(pairs):
        dropped["test image that is a training image"] += len(pairs) - len(kept)
    return kept


def find_held_out_names(unseen: Iterable[EmojiPair], names: EmojiNames) -> set[str]:
    """Return the names of held-out concepts in lower case, which must not be training captions."""
    pairs = list(unseen)
    held_out = {pair.text.casefold() for pair in pairs}
    return held_out | {name.casefold() for pair in pairs for name in names.others[make_key(pair.codepoints)]}


def make_captions(pair: EmojiPair, names: EmojiNames, banned: set[str]) -> dict[str, Any]:
    """Build the columns `text` (the name), `texts` (the name, other names, and up to five keywords as one text) and
    `keywords` of an emoji.

    Args:
        pair: the emoji.
        names: names and keywords of all emojis.
        banned: texts in lower case; other names and keywords that are among them are left out.
    """
    key, banned = make_key(pair.codepoints), banned | {pair.text.casefold()}
    others = [name for name in names.others[key] if name.casefold() not in banned]
    keywords = [word for word in names.keywords.get(key, ()) if word.casefold() not in banned]
    tags = [", ".join(keywords[:MOST_KEYWORDS])] if keywords else []
    return {"text": pair.text, "texts": [pair.text, *others, *tags], "keywords": keywords}


def make_rows(
    sides: dict[str, list[tuple[EmojiPair, Image.Image]]], names: EmojiNames, licenses: dict[str, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Build the rows of the files; names of held-out concepts are removed from other names and keywords of training
    rows."""
    trained = {pair.concept for pair, _ in sides["train"]}
    held_out = find_held_out_names(
        (pair for side in SIDES for pair, _ in sides[side] if pair.concept not in trained), names
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    for side, pairs in sides.items():
        rows[side] = []
        for pair, image in pairs:
            seen = pair.concept in trained
            rows[side].append(
                {
                    "image": {"bytes": encode_png(image), "path": pair.file_name},
                    **make_captions(pair, names, held_out if seen else set()),
                    "concept": pair.concept,
                    "seen_concept": seen,
                    "style": pair.style,
                    "kind": pair.kind,
                    "codepoints": pair.codepoints,
                    "license": licenses[pair.style]["license"]["spdx"],
                }
            )
    return rows


def check_no_leak(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Check each finished test row against the texts, concepts and images of training.

    Raises:
        AssertionError: if a held-out concept, name or image is in training.
    """
    train = rows["train"]
    read = {text.casefold() for row in train for text in (*row["texts"], *row["keywords"])}
    seen = {row["concept"] for row in train}
    images = {row["image"]["bytes"] for row in train}
    for row in rows["test"] + rows["test_new_styles"]:
        assert row["image"]["bytes"] not in images, f"{row['image']['path']} is a training image"
        assert row["seen_concept"] == (row["concept"] in seen), f"{row['concept']} is in training"
        if not row["seen_concept"]:
            assert row["text"].casefold() not in read, f"'{row['text']}' is in a training caption"
    assert not any(row["seen_concept"] for row in rows["test"])


def write_licenses(path: Path, licenses: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write the authors and licenses of all styles."""
    pictures = Counter(row["style"] for side in rows.values() for row in side)
    lines = [
        "# Licenses",
        "",
        "The images were rendered to pixels from these works; nothing else was changed.",
        "",
        "| set | name | author | license | images |",
        "|---|---|---|---|---|",
        *(describe_license(style, info, pictures[style]) for style, info in licenses.items()),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
