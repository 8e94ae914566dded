"""Keyword search with SQLite's FTS5, and its fusion with vector search.

The words of the searched columns are indexed in memory at the first search and again after an update, which takes
half a second for two columns of 150,000 images. So an index stores no keywords that could disagree with its columns.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np


RANK_CONSTANT = 60  # the constant of reciprocal rank fusion, as in its paper
WINDOW = 1_000  # how many of each ranking are fused, as in that paper; more if more results are requested
KEPT_TABLES = 4
KEPT_WORDS = 10_000  # words for which a table caches whether they are frequent
TOKENIZER = "unicode61 remove_diacritics 2"  # words are runs of letters and digits; case and accents are ignored


class KeywordTable:
    """A full-text index of some columns of the images.

    Args:
        rows: id, slot and cells of each image.
        columns: number of cells per image.

    Raises:
        sqlite3.OperationalError: if this SQLite has no FTS5.
    """

    def __init__(self, rows: Sequence[Sequence[Any]], columns: int):
        names = ", ".join(f"c{i}" for i in range(columns))
        self.database = sqlite3.connect(":memory:", check_same_thread=False)
        self.database.execute(
            f"CREATE VIRTUAL TABLE words USING fts5({names}, content = '', tokenize = '{TOKENIZER}')"
        )
        texts = ((i, *map(to_text, cells)) for i, (_, _, *cells) in enumerate(rows))
        marks = ", ?" * columns
        with self.database:
            self.database.executemany(f"INSERT INTO words(rowid, {names}) VALUES (?{marks})", texts)
        self.images = np.array([row[0] for row in rows], dtype=np.int64)
        self.slots = np.array([row[1] for row in rows], dtype=np.int64)
        self._is_frequent = lru_cache(KEPT_WORDS)(self._match_half)

    def scores(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the images that contain at least one word of a text.

        Words that occur in more than half of the images are ignored, unless no image contains any of the others.

        Returns:
            (m,) int64 ids, (m,) int64 slots and (m,) float64 scores, unsorted. Scores are BM25 of the words over all
            columns, as computed by FTS5 with k1 = 1.2 and b = 0.75.
        """
        words = split_words(text)
        found = self._match([word for word in words if not self._is_frequent(word)]) or self._match(words)
        numbers = np.array([number for number, _ in found], dtype=np.int64)
        return self.images[numbers], self.slots[numbers], -np.array([score for _, score in found], dtype=np.float64)

    def _match(self, words: Sequence[str]) -> list[tuple[int, float]]:
        select = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ?"
        return self.database.execute(select, (" OR ".join(words),)).fetchall() if words else []

    def _match_half(self, word: str) -> bool:
        """Whether a word occurs in more than half of the images."""
        most = len(self.images) // 2
        select = f"SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT {most + 1})"
        return self.database.execute(select, (word,)).fetchone()[0] > most


class KeywordTables:
    """A cache of the most recently used keyword tables, for one version of an index."""

    def __init__(self) -> None:
        self._version = -1
        self._tables: dict[tuple[str, ...], KeywordTable] = {}

    def get(self, version: int, columns: tuple[str, ...], read: Callable[[], Sequence[Sequence[Any]]]) -> KeywordTable:
        """Return the table of some columns at a version of the index; if it is not cached, `read` returns its rows."""
        if version != self._version:
            self._version, self._tables = version, {}
        table = self._tables.pop(columns, None) or KeywordTable(read(), len(columns))
        while len(self._tables) >= KEPT_TABLES:
            del self._tables[next(iter(self._tables))]
        self._tables[columns] = table  # reinserted as the most recently used
        return table


def split_words(text: str) -> list[str]:
    """Split a text at spaces into distinct words, each quoted for FTS5 so that no character in it is an operator.

    A word with punctuation, such as "right-click", matches its parts in sequence; one of punctuation alone matches
    nothing.

    """
    readable = text.encode(errors="replace").decode().replace("\0", " ")
    return ['"' + word.replace('"', '""') + '"' for word in dict.fromkeys(readable.split())]


def to_text(cell: Any) -> str:
    """Convert a cell of an index to text; for lists and objects, which are stored as JSON, the values in them."""
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        try:
            return "\n".join(list_values(json.loads(cell)))
        except (ValueError, RecursionError):  # a text that only looks like JSON
            return cell
    return "" if cell is None else str(cell)


def list_values(value: Any) -> Iterator[str]:
    """Yield the values in a list or object and in nested ones, as texts."""
    if isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from list_values(each)
    elif value is not None:
        yield str(value)


def check_columns(hybrid: str | Sequence[str] | None, columns: Sequence[str], text: str | None) -> tuple[str, ...]:
    """Check the columns of a hybrid search; returns each once, in the order of the index, or none if `hybrid` is None.

    Args:
        hybrid: one column name or several.
        columns: columns of the index; `path` can be searched, too.
        text: the query text.

    Raises:
        ValueError: if a column does not exist, none is named, or there is no text.
    """
    if hybrid is None:
        return ()
    known = [*columns, *(["path"] if "path" not in map(str.lower, columns) else [])]
    named = [hybrid] if isinstance(hybrid, str) else list(hybrid)
    unknown = next((name for name in named if name not in known), None)
    if unknown is not None or not named:
        problem = "names no column" if unknown is None else f"no column '{unknown}'"
        raise ValueError(f"--hybrid: {problem}; the index has {', '.join(known)}")
    if text is None:
        raise ValueError("--hybrid needs a text to search for")
    return tuple(name for name in known if name in named)


def fuse(similarities: dict[int, float], by_words: dict[int, float], window: int) -> dict[int, float]:
    """Sum each image's reciprocal ranks by similarity and by words; ranks beyond `window` contribute 0.

    Args:
        similarities: similarity by image id, at least for the best `window` images, those that tie with the last, and
            all images in `by_words`.
        by_words: keyword score by image id, for the best `window` images and those that tie with the last.
        window: number of images of each ranking that count.
    """
    scores = np.array([by_words.get(image, -np.inf) for image in similarities])
    fused = reciprocal_ranks(np.array(list(similarities.values())), window) + reciprocal_ranks(scores, window)
    return dict(zip(similarities, fused.tolist()))


def reciprocal_ranks(scores: np.ndarray, window: int) -> np.ndarray:
    """Compute 1 / (60 + rank) of each score, the terms of reciprocal rank fusion.

    Source: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
    Methods", SIGIR 2009. Equal scores share the best of their ranks, so that a hundred images of the same name are
    ordered by the other ranking, not by their paths.

    Args:
        scores: (n,), larger is better; -inf where the ranking does not contain the image.
        window: ranks beyond it contribute 0.
    """
    rank = 1 + np.searchsorted(np.sort(-scores), -scores, side="left")
    return np.where((rank <= window) & np.isfinite(scores), 1 / (RANK_CONSTANT + rank), 0.0)
