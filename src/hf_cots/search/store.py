"""An index in a folder: rows in SQLite, and vectors in a memory-mapped file beside it.

    index.sqlite     images by path, contents by hash, clips, the columns of the source, and the model
    vectors-N.bin    one vector per distinct content, in the order of the slots; N changes when holes are removed
    approximate-N.faiss     only with approximate search: see `approximate.py`
    lock             held by the one process that writes

Vectors are appended and synced before the transaction that adds their rows. If the process is killed, only whole
batches have rows; vectors at the end of the file without rows are truncated by the next writer. Each batch has a
checksum of its vectors. SQLite's write-ahead log lets readers see the last committed state while a writer works; it
needs a local disk, since network file systems do not lock reliably.
"""

import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from filelock import FileLock, Timeout

from .clips import ClipFrames, pack_clip, unpack_clip
from .vectors import row_type, sign_bits, unpack


logger = logging.getLogger(__name__)

FORMAT = 2
WITHOUT_CLIPS = 1  # the format of an index without clips, which older versions can read
DATABASE = "index.sqlite"
OWN_FILES = (DATABASE, "vectors-", "approximate-", "lock")
BUSY_SECONDS = 30
WAIT_SECONDS = 3600  # for another writer, with `wait`
ATTEMPTS = 20  # to open the vectors' file, which a writer may replace at the same moment
CHECKED = 65_536  # rows that are copied or checksummed at a time
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batches(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE contents(slot INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE);
CREATE TABLE images(
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, slot INTEGER, size INTEGER, mtime INTEGER, reason TEXT,
    described TEXT
);
CREATE INDEX images_by_slot ON images(slot);
CREATE TABLE columns("hf_cots image" INTEGER PRIMARY KEY);
"""
# Created with the first clip. Keyed by content hash, since slots change when holes are removed.
CLIPS = """
CREATE TABLE IF NOT EXISTS clips(
    hash TEXT PRIMARY KEY, duration REAL NOT NULL, times BLOB NOT NULL, vectors BLOB NOT NULL
) WITHOUT ROWID
"""


def is_index(folder: Path | str) -> bool:
    """Whether a folder contains an index."""
    return (Path(folder) / DATABASE).is_file()


@contextmanager
def named_database(folder: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line that names the index.

    Raises:
        OSError: if it is locked, full, or not readable.
        ValueError: if it is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"the index {folder}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{folder / DATABASE} is damaged ({error}): delete the folder and index again") from error


class Snapshot:
    """A committed state of an index.

    Attributes:
        version: version of the index; see [`IndexStore.version`].
        rows: (end,) stored vectors, memory-mapped.
        live: (end,) bool, the slots with a vector of some image; None if all have one.
        count: number of live slots.
    """

    def __init__(self, version: int, rows: np.ndarray, live: np.ndarray | None):
        self.version, self.rows, self.live = version, rows, live
        self.count = len(rows) if live is None else int(live.sum())

    @cached_property
    def bits(self) -> np.ndarray:
        """The signs of all vectors; see [`sign_bits`]."""
        return sign_bits(self.rows)

    def vectors(self, slots: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the (n, D) float32 vectors of some slots."""
        return np.ascontiguousarray(unpack(self.rows[np.asarray(slots, dtype=np.int64)]))


class IndexStore:
    """The files of an index, opened for reading, or for writing by one process at a time.

    Args:
        folder: folder of the index.
        writable: take the lock, truncate vectors without rows, and discard damaged batches.
        wait: wait for another writer instead of raising an error.

    Raises:
        FileNotFoundError: if there is no index.
        OSError: if another process is writing, or the files cannot be opened.
        ValueError: if the index has a newer format or is damaged.
    """

    def __init__(self, folder: Path | str, writable: bool = False, wait: bool = False):
        self.folder, self.name, self.writable = Path(folder), str(folder), writable
        if not is_index(self.folder):
            raise FileNotFoundError(
                f"no index in {folder}: create one with `hf-cots index MODEL SOURCE --to {folder}`"
            )
        self._snapshot: Snapshot | None = None
        self._lock = take_lock(self.folder, wait) if writable else None
        try:
            with named_database(self.folder):
                self.database = connect(self.folder, writable)
                self.meta = dict(self.database.execute("SELECT key, value FROM meta"))
            self._check_format()
            self.dim, self.dtype = int(self.meta["dim"]), self.meta["dtype"]
            self.precision = self.meta.get("precision", "float32")  # precision of the model
            self.row_type = row_type(self.dim, self.dtype)
            if writable:
                self._recover()
            else:
                self._check_last_batch()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path | str, dim: int, dtype: str, wait: bool = False, **meta: str) -> "IndexStore":
        """Create an empty index, or open the one that another process has just created.

        Args:
            folder: folder of the index; created if it does not exist.
            dim, dtype: dimension and dtype of the vectors.
            wait: wait for another writer instead of raising an error.
            meta: further metadata of the index.

        Raises:
            OSError: if the folder cannot be written, or contains other files.
        """
        row_type(dim, dtype)
        folder = Path(folder)
        others = [path.name for path in folder.glob("*") if not path.name.startswith(OWN_FILES)]
        if others:
            raise OSError(
                f"{folder} is not an index and contains other files, such as {others[0]}: choose a new folder with "
                "--to"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot create the index {folder}: {error.strerror}") from error
        lock = take_lock(folder, wait)
        try:
            if not is_index(folder):
                draft = folder / f"{DATABASE}.draft"
                draft.unlink(missing_ok=True)
                with named_database(folder):
                    database = sqlite3.connect(draft)
                    database.executescript(SCHEMA)
                    values = {"format": str(WITHOUT_CLIPS), "dim": str(dim), "dtype": dtype, "version": "0"}
                    values |= {"file": "vectors-0.bin", **meta}
                    database.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
                    database.commit()
                    database.close()
                (folder / "vectors-0.bin").touch()
                os.replace(draft, folder / DATABASE)
        finally:
            lock.release()
        return cls(folder, writable=True, wait=wait)

    def _check_format(self) -> None:
        found = int(self.meta.get("format", 0))
        if found > FORMAT:
            raise ValueError(
                f"the index {self.name} has format {found}, but this version of hf_cots only reads formats up to "
                f"{FORMAT}: upgrade hf-cots"
            )

    def close(self) -> None:
        """Close the database and release the lock."""
        if getattr(self, "database", None) is not None:
            self.database.close()
        if self._lock is not None:
            self._lock.release()

    # ------------------------------------------------------------------ reading

    def version(self) -> int:
        """Return a number that grows with each committed transaction."""
        return int(self.database.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()[0])

    @contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """Read within one transaction, so that everything read belongs to the last committed state."""
        with named_database(self.folder):
            for attempt in range(ATTEMPTS):
                self.database.execute("BEGIN")
                try:
                    if self._snapshot is None or self._snapshot.version != self.version():
                        self._snapshot = self._take_snapshot()
                    break
                except FileNotFoundError:  # holes have just been removed: the next version has another file
                    self.database.execute("COMMIT")
                    if attempt == ATTEMPTS - 1:
                        raise self._damage(f"{self.vectors_path} is missing") from None
                except BaseException:
                    self.database.execute("COMMIT")
                    raise
            try:
                yield self._snapshot  # type: ignore[misc]
            finally:
                self.database.execute("COMMIT")

    def _take_snapshot(self) -> Snapshot:
        self.meta = dict(self.database.execute("SELECT key, value FROM meta"))
        end, live = self.end(), None
        if self.database.execute("SELECT count(*) FROM contents").fetchone()[0] != end:
            live = np.zeros(end, dtype=bool)
            live[[slot for (slot,) in self.database.execute("SELECT slot FROM contents")]] = True
        return Snapshot(int(self.meta["version"]), self._map(end), live)

    def end(self) -> int:
        """Return the slot after the last one."""
        return self.database.execute("SELECT coalesce(max(first + count), 0) FROM batches").fetchone()[0]

    @property
    def vectors_path(self) -> Path:
        return self.folder / self.meta["file"]

    def _map(self, end: int) -> np.ndarray:
        if end == 0:
            return np.empty(0, dtype=self.row_type)
        if self.vectors_path.stat().st_size < end * self.row_type.itemsize:
            raise self._damage(f"{self.vectors_path} is truncated")
        return np.memmap(self.vectors_path, dtype=self.row_type, mode="r", shape=(end,))

    def _damage(self, what: str) -> ValueError:
        return ValueError(
            f"{what}: run `hf-cots index MODEL SOURCE --to {self.folder}`, which encodes again what is lost"
        )

    def column_names(self) -> list[str]:
        """Return the names of the stored columns of the source."""
        names = [name for _, name, *_ in self.database.execute("PRAGMA table_info(columns)")]
        return names[1:]

    def holds_clips(self) -> bool:
        """Whether the index contains, or has ever contained, a clip."""
        return "num_frames" in self.meta

    def read_clips(self, slots: Iterable[int]) -> dict[int, ClipFrames]:
        """Read the stored frames of the clips among some slots."""
        if not self.holds_clips():
            return {}
        select = "SELECT times, duration, vectors FROM clips JOIN contents USING (hash) WHERE slot = ?"
        rows = {slot: self.database.execute(select, (slot,)).fetchone() for slot in slots}
        return {slot: unpack_clip(*row) for slot, row in rows.items() if row is not None}

    def count_clips(self) -> int:
        """Count the images that are clips."""
        if not self.holds_clips():
            return 0
        joined = "images JOIN contents USING (slot) JOIN clips USING (hash)"
        return self.database.execute(f"SELECT count(*) FROM {joined}").fetchone()[0]

    def text_columns(self) -> list[str]:
        """Return the names of the stored columns that contain texts, lists or objects."""
        return [name for _, name, kind, *_ in self.database.execute("PRAGMA table_info(columns)") if kind == "TEXT"]

    # ------------------------------------------------------------------ checks

    def _checksum(self, rows: np.ndarray) -> int:
        value = 0
        for start in range(0, len(rows), CHECKED):
            value = zlib.crc32(rows[start : start + CHECKED].tobytes(), value)
        return value

    def _find_damage(self, only_last: bool) -> list[tuple[int, int]]:
        """Return (first, count) of the batches whose vectors have a wrong checksum or lie beyond the file's end."""

        order = "SELECT first, count, checksum FROM batches ORDER BY first DESC" + (" LIMIT 1" if only_last else "")
        size = self.vectors_path.stat().st_size if self.vectors_path.is_file() else 0
        held = size // self.row_type.itemsize
        rows = np.memmap(self.vectors_path, dtype=self.row_type, mode="r", shape=(held,)) if held else None
        found = []
        for first, count, checksum in self.database.execute(order).fetchall():
            if first + count > held or self._checksum(rows[first : first + count]) != checksum:  # type: ignore[index]
                found.append((first, count))
        return found

    def _check_last_batch(self) -> None:
        """Check the last batch and, only if it is damaged, the others: a power failure damages the end of the file.

        Raises:
            ValueError: saying how much is damaged.
        """
        with named_database(self.folder):
            for _ in range(ATTEMPTS):
                self.database.execute("BEGIN")
                self.meta = dict(self.database.execute("SELECT key, value FROM meta"))
                damaged = self._find_damage(only_last=True) and self._find_damage(only_last=False)
                self.database.execute("COMMIT")
                if not damaged:
                    return
                now = self.database.execute("SELECT value FROM meta WHERE key = 'file'").fetchone()[0]
                if now == self.meta["file"]:  # otherwise this file was replaced, as holes have just been removed
                    lost = sum(count for _, count in damaged)
                    raise self._damage(f"{self.vectors_path} is damaged: {len(damaged)} batches of {lost} vectors")

    def _recover(self) -> None:
        """Discard damaged batches, and remove vectors without rows and old files."""
        with named_database(self.folder):
            damaged = self._find_damage(only_last=False)
            if damaged:
                with self.transaction():
                    # The slots may get other vectors.
                    self.database.execute("DELETE FROM meta WHERE key = 'approximate'")
                    for first, count in damaged:
                        bounds = (first, first + count)
                        self.database.execute("DELETE FROM batches WHERE first = ?", (first,))
                        self.database.execute("DELETE FROM contents WHERE slot >= ? AND slot < ?", bounds)
                        # The images stay, without a vector or a stamp, so that they are read again.
                        self.database.execute(
                            "UPDATE images SET slot = NULL, size = NULL, mtime = NULL WHERE slot >= ? AND slot < ?",
                            bounds,
                        )
                lost = sum(count for _, count in damaged)
                logger.warning(
                    "%s is damaged: %d vectors are discarded and their images will be encoded again",
                    self.vectors_path,
                    lost,
                )
            end = self.end() * self.row_type.itemsize
        with open(self.vectors_path, "ab") as file:
            if file.tell() > end:
                file.truncate(end)
        for path in self.folder.glob("vectors-*.bin"):
            if path.name != self.meta["file"]:
                path.unlink()

    # ------------------------------------------------------------------ writing

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything that is written within, or nothing if an error is raised."""
        with named_database(self.folder):
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield self.database
                self.database.execute("UPDATE meta SET value = value + 1 WHERE key = 'version'")
                self.database.execute("COMMIT")
            except BaseException:
                self.database.execute("ROLLBACK")
                raise

    def append(self, rows: np.ndarray) -> tuple[int, int]:
        """Append packed vectors to the file and sync it; returns the slot of the first one, and their checksum."""
        first = self.end()
        with open(self.vectors_path, "r+b") as file:
            file.seek(first * self.row_type.itemsize)
            file.truncate()
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        return first, self._checksum(rows)

    def set_meta(self, **values: str) -> None:
        """Write metadata; call within a transaction."""
        self.database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
        self.meta |= values

    def write_clips(self, clips: dict[str, ClipFrames], num_frames: int) -> None:
        """Write the frames of clips; call within a transaction.

        Args:
            clips: clips by content hash.
            num_frames: number of frames that were sampled from each.
        """
        if not clips:
            return
        self.database.execute(CLIPS)
        self.set_meta(format=str(FORMAT), num_frames=str(num_frames))
        rows = ((digest, *pack_clip(clip)) for digest, clip in clips.items())
        self.database.executemany(
            "INSERT OR REPLACE INTO clips(hash, times, duration, vectors) VALUES (?, ?, ?, ?)", rows
        )

    def add_columns(self, affinities: dict[str, str]) -> None:
        """Add columns of the source that do not exist yet, each with its affinity.

        Raises:
            ValueError: if two columns differ only in case, which SQLite does not tell apart.
        """
        present = {name.lower(): name for name in self.column_names()}
        for name, affinity in affinities.items():
            if name not in present.values():
                if name.lower() in present:
                    raise ValueError(
                        f"columns '{present[name.lower()]}' and '{name}' differ only in case, which an index does not "
                        "support: rename one"
                    )
                self.database.execute(f"ALTER TABLE columns ADD COLUMN {quote_name(name)} {affinity}")
                present[name.lower()] = name

    def write_columns(self, image: int, values: dict[str, Any]) -> None:
        """Write the columns of an image, replacing the previous ones."""
        names = "".join(f", {quote_name(name)}" for name in values)
        marks = ", ?" * len(values)
        self.database.execute(
            f'INSERT OR REPLACE INTO columns("hf_cots image"{names}) VALUES (?{marks})', (image, *values.values())
        )

    def remove_images(self, ids: Iterable[int]) -> None:
        """Remove images, and contents that no image has any more."""
        removed = [(image,) for image in ids]
        self.database.executemany("DELETE FROM images WHERE id = ?", removed)
        self.database.executemany('DELETE FROM columns WHERE "hf_cots image" = ?', removed)
        self.database.execute(
            "DELETE FROM contents WHERE slot NOT IN (SELECT slot FROM images WHERE slot IS NOT NULL)"
        )
        if self.holds_clips():
            self.database.execute("DELETE FROM clips WHERE hash NOT IN (SELECT hash FROM contents)")

    def holes(self) -> int:
        """Count the slots whose vectors belong to no image."""
        return self.end() - self.database.execute("SELECT count(*) FROM contents").fetchone()[0]

    def compact(self) -> None:
        """Copy the vectors in use to a new file, and switch to it in one transaction."""
        slots = np.array([slot for (slot,) in self.database.execute("SELECT slot FROM contents ORDER BY slot")], int)
        rows, old = self._map(self.end()), self.vectors_path
        new = f"vectors-{int(old.stem.partition('-')[2]) + 1}.bin"
        batches = []
        with open(self.folder / new, "wb") as file:
            for start in range(0, len(slots), CHECKED):
                part = np.ascontiguousarray(rows[slots[start : start + CHECKED]])
                file.write(part.tobytes())
                batches.append((start, len(part), self._checksum(part)))
            file.flush()
            os.fsync(file.fileno())
        with self.transaction() as database:
            database.execute("CREATE TEMP TABLE moves(old INTEGER PRIMARY KEY, new INTEGER, hash TEXT)")
            database.execute(
                "INSERT INTO moves SELECT slot, row_number() OVER (ORDER BY slot) - 1, hash FROM contents"
            )
            database.execute("DELETE FROM contents")
            database.execute("INSERT INTO contents SELECT new, hash FROM moves")
            database.execute(
                "UPDATE images SET slot = (SELECT new FROM moves WHERE old = slot) WHERE slot IS NOT NULL"
            )
            database.execute("DELETE FROM batches")
            database.executemany("INSERT INTO batches VALUES (?, ?, ?)", batches)
            database.execute("DROP TABLE moves")
            self.set_meta(file=new)
        old.unlink(missing_ok=True)


def connect(folder: Path, writable: bool) -> sqlite3.Connection:
    """Open the database of an index.

    A write-ahead log cannot be created in a read-only folder, so the database is opened as immutable. If another user
    changes it, it must be opened again.
    """
    path = quote(str((folder / DATABASE).absolute()))
    mode = "rw" if writable else "ro"
    log = folder / f"{DATABASE}-wal"
    if not writable and not os.access(folder, os.W_OK) and not (log.is_file() and log.stat().st_size):
        mode = "ro&immutable=1"
    database = sqlite3.connect(
        f"file:{path}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    if writable:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    return database


def take_lock(folder: Path, wait: bool) -> FileLock:
    """Take the lock of an index's one writer.

    Raises:
        OSError: if another process holds it, or the folder cannot be written.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=WAIT_SECONDS if wait else 0)
    except Timeout:
        raise OSError(f"the index {folder} is being written by another process: wait until it has finished") from None
    except OSError as error:
        raise OSError(f"cannot write the index {folder}: {error.strerror}") from error
    return lock


def quote_name(name: str) -> str:
    """Quote a column name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def to_value(cell: Any) -> Any:
    """Convert a cell of the source to an SQLite value; lists and objects become JSON."""
    if cell is None or isinstance(cell, (str, float)):
        return None if cell != cell else cell
    if isinstance(cell, (bool, int)):
        return int(cell) if -(2**63) <= cell < 2**63 else str(cell)
    return json.dumps(cell, ensure_ascii=False, default=str)


def find_affinity(values: Sequence[Any]) -> str:
    """Return the affinity of a column: NUMERIC for numbers, even if they are written as text; else TEXT."""
    return "NUMERIC" if all(_is_number(value) for value in values if value is not None) and values else "TEXT"


def _is_number(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, (int, float))
    digits = value.removeprefix("-")
    whole, _, rest = digits.partition(".")
    plain = whole.isascii() and whole.isdigit() and (whole == "0" or not whole.startswith("0"))
    return plain and (rest == "" if "." not in digits else rest.isascii() and rest.isdigit())
