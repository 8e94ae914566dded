"""The icon set: about 150,000 images of icons with names, other names and keywords, split by word.

It is built from those sets of the npm package `@iconify/json` whose license requires attribution only, and from
keywords of seven more packages. Some words are held out: icons with one in a name, another name or a compound are not
in training. Four sets are held out as unseen styles.
"""

import hashlib
import json
import logging
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from ..hashes import hamming_distances
from .icon_check import check_files
from .icon_images import THUMBNAIL, read_rendered, render_sets
from .icon_keywords import read_keywords
from .icon_words import FEWEST_SETS, Vocabulary, choose_held_out, split_words, stem
from .iconify import LICENSES, describe_license, name_license, read_collections, read_sets
from .packages import EMOJIBASE, Package, read_members
from .parquet import STRING, STRINGS, ParquetFile, finished_report


logger = logging.getLogger(__name__)

ANIMATED_SETS = {"line-md", "svg-spinners"}
OLD_SETS = {
    *("fa", "fa-brands", "fa-regular", "fa-solid", "fa6-brands", "fa6-regular", "fa6-solid"),
    *("feather", "pepicons", "mono-icons"),
}
LOGO_CATEGORIES = {"Logos", "Programming"}
LOGO_SET = re.compile(r"-(brands|logos)$")
EMOJI_SETS = {"fluent-emoji"}  # in addition to the category Emoji
FLAG_SETS = {"cif", "circle-flags", "flag", "flagpack"}
NEW_STYLE_SETS = {"game-icons", "pixelarticons", "streamline-freehand", "streamline-freehand-color"}
SIDES = ("train", "test", "test_new_styles", "flags")
OTHER_NAMES = 3  # other names among the captions
KEYWORDS = 5  # keywords in the caption made of them
NEAR_BITS, NEAR_COSINE = 4, 0.9  # images are near-duplicates if both perceptual hash and thumbnail are this close,
VERY_NEAR_COSINE = 0.985  # or if the thumbnails alone are this close
ROWS_AT_ONCE = 2048  # rows that are written together
PAIRS_AT_ONCE = 1 << 22  # pairs of images that are compared together
SUBDIVISIONS = {"gb-eng": "England", "gb-sct": "Scotland", "gb-wls": "Wales", "gb-nir": "Northern Ireland"}
FORMAT = 1
FEATURES = {
    "image": datasets.Image(),
    "captions": STRINGS,
    "name": STRING,
    "other_names": STRINGS,
    "keywords": STRINGS,
    "unseen_words": STRINGS,
    "style": STRING,
    "set": STRING,
    "icon": STRING,
    "license": STRING,
    "author": STRING,
}


@dataclass
class IconSplit:
    """The assignment of drawings to the sides of the split.

    Attributes:
        sides: rows of the table of drawings by side, in the order in which they are written.
        other_names: other names by row: its own and the names of identical images.
        held_out: stems of the held-out words.
        vocabulary: vocabulary of all names.
        counts: numbers of drawings that are left out, by reason.
    """

    sides: dict[str, list[int]]
    other_names: dict[int, list[str]]
    held_out: set[str]
    vocabulary: Vocabulary
    counts: Counter[str] = field(default_factory=Counter)


