"""Names and keywords of emoji in about a hundred languages beside the English ones, split by the emoji sets' concepts.

They are those of Unicode's CLDR, which the npm packages `cldr-annotations-full` and `cldr-annotations-derived-full`
carry. The concepts that are held out are those of the emoji sets ([`emoji_styles`]): no text that trains, in any
language, is the name of one of them in any language. Words of such a name may well occur in other names.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..hashes import is_in_fraction
from .emoji import SKIN_TONES, EmojiPair, list_emoji_pairs
from .emoji_styles import MOST_KEYWORDS, list_entries, make_key
from .packages import read_members
from .parquet import STRING, finished_report, write_parquet


SIDES = ("train", "test")
ENGLISH = "en"
LEAST_NAMES = 1_500  # of 1,914 emoji, for a language to be taken; regional variants name only what differs
KINDS = ("name", "keywords")
FEATURES = dict.fromkeys(("english", "translation", "language", "kind", "concept", "codepoints"), STRING)
FORMAT = 1

# Of a language, the names and keywords of characters by their keys.
Annotations = dict[str, dict[str, dict[str, list[str]]]]


def read_annotations(files: tuple[Path, ...]) -> Annotations:
    """Read the annotations of CLDR's packages, by language and [`make_key`], without skin tones.

    Raises:
        ValueError: naming a file that holds none.
    """
    found: Annotations = {}
    for file in files:
        before = len(found)
        for name, data in read_members(file, lambda name: name.endswith("/annotations.json")):
            language = name.split("/")[1]
            (content,) = json.loads(data).values()
            for characters, entry in content.get("annotations", {}).items():
                points = [ord(character) for character in characters]
                if not SKIN_TONES.intersection(points):
                    found.setdefault(language, {}).setdefault(make_key(points), entry)
        if not found or (before == 0 and ENGLISH not in found):
            raise ValueError(f"{file} has no annotations/{ENGLISH}/annotations.json: it is not a CLDR package")
    return found


def write_translation_set(
    folder: Path, files: tuple[Path, ...], test_fraction: float = 0.16, seed: int = 0
) -> dict[str, int]:
    """Write `train.parquet`, `test.parquet` (names of concepts that never train), `report.json` and `LICENSES.md`.

    Columns: `english`, `translation`, `language` (a code such as "es"), `kind` ("name", or up to five "keywords" as
    one text), `concept`, `codepoints`. English itself is no language here.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        files: of the npm packages `cldr-annotations-full` and `cldr-annotations-derived-full`.
        test_fraction, seed: choose the concepts that are held out, as in the emoji sets.

    Returns:
        The number of rows in each file.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
        ValueError: naming a package's file that holds no annotations.
    """
    settings: dict[str, Any] = {
        "test_fraction": test_fraction,
        "seed": seed,
        "files": [file.name for file in files],
        "format": FORMAT,
    }
    report_file = folder / "report.json"
    if written := finished_report(report_file, settings):
        return written["pairs"]
    rows, dropped = make_rows(read_annotations(files), test_fraction, seed)
    check_no_leak(rows)
    counts = {side: write_parquet(folder / f"{side}.parquet", rows[side], FEATURES) for side in SIDES}
    licenses = [data.decode() for file in files[:1] for _, data in read_members(file, ["LICENSE"])]
    text = f"# Licenses\n\nNames and keywords are those of Unicode's CLDR ({', '.join(settings['files'])}).\n\n"
    (folder / "LICENSES.md").write_text(text + "\n".join(licenses), encoding="utf-8")
    languages = {
        language: {side: sum(row["language"] == language for row in rows[side]) for side in SIDES}
        for language in sorted({row["language"] for row in rows["test"]})
    }
    report = {"settings": settings, "pairs": counts, "languages": languages, "dropped": dropped}
    report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return counts


def make_rows(
    annotations: Annotations, test_fraction: float, seed: int
) -> tuple[dict[str, list[dict[str, str]]], dict[str, int]]:
    """The rows of both files, and how many languages and texts are left out, by reason."""
    entries = list_entries(list_emoji_pairs())
    held_out = {key for key, pair in entries.items() if is_in_fraction(pair.concept, test_fraction, seed)}
    dropped: Counter[str] = Counter()
    languages = []
    for language in sorted(set(annotations) - {ENGLISH}):
        named = sum("tts" in annotations[language].get(key, {}) for key in entries)
        languages += [language] if named >= LEAST_NAMES else []
        dropped["language with few names"] += named < LEAST_NAMES
    banned = {entries[key].text.casefold() for key in held_out}
    for language in (ENGLISH, *languages):
        banned |= {name.casefold() for key in held_out for name in annotations[language].get(key, {}).get("tts", [])}
    rows: dict[str, list[dict[str, str]]] = {side: [] for side in SIDES}
    for key, entry in annotations[ENGLISH].items():
        side = "test" if key in held_out else "train"
        english = list_texts(entry, entries.get(key), banned if side == "train" else set())
        for language in languages:
            theirs = list_texts(annotations[language].get(key, {}), None, banned if side == "train" else set())
            for kind in KINDS if side == "train" else KINDS[:1]:
                if kind not in english or kind not in theirs:
                    dropped[f"{side}: no {kind} in English or in the language, or that of a held-out concept"] += 1
                    continue
                concept = entries[key].concept if key in entries else key.upper()
                texts = {"english": english[kind], "translation": theirs[kind]}
                rows[side].append(texts | {"language": language, "kind": kind, "concept": concept, "codepoints": key})
    return rows, dict(sorted(dropped.items()))


def list_texts(entry: dict[str, list[str]], pair: EmojiPair | None, banned: set[str]) -> dict[str, str]:
    """The "name" and the "keywords", as one text, of a character in one language, as far as it has them.

    Args:
        entry: of CLDR.
        pair: of the emoji sets, whose name is taken, if it is one of theirs.
        banned: in lower case; no name and no keyword is one of them.
    """
    names = [pair.text] if pair is not None else entry.get("tts", [])[:1]
    found = {"name": names[0]} if names and names[0].casefold() not in banned else {}
    keywords = [word for word in entry.get("default", []) if word.casefold() not in banned and word not in names]
    return found | ({"keywords": ", ".join(keywords[:MOST_KEYWORDS])} if keywords else {})


def _texts(row: dict[str, Any]) -> Iterator[str]:
    for text in (row["english"], row["translation"]):
        yield text.casefold()
        yield from text.casefold().split(", ") if row["kind"] == "keywords" else ()


def check_no_leak(rows: dict[str, list[dict[str, str]]]) -> None:
    """Check the finished rows against each other.

    Raises:
        AssertionError: if a held-out concept or name is in training.
    """
    read = {text for row in rows["train"] for text in _texts(row)}
    concepts = {row["concept"] for row in rows["train"]}
    for row in rows["test"]:
        assert row["concept"] not in concepts, f"{row['concept']} is in training"
        assert read.isdisjoint(_texts(row)), f"'{row['english']}' or '{row['translation']}' is in training"
