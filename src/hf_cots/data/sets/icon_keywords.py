"""Keywords of icons by name, pooled from several packages."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .icon_words import clean_name, is_caption
from .packages import CARBON, EMOJIBASE, FONT_AWESOME, LUCIDE, OCTICONS, PHOSPHOR, TABLER, Package, read_members


KEYWORD_PACKAGES = (LUCIDE, TABLER, PHOSPHOR, FONT_AWESOME, OCTICONS, CARBON, EMOJIBASE)
LONGEST = 30  # characters of a keyword
MOST = 12  # keywords of one name

Entries = Iterator[tuple[str, Iterable[str]]]


def _lucide(data: bytes) -> Entries:
    yield from json.loads(data).items()


def _tabler(data: bytes) -> Entries:
    for name, entry in json.loads(data).items():
        yield name, map(str, entry.get("tags", ()))


def _phosphor(data: bytes) -> Entries:
    """Read Phosphor's list, which is JavaScript with one field per line."""
    for match in re.finditer(r'\bname: "([^"]+)",\s*pascal_name:.*?tags: \[(.*?)\]', data.decode(), re.DOTALL):
        yield match[1], re.findall(r'"([^"]*)"', match[2])


def _font_awesome(data: bytes) -> Entries:
    for name, entry in json.loads(data).items():
        for each in (name, *entry.get("aliases", {}).get("names", ())):
            yield each, map(str, entry.get("search", {}).get("terms", ()))


def _octicons(data: bytes) -> Entries:
    for name, entry in json.loads(data).items():
        yield name, entry.get("keywords", ())


def _carbon(data: bytes) -> Entries:
    for entry in json.loads(data)["icons"]:
        yield re.sub(r"--|_", "-", entry["name"].lower()), entry.get("aliases", ())


def _emojibase(data: bytes) -> Entries:
    for entry in json.loads(data):
        yield re.sub(r"[^a-z0-9]+", "-", entry["label"].lower()), entry.get("tags", ())


READERS: dict[Package, tuple[str, Callable[[bytes], Entries]]] = {
    LUCIDE: ("tags.json", _lucide),
    TABLER: ("icons.json", _tabler),
    PHOSPHOR: ("dist/index.mjs", _phosphor),
    FONT_AWESOME: ("metadata/icon-families.json", _font_awesome),
    OCTICONS: ("build/data.json", _octicons),
    CARBON: ("metadata.json", _carbon),
    EMOJIBASE: ("en/data.json", _emojibase),
}


def clean_keyword(keyword: str) -> str | None:
    """Clean a keyword: "Living_Place" -> "living place"; None if it is not a word ("*new*", "f015")."""
    text = " ".join(re.sub(r"[-_]", " ", keyword.lower()).split())
    return (
        text if re.fullmatch(r"[a-z0-9][a-z0-9 &'/.]*", text) and is_caption(text) and len(text) <= LONGEST else None
    )


def read_keywords(files: dict[Package, Path]) -> dict[str, list[str]]:
    """Read keywords of all packages.

    Args:
        files: files of some of [`KEYWORD_PACKAGES`].

    Returns:
        At most [`MOST`] keywords per clean name ("house"), ordered by package and then as in the package.

    Raises:
        ValueError: naming the file that a package lacks.
    """
    pool: dict[str, dict[str, None]] = {}
    for package in KEYWORD_PACKAGES:
        if package not in files:
            continue
        member, read = READERS[package]
        for _, data in read_members(files[package], [member]):
            for icon, keywords in read(data):
                name = clean_name(icon)[0]
                cleaned = (clean_keyword(str(keyword)) for keyword in keywords)
                pool.setdefault(name, {}).update((word, None) for word in cleaned if word and word != name)
    return {name: list(words)[:MOST] for name, words in pool.items() if words}