def sort_sets(collections: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Classify each set as "train", "test_new_styles", "flags" or "emoji", or by why it is left out."""
    kinds = {}
    for prefix, info in collections.items():
        category = info.get("category")
        if name_license(info) not in LICENSES:
            kind = "license"
        elif prefix in EMOJI_SETS or category == "Emoji":
            kind = "emoji"
        elif prefix in ANIMATED_SETS:
            kind = "animated"
        elif prefix in OLD_SETS:
            kind = "old copy"
        elif category in LOGO_CATEGORIES or LOGO_SET.search(prefix):
            kind = "logos"
        elif prefix in FLAG_SETS:
            kind = "flags"
        else:
            kind = "test_new_styles" if prefix in NEW_STYLE_SETS else "train"
        kinds[prefix] = kind
    return kinds


def hash_order(text: str, seed: int) -> bytes:
    """Return a key that sorts texts in a random order: a pure function of text and seed."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def merge_equal(table: pa.Table, kinds: dict[str, str]) -> tuple[list[int], dict[int, list[str]], Counter[str]]:
    """Merge drawings with equal pixels: the first one, preferably in a training set, is kept with the others' names.

    Returns:
        The rows that are kept, other names by row, and counts of what is left out.
    """
    sets, names, others = (table[column].to_pylist() for column in ("set", "name", "other_names"))
    groups = defaultdict(list)
    for row, pixels in enumerate(table["pixels"].to_pylist()):
        groups[pixels].append(row)
    kept, other_names, counts = [], {}, Counter[str]()
    for rows in groups.values():
        rows.sort(key=lambda row: (kinds[sets[row]] != "train", row))
        first = rows[0]
        kept.append(first)
        found = [name for row in rows for name in (names[row], *others[row]) if name != names[first]]
        other_names[first] = list(dict.fromkeys(found))
        counts["pixels of another drawing"] += len(rows) - 1
    return sorted(kept), other_names, counts


def split_icons(table: pa.Table, kinds: dict[str, str], seed: int) -> IconSplit:
    """Split drawings by word and by set; see the module.

    Args:
        table: from [`read_rendered`], with all sets that are not flags.
        kinds: from [`sort_sets`].
        seed: random seed of the choice of held-out words.
    """
    kept, other_names, counts = merge_equal(table, kinds)
    sets, icons, names = (table[column].to_pylist() for column in ("set", "icon", "name"))
    trainable = [(sets[row], names[row]) for row in range(len(table)) if kinds[sets[row]] == "train"]
    held_out = choose_held_out(trainable, seed)
    vocabulary = Vocabulary.from_names(zip(sets, names))
    sides: dict[str, list[int]] = {"train": [], "test_new_styles": []}
    candidates = defaultdict(list)
    for row in kept:
        if kinds[sets[row]] == "test_new_styles":
            sides["test_new_styles"].append(row)
        elif find_unseen(names[row], held_out):
            candidates[names[row]].append(row)
        elif any(vocabulary.find_stems(text) & held_out for text in (names[row], *other_names[row])):
            counts["held-out word in another name or a compound"] += 1
        else:
            sides["train"].append(row)
    keys = [hash_order(f"{prefix}:{icon}", seed) for prefix, icon in zip(sets, icons)]
    users = defaultdict(set)
    for prefix, name in trainable:
        users[name].add(prefix)
    # A name in one set only may mean nothing elsewhere: "yin yang on square", "work item parent".
    shared = {name: rows for name, rows in candidates.items() if len(users[name]) >= FEWEST_SETS}
    counts["unseen word in a name of one set alone"] += sum(
        len(candidates[name]) for name in candidates.keys() - shared.keys()
    )
    sides["test"] = [min(rows, key=keys.__getitem__) for _, rows in sorted(shared.items())]
    counts["more drawings of a test name"] += sum(map(len, shared.values())) - len(shared)
    sides["train"].sort(key=keys.__getitem__)
    near = find_near(table, sides["train"], sides["test"])
    counts["looks like a test image"] += int(near.sum())
    sides["train"] = [row for row, is_near in zip(sides["train"], near) if not is_near]
    return IconSplit(sides, other_names, held_out, vocabulary, counts)


def find_unseen(name: str, held_out: set[str]) -> list[str]:
    """Return the held-out words of a name."""
    return [word for word in dict.fromkeys(split_words(name)) if stem(word) in held_out]


def unit_thumbnails(table: pa.Table, rows: list[int]) -> np.ndarray:
    """Return thumbnails as differences from white, normalized: (n, D) float32."""
    column = table["thumbnail"].take(pa.array(rows, pa.int64())).to_pylist()
    small = np.frombuffer(b"".join(column), dtype=np.uint8).reshape(-1, THUMBNAIL * THUMBNAIL).astype(np.float32)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-9)


