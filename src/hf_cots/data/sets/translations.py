"""Names and keywords of emoji in English and about a hundred other languages, split by the concepts of the emoji sets.

They are those of Unicode's CLDR, from the npm packages `cldr-annotations-full` and `cldr-annotations-derived-full`.
The held-out concepts are those of the emoji sets ([`emoji_styles`]): no training text in any language is the name of
one of them in any language. Single words of such a name may occur in other names.
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
LEAST_NAMES = 1_500  # minimum names of 1,914 emoji for a language; regional variants have only names that differ
KINDS = ("name", "keywords")
FEATURES = dict.fromkeys(("english", "translation", "language", "kind", "concept", "codepoints"), STRING)
FORMAT = 1

# Names and keywords of characters, by language and key.
Annotations = dict[str, dict[str, dict[str, list[str]]]]


def read_annotations(files: tuple[Path, ...]) -> Annotations:
    """Read the annotations of CLDR's packages, by language and [`make_key`], without skin tones.

    Raises:
        ValueError: naming a file without annotations.
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
    """Write `train.parquet`, `test.parquet` (names of held-out concepts), `report.json` and `LICENSES.md`.

    Columns: `english`, `translation`, `language` (a code such as "es", but not English), `kind` ("name", or up to five
    "keywords" as one text), `concept`, `codepoints`.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        files: files of the npm packages `cldr-annotations-full` and `cldr-annotations-derived-full`.
        test_fraction, seed: choose the held-out concepts, as in the emoji sets.

    Returns:
        The number of rows in each file.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
        ValueError: naming a package's file without annotations.
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
    """Build the rows of both files; also returns how many languages and texts are left out, by reason."""
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
    """Return the "name" and the "keywords" (as one text) of a character in one language, as far as it has them.

    Args:
        entry: CLDR's entry of the character.
        pair: pair of the emoji sets whose name is used instead of CLDR's, if there is one.
        banned: texts in lower case; a name or keyword that is among them is left out.
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
    """Check the finished test rows against the training rows.

    Raises:
        AssertionError: if a held-out concept or name is in training.
    """
    read = {text for row in rows["train"] for text in _texts(row)}
    concepts = {row["concept"] for row in rows["train"]}
    for row in rows["test"]:
        assert row["concept"] not in concepts, f"{row['concept']} is in training"
        assert read.isdisjoint(_texts(row)), f"'{row['english']}' or '{row['translation']}' is in training"
