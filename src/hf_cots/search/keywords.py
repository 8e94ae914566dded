"""Search by words, with SQLite's FTS5, and its fusion with the search by vectors.

The words of the columns that are asked for are put into a table in memory, when they are first asked for and again
after an update: two columns of 150,000 images take half a second. So an index has no keywords of its own that could
disagree with its columns.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np


RANK_CONSTANT = 60  # of the reciprocal ranks, as in their paper
WINDOW = 1_000  # the best of each ranking that are fused, as in that paper; more if more results are wanted
KEPT_TABLES = 4
KEPT_WORDS = 10_000  # of which a table remembers whether they are frequent
TOKENIZER = "unicode61 remove_diacritics 2"  # words are runs of letters and digits; case and accents do not count


class KeywordTable:
    """The words of some columns of the images.

    Args:
        rows: of each image its id, its slot and its cells.
        columns: the number of cells.

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
        """Find the images that have at least one word of a text.

        Words that more than half of the images have tell little and match much: they count only where no image has any
        of the others.

        Returns:
            (m,) int64 ids, (m,) int64 slots and (m,) float64 scores, in no order: BM25 of the words over all columns,
            as FTS5 computes it with k1 = 1.2 and b = 0.75.
        """
        words = split_words(text)
        found = self._match([word for word in words if not self._is_frequent(word)]) or self._match(words)
        numbers = np.array([number for number, _ in found], dtype=np.int64)
        return self.images[numbers], self.slots[numbers], -np.array([score for _, score in found], dtype=np.float64)

    def _match(self, words: Sequence[str]) -> list[tuple[int, float]]:
        select = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ?"
        return self.database.execute(select, (" OR ".join(words),)).fetchall() if words else []

    def _match_half(self, word: str) -> bool:
        """Whether more than half of the images have a word."""
        most = len(self.images) // 2
        select = f"SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT {most + 1})"
        return self.database.execute(select, (word,)).fetchone()[0] > most


class KeywordTables:
    """The tables of the columns that were asked for last, of one state of an index."""

    def __init__(self) -> None:
        self._version = -1
        self._tables: dict[tuple[str, ...], KeywordTable] = {}

    def get(self, version: int, columns: tuple[str, ...], read: Callable[[], Sequence[Sequence[Any]]]) -> KeywordTable:
        """The table of some columns at some version of the index, whose rows `read` gives if they are needed."""
        if version != self._version:
            self._version, self._tables = version, {}
        table = self._tables.pop(columns, None) or KeywordTable(read(), len(columns))
        while len(self._tables) >= KEPT_TABLES:
            del self._tables[next(iter(self._tables))]
        self._tables[columns] = table  # the last one that was used
        return table


def split_words(text: str) -> list[str]:
    """The words of a text between spaces, each as FTS5 quotes it, so that no character in it is an operator.

    A word that holds punctuation, such as "right-click", stands for its parts one after another; one that holds
    nothing else, for nothing.
    """
    readable = text.encode(errors="replace").decode().replace("\0", " ")
    return ['"' + word.replace('"', '""') + '"' for word in dict.fromkeys(readable.split())]


def to_text(cell: Any) -> str:
    """A cell of an index as text; of lists and objects, which are kept as JSON, what they hold."""
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        try:
            return "\n".join(list_values(json.loads(cell)))
        except (ValueError, RecursionError):  # a text that only looks like it
            return cell
    return "" if cell is None else str(cell)


def list_values(value: Any) -> Iterator[str]:
    """The values in a list or object, and in those within."""
    if isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from list_values(each)
    elif value is not None:
        yield str(value)


def check_columns(hybrid: str | Sequence[str] | None, columns: Sequence[str], text: str | None) -> tuple[str, ...]:
    """The columns that a hybrid search names, each once, in the order of the index; none without such a search.

    Args:
        hybrid: one name, or several.
        columns: of the index; `path` can be searched, too.
        text: what is searched for.

    Raises:
        ValueError: if there is no such column, none is named, or there is no text.
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
    """The sum of an image's reciprocal ranks by similarity and by words, where it is among the best `window`.

    Args:
        similarities: by image id; at least of the best `window` images, of those that tie with the last, and of all
            that are in `by_words`.
        by_words: the same of the words.
    """
    scores = np.array([by_words.get(image, -np.inf) for image in similarities])
    fused = reciprocal_ranks(np.array(list(similarities.values())), window) + reciprocal_ranks(scores, window)
    return dict(zip(similarities, fused.tolist()))


def reciprocal_ranks(scores: np.ndarray, window: int) -> np.ndarray:
    """1 / (60 + rank) of each score, to be summed over rankings.

    Source: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
    Methods", SIGIR 2009. Equal scores have one rank, the best of theirs: a hundred images of the same name are then
    ordered by the other ranking, not by their paths.

    Args:
        scores: (n,), larger is better; -inf where the ranking does not have the image.
        window: ranks beyond it count 0.
    """
    rank = 1 + np.searchsorted(np.sort(-scores), -scores, side="left")
    return np.where((rank <= window) & np.isfinite(scores), 1 / (RANK_CONSTANT + rank), 0.0)