def find_near(table: pa.Table, rows: list[int], others: list[int]) -> np.ndarray:
    """Find which images are near-duplicates of one of the others, by perceptual hash and thumbnail; returns
    (len(rows),) bool."""
    found = np.zeros(len(rows), dtype=bool)
    if not others:
        return found
    hashes = table["hash"].to_numpy()
    other_hashes, other_small = hashes[others], unit_thumbnails(table, others)
    step = max(1, PAIRS_AT_ONCE // len(others))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        cosines = unit_thumbnails(table, part) @ other_small.T
        bits = hamming_distances(hashes[part][:, None], other_hashes[None])
        near = (cosines >= VERY_NEAR_COSINE) | ((bits <= NEAR_BITS) & (cosines > NEAR_COSINE))
        found[first : first + len(part)] = near.any(axis=1)
    return found


def largest_cosine(table: pa.Table, rows: list[int], others: list[int]) -> float:
    """Compute the largest cosine between the thumbnails of images and of others; 0 if there are none."""
    if not rows or not others:
        return 0.0
    small = unit_thumbnails(table, others)
    step = max(1, PAIRS_AT_ONCE // len(others))
    parts = (rows[first : first + step] for first in range(0, len(rows), step))
    return round(max(float((unit_thumbnails(table, part) @ small.T).max()) for part in parts), 4)


# ---------------------------------------------------------------------- rows


def make_row(
    drawing: dict[str, Any],
    split: IconSplit,
    other_names: list[str],
    keywords: dict[str, list[str]],
    info: dict[str, Any],
    trains: bool,
) -> dict[str, Any]:
    """Build a row of a file.

    Args:
        drawing: a row of the table of drawings.
        split: the split, with its held-out words.
        other_names: other names of the drawing.
        keywords: keywords by name.
        info: entry of the drawing's set in `collections.json`.
        trains: whether it is a training row, in which keywords with a held-out word are left out.
    """
    name = drawing["name"]
    pooled = dict.fromkeys(word for each in (name, *other_names) for word in keywords.get(each, ()))
    tags = [word for word in pooled if word != name and word not in other_names]
    if trains:
        tags = [word for word in tags if not split.vocabulary.find_stems(word) & split.held_out]
    captions = [name, *other_names[:OTHER_NAMES]]
    return {
        "image": {"bytes": drawing["png"], "path": f"{drawing['set']}--{drawing['icon']}.png"},
        "captions": captions + ([", ".join(tags[:KEYWORDS])] if tags else []),
        "name": name,
        "other_names": other_names,
        "keywords": tags,
        "unseen_words": find_unseen(name, split.held_out),
        "style": drawing["style"],
        "set": drawing["set"],
        "icon": drawing["icon"],
        "license": name_license(info),
        "author": info["author"]["name"],
    }


def read_flag_names(emojibase: Path) -> dict[str, str]:
    """Read the names of countries and regions by the codes that flag sets use: "fr" -> "flag of France"."""
    names = dict(SUBDIVISIONS)
    for _, data in read_members(emojibase, ["en/data.json"]):
        for entry in json.loads(data):
            letters = [int(code, 16) - 0x1F1E6 for code in entry["hexcode"].split("-")]
            if len(letters) == 2 and all(0 <= letter < 26 for letter in letters):
                code = "".join(chr(ord("a") + letter) for letter in letters)
                names[code] = entry["label"].removeprefix("flag: ")
    return {code: f"flag of {name}" for code, name in names.items()}


def name_flags(drawings: list[dict[str, Any]], names: dict[str, str], counts: Counter[str]) -> list[dict[str, Any]]:
    """Name flags by their countries; unknown codes and flags with equal pixels are left out."""
    found: dict[int, dict[str, Any]] = {}
    for drawing in drawings:
        code = drawing["name"].replace(" ", "-")
        is_code = re.fullmatch(r"[a-z]{2,3}(-[a-z]{2,3})*", code) is not None
        name = names.get(code, None if is_code else f"flag of {drawing['name']}")
        if name is None:
            counts["flag of an unknown code"] += 1
        elif drawing["pixels"] in found:
            counts["flag with the pixels of another"] += 1
        else:
            found[drawing["pixels"]] = drawing | {"name": name}
    return list(found.values())


# ---------------------------------------------------------------------- the set


def draw_sets(
    iconify: Path,
    chosen: set[str],
    collections: dict[str, dict[str, Any]],
    work: Path,
    size: int,
    workers: int,
    progress: bool,
) -> None:
    """Render the chosen sets that an earlier run has not rendered, each to its own file in `work`."""
    to_draw = {prefix for prefix in chosen if not (work / f"{prefix}.parquet").is_file()}
    if not to_draw:
        return
    totals = {prefix: collections[prefix].get("total", 1) for prefix in to_draw}
    with tqdm(total=sum(totals.values()), desc="drawing", unit=" icons", disable=not progress) as bar:
        for prefix in render_sets(read_sets(iconify, to_draw, collections), work, size, workers):
            bar.set_postfix_str(prefix, refresh=False)
            bar.update(totals[prefix])


def write_icon_set(
    folder: Path,
    iconify: Path,
    keyword_packages: dict[Package, Path],
    size: int = 64,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, int]:
    """Write `train.parquet`, `test.parquet`, `test_new_styles.parquet`, `flags.parquet`, `report.json`, `LICENSES.md`.

    `test.parquet` has names with a held-out word, with one drawing of each name that at least two sets use;
    `test_new_styles.parquet` has the held-out sets.

    Columns: `image`, `captions` (the name, up to three other names, up to five keywords as one text), `name` (images
    with equal names are not negatives: give it as `image_id_column`), `other_names`, `keywords`, `unseen_words` (the
    held-out words of the name), `style`, `set`, `icon`, `license`, `author`. Training rows are in random order, so the
    first N are a random sample.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept; an interrupted one is resumed
            with the sets that are not rendered yet.
        iconify: file of the npm package `@iconify/json`.
        keyword_packages: files of the keyword packages; `emojibase-data`, which names the flags, is required.
        size: side of the square images in pixels.
        seed: random seed of the choice of held-out words.
        workers: number of processes that render.
        progress: show a progress bar.

    Returns:
        The number of rows in each file.

    Raises:
        ModuleNotFoundError: if resvg-py, of the extra `demo`, is missing.
        ValueError: if a package lacks a file, or a side would be empty.
        RuntimeError: if the finished files leak words or images from test to training, which is a bug.
    """
    settings: dict[str, Any] = {"size": size, "seed": seed, "format": FORMAT}
    settings["packages"] = [*sorted(package.file_name for package in keyword_packages), iconify.name]
    report_file = folder / "report.json"
    if written := finished_report(report_file, settings):
        return written["rows"]
    collections = read_collections(iconify)
    kinds = sort_sets(collections)
    work = begin_work(folder, settings)
    chosen = {prefix for prefix, kind in kinds.items() if kind in SIDES}
    draw_sets(iconify, chosen, collections, work, size, workers, progress)
    logger.info("splitting by word")
    table, counts_by_set = read_rendered(work, (prefix for prefix in chosen if kinds[prefix] != "flags"))
    flags, flag_counts = read_rendered(work, (prefix for prefix in chosen if kinds[prefix] == "flags"))
    split = split_icons(table, kinds, seed)
    split.counts.update(sum((counts_by_set | flag_counts).values(), Counter()))
    for side in ("train", "test"):
        if not split.sides[side]:
            raise ValueError(f"no {side} images: choose another seed")
    logger.info("reading keywords")
    keywords = read_keywords(keyword_packages)
    flag_rows = name_flags(flags.to_pylist(), read_flag_names(keyword_packages[EMOJIBASE]), split.counts)
    logger.info("writing")
    rows = write_sides(folder, table, flag_rows, split, keywords, collections)
    write_licenses(folder / "LICENSES.md", collections, table, flag_rows, split)
    logger.info("checking that no held-out word is in training")
    report = {
        "settings": settings,
        "rows": rows,
        "captions": check_files(folder, split.held_out),
        "held_out_stems": len(split.held_out),
        "sets": dict(sorted(Counter(kinds.values()).items())),
        "icons_left_out_with_their_set": count_icons(collections, kinds),
        "drawings_left_out": dict(sorted(split.counts.items())),
    } | measure_likeness(table, split)
    report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)
    return rows


def measure_likeness(table: pa.Table, split: IconSplit) -> dict[str, Any]:
    """Measure how similar the test images are to training images, for the report."""
    train, new_styles = split.sides["train"], split.sides["test_new_styles"]
    return {
        "largest_cosine_to_training": {
            side: largest_cosine(table, train, split.sides[side]) for side in ("test", "test_new_styles")
        },
        "near_training_images_in_new_styles": int(find_near(table, new_styles, train).sum()),
    }


def begin_work(folder: Path, settings: dict[str, Any]) -> Path:
    """Prepare the folder of intermediate results; those of other settings are removed."""
    work = folder / ".work"
    settings_file = work / "settings.json"
    text = json.dumps(settings)
    if not settings_file.is_file() or settings_file.read_text(encoding="utf-8") != text:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        settings_file.write_text(text, encoding="utf-8")
    return work


def count_icons(collections: dict[str, dict[str, Any]], kinds: dict[str, str]) -> dict[str, int]:
    """Count the icons of the sets that are left out, by reason."""
    counts: Counter[str] = Counter()
    for prefix, kind in kinds.items():
        if kind not in SIDES:
            counts[kind] += collections[prefix].get("total", 0)
    return dict(sorted(counts.items()))


def write_sides(
    folder: Path,
    table: pa.Table,
    flags: list[dict[str, Any]],
    split: IconSplit,
    keywords: dict[str, list[str]],
    collections: dict[str, dict[str, Any]],
) -> dict[str, int]:
    """Write the files; returns the number of rows in each."""
    for side in ("train", "test", "test_new_styles"):
        with ParquetFile(folder / f"{side}.parquet", FEATURES) as file:
            numbers = split.sides[side]
            for first in range(0, len(numbers), ROWS_AT_ONCE):
                part = numbers[first : first + ROWS_AT_ONCE]
                drawings = table.take(pa.array(part, pa.int64())).to_pylist()
                file.write(
                    make_row(
                        drawing, split, split.other_names[row], keywords, collections[drawing["set"]], side == "train"
                    )
                    for row, drawing in zip(part, drawings)
                )
    with ParquetFile(folder / "flags.parquet", FEATURES) as file:
        file.write(make_row(drawing, split, [], {}, collections[drawing["set"]], False) for drawing in flags)
    return {side: len(numbers) for side, numbers in split.sides.items()} | {"flags": len(flags)}


def write_licenses(
    path: Path,
    collections: dict[str, dict[str, Any]],
    table: pa.Table,
    flags: Iterable[dict[str, Any]],
    split: IconSplit,
) -> None:
    """Write the authors and licenses of all sets."""
    sets = table["set"].to_pylist()
    images = Counter(sets[row] for rows in split.sides.values() for row in rows)
    images.update(drawing["set"] for drawing in flags)
    lines = [
        "# Licenses",
        "",
        "The images were rendered to pixels from these works, as the npm package @iconify/json holds them; nothing",
        "else was changed. An image that two sets share is counted, and named in the data, as that of the first.",
        "",
        "| set | name | author | license | images |",
        "|---|---|---|---|---|",
        *(describe_license(prefix, collections[prefix], count) for prefix, count in sorted(images.items())),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
