"""What a page must know of an index beside its search: which image a row is, and the values of its columns."""

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


MAX_VALUES = 24  # of a column that is offered as a filter
MAX_LENGTH = 80  # characters of such a value


class Location(NamedTuple):
    """Where an image of the index is, and the hash of its bytes; of a clip, the seconds of its frames."""

    path: Path
    digest: str
    times: tuple[float, ...] | None = None


class Catalog:
    """Reads rows of an index over a connection of its own, so that images need not wait for searches.

    Args:
        index: opened for searching.

    Attributes:
        name: of the index, for a heading.

    Raises:
        OSError, ValueError: as [`IndexStore`].
    """

    def __init__(self, index: DiskIndex):
        self.index, self.root, self.name = index, index.root, index.folder.resolve().name
        self.store, self._file = IndexStore(index.folder), self._find_file()
        self._noted_root = self.store.meta.get("root")
        self._lock = threading.Lock()
        self._described: tuple[int, int, list[str], list[str], list[Facet]] | None = None

    def _find_file(self) -> tuple[int, int]:
        """Which file the database is: another one if the index was made anew in the same folder."""
        stat = (self.index.folder / DATABASE).stat()
        return stat.st_dev, stat.st_ino

    def is_outdated(self) -> bool:
        """Whether the index was replaced, or its images have moved; updates are seen without opening it again."""
        moved = self.store.meta.get("root") != self._noted_root  # as of the last time that rows were read
        return moved or self._find_file() != self._file

    def reopen(self) -> DiskIndex:
        """The index as it is now; errors as [`DiskIndex`]."""
        return DiskIndex(self.index.folder, self.index.encoder)

    def number(self, match: Match) -> int:
        """The number of a match's image, by which requests name it."""
        return match.id or 0

    def locate(self, image: int) -> Location | None:
        """Where an image is; None if the index has no such row."""
        select = "SELECT path, hash, slot FROM images JOIN contents USING (slot) WHERE id = ?"
        with self._lock, self.store.reading():
            row = self.store.database.execute(select, (image,)).fetchone()
            if row is None:
                return None
            clip = self.store.read_clips([row[2]]).get(row[2])
        return Location(place(self.root, row[0]), row[1], None if clip is None else clip.times)

    def vector(self, image: int) -> np.ndarray | None:
        """The embedding (D,) of an image; None if the index has no such row."""
        with self._lock, self.store.reading() as snapshot:
            row = self.store.database.execute("SELECT slot FROM images WHERE id = ?", (image,)).fetchone()
            if row is None or row[0] is None:
                return None
            return l2_normalize(snapshot.vectors([row[0]]))[0]

    def describe(self) -> tuple[int, list[str], list[str], list[Facet]]:
        """The number of images, the columns, those of text and `path`, and those that have few values, with these."""
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
        """The values of a column, the most frequent first; None if they are many, one, or long."""
        database, column = self.store.database, quote_name(name)
        most = most_values(count)
        distinct = f"SELECT count(*) FROM (SELECT DISTINCT {column} FROM columns LIMIT {most + 2})"  # stops early
        if not 2 <= database.execute(distinct).fetchone()[0] <= most + 1:
            return None
        found = database.execute(
            f'SELECT columns.{column}, count(*) FROM images LEFT JOIN columns ON "hf_cots image" = images.id '
            f"WHERE images.slot IS NOT NULL GROUP BY 1"
        ).fetchall()
        return make_facet(name, found, most)


def most_values(images: int) -> int:
    """How many values a column of so many images may have to be offered as a filter."""
    return min(MAX_VALUES, images // 2)


def make_facet(name: str, found: Iterable[tuple[Cell, int]], most: int) -> Facet | None:
    """The values of a column, the most frequent first; None if they are more than `most`, one, or long."""
    # Of equally frequent ones in the order of SQLite: nothing, numbers, texts.
    order = sorted(found, key=lambda pair: (-pair[1], pair[0] is not None, isinstance(pair[0], str), pair[0]))
    values = [value for value, _ in order if value is not None]
    if len(order) < 2 or len(values) > most or any(not is_short(value) for value in values):
        return None
    return Facet(column=name, values=[FacetValue(value=value, count=number) for value, number in order])


def is_short(value: Cell) -> bool:
    """Whether a value can be offered as a filter."""
    return len(value) <= MAX_LENGTH if isinstance(value, str) else value not in (float("inf"), float("-inf"))


def write_condition(filters: dict[str, list[Cell]], where: str | None, columns: list[str]) -> str | None:
    """Filters by values and an SQL expression as one expression; None if there are none.

    Raises:
        ValueError: if a filter is of no column of the index, or the expression is not one.
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
    """A value as SQL writes it."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(int(value)) if isinstance(value, bool) else repr(value)
