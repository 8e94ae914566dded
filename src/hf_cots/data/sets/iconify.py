"""Icon sets of the npm package `@iconify/json`: names, aliases, drawings and licenses.

The format is that of https://iconify.design/docs/types/iconify-json.html: a drawing is a piece of SVG with its view
box; an alias is another name of a drawing, which may be rotated or mirrored.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .packages import read_members


# SPDX names of licenses that allow to redistribute rendered images with attribution only: sets under CC-BY-SA,
# CC-BY-NC, GPL and MPL are left out.
LICENSES = {
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "OFL-1.1",
    "Unlicense",
}
SIDE = 16  # side of an icon whose set gives no size
LONGEST_ALIAS = 5  # maximum length of a chain of aliases, as in Iconify itself


@dataclass(frozen=True)
class IconSet:
    """One set: `data` is its file, `info` its entry in `collections.json`."""

    prefix: str
    data: dict[str, Any]
    info: dict[str, Any]

    @property
    def license(self) -> str:
        """The SPDX name of its license."""
        return name_license(self.info)

    @property
    def icons(self) -> dict[str, dict[str, Any]]:
        return self.data["icons"]

    @property
    def aliases(self) -> dict[str, dict[str, Any]]:
        return self.data.get("aliases", {})

    def other_names(self) -> list[tuple[str, str]]:
        """Return the aliases that show the unchanged drawing of their parent, with the parent's name."""
        changes = {"rotate", "hFlip", "vFlip", "left", "top", "width", "height"}
        return [(alias, each["parent"]) for alias, each in self.aliases.items() if not changes & each.keys()]

    def resolve(self, name: str) -> tuple[str, dict[str, Any]] | None:
        """Follow aliases to an icon.

        Returns:
            The icon's name, and the fields of its drawing, overridden by those of the aliases on the way (rotations
            add up, two mirrorings cancel out); None if there is no such icon.
        """
        path: list[dict[str, Any]] = []
        while name not in self.icons:
            if name not in self.aliases or len(path) == LONGEST_ALIAS:
                return None
            path.append(self.aliases[name])
            name = self.aliases[name]["parent"]
        size = {key: self.data[key] for key in ("width", "height", "left", "top") if key in self.data}
        fields = size | self.icons[name]
        for alias in reversed(path):
            turned = {
                "rotate": (fields.get("rotate", 0) + alias.get("rotate", 0)) % 4,
                "hFlip": fields.get("hFlip", False) != alias.get("hFlip", False),
                "vFlip": fields.get("vFlip", False) != alias.get("vFlip", False),
            }
            fields = fields | alias | turned
        return name, fields


def make_svg(fields: dict[str, Any], size: int) -> str:
    """Build a square SVG file from an icon's fields; the drawing keeps its aspect ratio and is centered.

    Args:
        fields: from [`IconSet.resolve`].
        size: side in pixels.
    """
    left, top = fields.get("left", 0), fields.get("top", 0)
    width, height = fields.get("width", SIDE), fields.get("height", SIDE)
    body = fields["body"]
    x, y = left + width / 2, top + height / 2  # rotations and mirrorings are about the center
    turns = fields.get("rotate", 0) % 4
    if fields.get("hFlip") or fields.get("vFlip") or turns:
        flip = f"scale({-1 if fields.get('hFlip') else 1} {-1 if fields.get('vFlip') else 1})"
        body = f'<g transform="translate({x} {y}) rotate({90 * turns}) {flip} translate({-x} {-y})">{body}</g>'
    if turns % 2:
        left, top, width, height = x - height / 2, y - width / 2, height, width
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
        f'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def render_svg(svg: str, size: int) -> Image.Image:
    """Render an SVG as a `size` x `size` RGB image on white. System fonts are not used.

    Raises:
        ValueError: if it cannot be rendered.
    """
    import resvg_py

    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, dpi=96, background="#ffffff", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(data))) as image:
        return image.convert("RGB")


def read_collections(package: Path) -> dict[str, dict[str, Any]]:
    """Read the entries of all sets by prefix: name, author, license, palette, category."""
    for _, data in read_members(package, ["collections.json"]):
        return json.loads(data)
    raise AssertionError("read_members raises where a named file is missing")


def read_sets(package: Path, prefixes: set[str], collections: dict[str, dict[str, Any]]) -> Iterator[IconSet]:
    """Read sets one after another, in the order of the package.

    Raises:
        ValueError: naming the files that the package lacks.
    """
    files = {f"json/{prefix}.json": prefix for prefix in prefixes}
    for name, data in read_members(package, files):
        yield IconSet(files[name], json.loads(data), collections[files[name]])


def name_license(info: dict[str, Any]) -> str:
    """Return the SPDX name of a set's license, or its title if there is none."""
    return info["license"].get("spdx") or info["license"]["title"]


def describe_license(prefix: str, info: dict[str, Any], pictures: int) -> str:
    """Return a set's line of LICENSES.md: its name, author and license with links."""
    author, license_ = info["author"], info["license"]

    def link(text: str, url: str | None) -> str:
        return f"[{text}]({url})" if url else text

    by = link(author["name"], author.get("url"))
    under = link(name_license(info), license_.get("url"))
    return f"| {prefix} | {info['name']} | {by} | {under} | {pictures} |"
