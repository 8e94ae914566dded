"""Tiny npm packages in the form of the real ones: a few icon sets, and keywords."""

import io
import json
import tarfile
from pathlib import Path

from hf_cots.data.sets.packages import CARBON, EMOJIBASE, FONT_AWESOME, LUCIDE, OCTICONS, PHOSPHOR, TABLER


MIT = {"title": "MIT", "spdx": "MIT", "url": "https://opensource.org/license/mit"}


def write_tgz(path: Path, files: dict) -> Path:
    """A package of files: bytes as they are, all else as JSON."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def draw_body(number: int) -> str:
    """A drawing on 16 x 16 that is unlike those of other numbers: a bar code."""
    bars = (f'<rect x="{i}" y="1" width="1" height="{4 + number % 11}"/>' for i in range(12) if number * 37 >> i & 1)
    return f'<g fill="currentColor"><rect x="13" y="13" width="2" height="2"/>{"".join(bars)}</g>'


def make_info(category: str = "UI 24px", spdx: str = "MIT", total: int = 1) -> dict:
    license_ = MIT | {"spdx": spdx, "title": spdx}
    return {
        "name": "A set",
        "total": total,
        "category": category,
        "license": license_,
        "author": {"name": "An author", "url": "https://example.org"},
    }


def write_iconify(path: Path, sets: dict[str, dict], infos: dict[str, dict] | None = None) -> Path:
    """The package `@iconify/json` with sets, each {"icons": {...}, "aliases": {...}, ...}."""
    infos = {prefix: make_info(total=len(each["icons"])) for prefix, each in sets.items()} | (infos or {})
    files = {
        f"json/{prefix}.json": {"prefix": prefix, "width": 16, "height": 16} | each for prefix, each in sets.items()
    }
    return write_tgz(path, {"collections.json": infos, **files})


def write_keyword_packages(folder: Path, tags: dict[str, list[str]], emoji: list[dict] = ()) -> dict:
    """All packages of keywords; only Lucide and emojibase know any."""
    files = {
        LUCIDE: {"tags.json": tags},
        TABLER: {"icons.json": {}},
        PHOSPHOR: {"dist/index.mjs": b"const icons = [];"},
        FONT_AWESOME: {"metadata/icon-families.json": {}},
        OCTICONS: {"build/data.json": {}},
        CARBON: {"metadata.json": {"icons": []}},
        EMOJIBASE: {
            "en/data.json": list(emoji),
            "en/shortcodes/emojibase.json": {},
            "en/shortcodes/joypixels.json": {},
        },
    }
    return {package: write_tgz(folder / package.file_name, content) for package, content in files.items()}
