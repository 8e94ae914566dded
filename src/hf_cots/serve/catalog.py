"""What a page needs from an index besides searches: the image of a row, and the values of its columns."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..search.base import Match
from ..search.disk_index import DiskIndex
from ..search.gallery import place
from ..search.store import DATABASE, IndexStore, quote_name
from ..search.vectors import l2_normalize
from ..search.where import check_expression
from .schemas import Cell, Facet, FacetValue


MAX_VALUES = 24  # distinct values of a column that is offered as a filter
MAX_LENGTH = 80  # characters of such a value


class Location(NamedTuple):
    """The path of an image and the hash of its bytes; for a clip also the times of its frames in seconds."""

    path: Path
    digest: str
    times: tuple[float, ...] | None = None


class Catalog:
    """Reads rows of an index through its own connection, so that images need not wait for searches.

    Args:
        index: opened for searching.

    Attributes:
        name: name of the index, for a heading.

    Raises:
        OSError, ValueError: as for [`IndexStore`].
    """

    def __init__(self, index: DiskIndex):
        self.index, self.root, self.name = index, index.root, index.folder.resolve().name
        self.store, self._file = IndexStore(index.folder), self._find_file()
        self._noted_root = self.store.meta.get("root")
        self._lock = threading.Lock()
        self._described: tuple[int, int, list[str], list[str], list[Facet]] | None = None

    def _find_file(self) -> tuple[int, int]:
        """Identify the database file; it is another one if the index was created again in the same folder."""
        stat = (self.index.folder / DATABASE).stat()
        return stat.st_dev, stat.st_ino

    def is_outdated(self) -> bool:
        """Whether the index was replaced, or its images have moved; updates need no reopening."""
        moved = self.store.meta.get("root") != self._noted_root  # as of the last read of rows
        return moved or self._find_file() != self._file

    def reopen(self) -> DiskIndex:
        """Open the current index; errors as for [`DiskIndex`]."""
        return DiskIndex(self.index.folder, self.index.encoder)

    def number(self, match: Match) -> int:
        """Return the number by which requests refer to a match's image."""
        return match.id or 0

    def locate(self, image: int) -> Location | None:
        """Return the location of an image; None if the index has no such row."""
        select = "SELECT path, hash, slot FROM images JOIN contents USING (slot) WHERE id = ?"
        with self._lock, self.store.reading():
            row = self.store.database.execute(select, (image,)).fetchone()
            if row is None:
                return None
            clip = self.store.read_clips([row[2]]).get(row[2])
        return Location(place(self.root, row[0]), row[1], None if clip is None else clip.times)

    def vector(self, image: int) -> np.ndarray | None:
        """Return the embedding (D,) of an image; None if the index has no such row."""
        with self._lock, self.store.reading() as snapshot:
            row = self.store.database.execute("SELECT slot FROM images WHERE id = ?", (image,)).fetchone()
            if row is None or row[0] is None:
                return None
            return l2_normalize(snapshot.vectors([row[0]]))[0]

    def describe(self) -> tuple[int, list[str], list[str], list[Facet]]:
        """Return the number of images, the columns, the text columns (and `path`), and the columns with few values."""
        with self._lock, self.store.reading() as snapshot:
            if self._described is None or self._described[0] != snapshot.version:
                count = self.store.database.execute("SELECT count(*) FROM images WHERE slot IS NOT NULL").fetchone()[0]
                names = self.store.column_names()
                facets = [facet for name in names if (facet := self._find_facet(name, count)) is not None]
                keywords = self.store.text_columns()
                keywords += [] if "path" in map(str.lower, names) else ["path"]
                self._described = snapshot.version, count, names, keywords, facets
            return self._described[1:]

    def _find_facet(self, name: str, count: int) -> Facet | None:
        """Return the values of a column, the most frequent first; None if there are too many, only one, or too long
        ones."""
        database, column = self.store.database, quote_name(name)
        most = most_values(count)
        distinct = f"SELECT count(*) FROM (SELECT DISTINCT {column} FROM columns LIMIT {most + 2})"  # stop early
        if not 2 <= database.execute(distinct).fetchone()[0] <= most + 1:
            return None
        found = database.execute(
            f'SELECT columns.{column}, count(*) FROM images LEFT JOIN columns ON "hf_cots image" = images.id '
            f"WHERE images.slot IS NOT NULL GROUP BY 1"
        ).fetchall()
        return make_facet(name, found, most)


def most_values(images: int) -> int:
    """Return the maximum number of values of a column that is offered as a filter, for a number of images."""
    return min(MAX_VALUES, images // 2)


def make_facet(name: str, found: Iterable[tuple[Cell, int]], most: int) -> Facet | None:
    """Return the values of a column, the most frequent first; None if there are more than `most`, only one, or too
    long ones."""
    # Equally frequent ones are in SQLite's order: null, numbers, texts.
    order = sorted(found, key=lambda pair: (-pair[1], pair[0] is not None, isinstance(pair[0], str), pair[0]))
    values = [value for value, _ in order if value is not None]
    if len(order) < 2 or len(values) > most or any(not is_short(value) for value in values):
        return None
    return Facet(column=name, values=[FacetValue(value=value, count=number) for value, number in order])


def is_short(value: Cell) -> bool:
    """Whether a value can be offered as a filter."""
    return len(value) <= MAX_LENGTH if isinstance(value, str) else value not in (float("inf"), float("-inf"))


def write_condition(filters: dict[str, list[Cell]], where: str | None, columns: list[str]) -> str | None:
    """Combine filters by value and an SQL expression to one expression; None if there are none.

    Raises:
        ValueError: if a filter's column is not in the index, or the expression is invalid.
    """
    conditions = [check_expression(where, [*columns, "path"])] if where is not None and where.strip() else []
    for name, values in filters.items():
        if name not in {*columns, "path"}:
            raise ValueError(f"filters: no column '{name}'; the index has {', '.join([*columns, 'path'])}")
        column, known = quote_name(name), [write_literal(value) for value in values if value is not None]
        choices = [f"{column} IN ({', '.join(known)})"] if known else []
        choices += [f"{column} IS NULL"] if None in values else []
        if choices:
            conditions.append(f"({' OR '.join(choices)})")
    return " AND ".join(conditions) or None


def write_literal(value: str | bool | int | float) -> str:
    """Format a value as an SQL literal."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(int(value)) if isinstance(value, bool) else repr(value)
