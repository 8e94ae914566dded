"""An index stored in a Milvus collection instead of a folder.

    path      primary key; empty for the one entity that holds the metadata of the index
    vector    float32 embedding of the image; zeros if there is none
    found     whether searches find the entity: false for unusable images and for the metadata entity
    columns   columns of the source, as {"c0": ..., "c1": ...}, without missing cells
    row       hash, size, time and description of the image, or why it is unusable, and the frames of a clip; or the
              metadata of the index

An update copies everything but the vectors into a temporary SQLite database, works on it as on an index in a folder,
and writes the changes of each transaction to Milvus before it is committed. Each entity is complete in itself: if an
update is killed, each image of the last batch is either there or not, and the next update continues.
"""

import json
import logging
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from .clips import clip_from_json, clip_to_json
from .milvus_where import write
from .store import CLIPS, SCHEMA, WITHOUT_CLIPS, IndexStore
from .vectors import row_type


SCHEMES = ("http://", "https://")
SECONDS, CONNECT_SECONDS = 120, 10  # timeouts of one call
ROWS_AT_ONCE = 500  # entities with vectors per message, which may have at most 64 MB
SCANNED_AT_ONCE = 4_000  # entities without vectors per query
MOST_HITS = 16_384  # Milvus' limit of results per search
LONGEST_TEXT = 65_535  # Milvus' limit in bytes for a path, or for the columns of an image
ROW_BYTES = 1_000  # upper bound for the fields of `row` other than the clip
FIELDS = {"path", "vector", "found", "columns", "row"}
IMAGES = "found == true"
# The paths whose entities differ from Milvus, and the slots of the entities in Milvus.
TABLES = """
CREATE TEMP TABLE changed(path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE remote(path TEXT PRIMARY KEY, slot INTEGER) WITHOUT ROWID;
CREATE INDEX temp.remote_by_slot ON remote(slot);
"""
TRIGGERS = """
CREATE TEMP TRIGGER added AFTER INSERT ON images BEGIN INSERT OR IGNORE INTO changed VALUES (NEW.path); END;
CREATE TEMP TRIGGER removed AFTER DELETE ON images BEGIN INSERT OR IGNORE INTO changed VALUES (OLD.path); END;
CREATE TEMP TRIGGER updated AFTER UPDATE ON images
    BEGIN INSERT OR IGNORE INTO changed VALUES (OLD.path), (NEW.path); END;
CREATE TEMP TRIGGER described AFTER INSERT ON columns
    BEGIN INSERT OR IGNORE INTO changed SELECT path FROM images WHERE id = NEW."hf_cots image"; END;
"""
NEXT_CHANGED = """
SELECT path, images.id, images.slot, hash, size, mtime, reason, described, remote.slot
FROM changed JOIN images USING (path) LEFT JOIN contents ON contents.slot = images.slot LEFT JOIN remote USING (path)
ORDER BY path LIMIT ?
"""


def is_milvus(index: str | Path) -> bool:
    """Whether an index name is the address of a Milvus collection."""
    return str(index).startswith(SCHEMES)


class Collection:
    """A client for one Milvus collection.

    Args:
        uri: its address, `http://host:19530/name`, or with a login `http://user:password@host:19530/name`.

    Raises:
        ModuleNotFoundError: without pymilvus; names the extra to install.
        OSError: if the server does not answer, or refuses.
        ValueError: if the address has no valid collection name, or the collection is not an index.
    """

    def __init__(self, uri: str):
        try:
            import pymilvus
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"pymilvus is not installed, which an index in Milvus needs: pip install 'hf-cots[milvus]' ({error})"
            ) from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs a traceback of each error that it raises
        parts = urlsplit(uri)
        self.name = parts.path.strip("/")
        self.uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        if not self.name.isidentifier() or not self.name.isascii() or not parts.hostname or parts.query:
            raise ValueError(
                f"{self.uri}: the address of an index in Milvus is server and collection, such as "
                "http://127.0.0.1:19530/images; collection names consist of letters, digits and _"
            )
        login = {"user": unquote(parts.username or ""), "password": unquote(parts.password or "")}
        with self._named():
            address = self.uri.removesuffix(parts.path)
            self.client = pymilvus.MilvusClient(address, timeout=CONNECT_SECONDS, **(login if parts.username else {}))
            self.exists = self.client.has_collection(self.name, timeout=SECONDS)
            if self.exists:
                fields = self.client.describe_collection(self.name, timeout=SECONDS)["fields"]
                if {field["name"] for field in fields} != FIELDS:
                    raise ValueError(f"the collection {self.uri} is not an index of images: choose another one")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn the server's errors into one line that names it."""
        import grpc
        import pymilvus

        try:
            yield
        except (pymilvus.exceptions.MilvusException, grpc.RpcError) as error:
            raise OSError(f"{self.uri}: {getattr(error, 'message', None) or error}") from error

    def create(self, dim: int) -> None:
        """Create the collection with a FLAT index, which compares all vectors."""
        import pymilvus

        with self._named():
            schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("path", pymilvus.DataType.VARCHAR, is_primary=True, max_length=LONGEST_TEXT)
            schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=dim)
            schema.add_field("found", pymilvus.DataType.BOOL)
            schema.add_field("columns", pymilvus.DataType.JSON)
            schema.add_field("row", pymilvus.DataType.JSON)
            index = self.client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="IP")
            self.client.create_collection(
                self.name, schema=schema, index_params=index, consistency_level="Strong", timeout=SECONDS
            )

    def read_index(self) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Read the metadata of the index and its columns with their affinities; both empty if it is still being
        created."""
        found = self.query('path == ""', ["row"]) if self.exists else []
        if not found:
            return {}, []
        return found[0]["row"]["meta"], [(name, affinity) for name, affinity in found[0]["row"]["columns"]]

    # Only consistency level "Strong" sees deletions and changes at once.

    def query(
        self, condition: str, fields: Sequence[str], limit: int | None = None, consistency: str = "Strong"
    ) -> list[dict[str, Any]]:
        """Return the entities for which a condition is true; if `limit` is given, the first so many by path."""
        options: dict[str, Any] = {} if limit is None else {"limit": limit}
        with self._named():
            return list(
                self.client.query(
                    self.name, condition, list(fields), timeout=SECONDS, consistency_level=consistency, **options
                )
            )

    def count(self, condition: str) -> int:
        """Count the entities for which a condition is true."""
        return int(self.query(condition, ["count(*)"])[0]["count(*)"])

    def scan(self, fields: Sequence[str], condition: str = 'path != ""') -> Iterator[dict[str, Any]]:
        """Yield all images for which a condition is true, in the order of their paths.

        Raises:
            OSError: if another process wrote to the index in the meantime.
        """
        # pymilvus' own iterator does not quote texts.
        expected, last, count = self.count(condition), "", 0
        while found := self.query(f"{condition} and path > {write(last)}", ["path", *fields], SCANNED_AT_ONCE):
            yield from sorted(found, key=lambda entity: entity["path"])
            last, count = max(entity["path"] for entity in found), count + len(found)
        if count != expected:
            raise OSError(f"{self.uri}: another process is writing the index: try again when it has finished")

    def search(self, vector: np.ndarray, count: int, condition: str) -> list[tuple[str, float, np.ndarray, dict]]:
        """Return (path, float32 score, vector, columns) of the `count` best images for which a condition is true, best
        first."""
        with self._named():
            found = self.client.search(
                self.name,
                data=[vector],
                limit=count,
                filter=condition,
                output_fields=["vector", "columns"],
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
                timeout=SECONDS,
            )[0]
        hits = [(hit["id"], hit["distance"], hit["entity"]) for hit in found]
        return [
            (path, score, np.array(entity["vector"], dtype=np.float32), entity["columns"])
            for path, score, entity in hits
        ]

    def upsert(self, entities: list[dict[str, Any]]) -> None:
        """Write entities, replacing those with the same paths."""
        with self._named():
            self.client.upsert(self.name, entities, timeout=SECONDS)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete entities by path."""
        for part in in_parts(list(paths)):
            with self._named():
                self.client.delete(self.name, filter=among(part), timeout=SECONDS)


def among(paths: Iterable[str]) -> str:
    """Return the condition that selects some paths."""
    return f"path in [{', '.join(map(write, paths))}]"


def in_parts(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), ROWS_AT_ONCE):
        yield items[start : start + ROWS_AT_ONCE]


class MilvusStore(IndexStore):
    """An index in Milvus opened for an update; created if it does not exist.

    Two processes that write at the same time do the same work twice, since entities are identified by path.

    Args:
        uri: see [`Collection`], whose errors are raised too.
        dim: dimension of the vectors.
        meta: metadata of a new index.

    Raises:
        ValueError: if the index has a newer format.
    """

    def __init__(self, uri: str, dim: int, **meta: str):
        self.collection, self._lock, self._snapshot = Collection(uri), None, None
        self.name = self.collection.uri
        self.folder = Path(tempfile.gettempdir())  # folder of SQLite's temporary file
        self.database = sqlite3.connect("", isolation_level=None)
        self.database.executescript(SCHEMA + TABLES)
        kept, columns = self.collection.read_index()
        new = {"format": str(WITHOUT_CLIPS), "dim": str(dim), "dtype": "float32", **meta}
        self.meta = {"version": "0", **(kept or new)}
        self._check_format()
        self.dim, self.dtype = int(self.meta["dim"]), "float32"
        self.precision = self.meta.get("precision", "float32")
        self.row_type = row_type(self.dim, self.dtype)
        if not self.collection.exists:
            self.collection.create(self.dim)
        self.vectors: dict[int, np.ndarray] = {}  # by slot, those that no entity in Milvus has
        self._read_rows(dict(columns))

    def _read_rows(self, affinities: dict[str, str]) -> None:
        """Copy everything but the vectors from Milvus to SQLite; triggers record all later changes."""
        slots: dict[str, int] = {}
        self.database.execute("BEGIN")
        self.set_meta(**self.meta)
        self.add_columns(affinities)
        if self.holds_clips():
            self.database.execute(CLIPS)
        names = self.column_names()
        for image, entity in enumerate(self.collection.scan(["row", "columns"]), start=1):
            row, path = entity["row"], entity["path"]
            slot = None if row["hash"] is None else slots.setdefault(row["hash"], len(slots))
            values = (image, path, slot, row["size"], row["mtime"], row["reason"], row["described"])
            self.database.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            self.database.execute("INSERT INTO remote VALUES (?, ?)", (path, slot))
            self.write_columns(image, {names[int(key[1:])]: cell for key, cell in entity["columns"].items()})
            if row.get("clip") is not None:
                self.write_clips({row["hash"]: clip_from_json(row["clip"])}, int(self.meta["num_frames"]))
        self.database.executemany("INSERT INTO contents(hash, slot) VALUES (?, ?)", slots.items())
        self.database.execute("INSERT INTO batches VALUES (-1, ?, 0)", (len(slots) + 1,))  # sets the next slot
        self.database.execute("COMMIT")
        self.database.executescript(TRIGGERS)

    def close(self) -> None:
        super().close()
        self.collection.client.close()

    # ------------------------------------------------------------------ what an update calls

    def append(self, rows: np.ndarray) -> tuple[int, int]:
        """Hold vectors in memory until a transaction writes the images that use them; returns the first slot, and 0
        for the checksum."""
        first = self.end()
        self.vectors |= dict(enumerate(rows, start=first))
        return first, 0

    def holes(self) -> int:
        return 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with super().transaction() as database:
            yield database
            self._write_index()
            while changed := database.execute(NEXT_CHANGED, (ROWS_AT_ONCE,)).fetchall():
                self._write_images(changed)
            # Deleted last: if killed before, a moved image is there under both names rather than under neither.
            gone = [path for (path,) in database.execute("SELECT path FROM changed")]
            self.collection.delete(gone)
            database.execute("DELETE FROM remote WHERE path IN (SELECT path FROM changed)")
            database.execute("DELETE FROM changed")

    # ------------------------------------------------------------------ writing to Milvus

    def _write_index(self) -> None:
        known = self.meta | {"version": str(self.version() + 1)}  # the version after this transaction
        table = self.database.execute("PRAGMA table_info(columns)").fetchall()[1:]
        columns = [(name, affinity) for _, name, affinity, *_ in table]
        entity = {"path": "", "vector": np.zeros(self.dim, np.float32), "found": False, "columns": {}}
        self.collection.upsert([entity | {"row": {"meta": known, "columns": columns}}])

    def _write_images(self, changed: list[tuple]) -> None:
        vectors = self._find_vectors({slot for row in changed for slot in (row[2], row[-1]) if slot is not None})
        none = np.zeros(self.dim, np.float32)
        entities = []
        for path, image, slot, digest, size, mtime, reason, described, _ in changed:
            row = {"hash": digest, "size": size, "mtime": mtime, "reason": reason, "described": described}
            row |= self._read_clip(digest, path)
            vector = none if slot is None else vectors[slot]
            entities.append({"path": check_path(path), "vector": vector, "found": slot is not None, "row": row})
            entities[-1]["columns"] = self._read_columns(image, path)
        self.collection.upsert(entities)
        paths = [(row[0],) for row in changed]
        self.database.executemany("INSERT OR REPLACE INTO remote SELECT path, slot FROM images WHERE path = ?", paths)
        self.database.executemany("DELETE FROM changed WHERE path = ?", paths)
        held = "SELECT 1 FROM remote WHERE slot = ?"
        self.vectors = {
            slot: vector for slot, vector in vectors.items() if not self.database.execute(held, (slot,)).fetchone()
        } | {slot: vector for slot, vector in self.vectors.items() if slot not in vectors}

    def _find_vectors(self, slots: set[int]) -> dict[int, np.ndarray]:
        """Return the vectors of some slots that are about to be written or overwritten, from memory or from Milvus.

        Raises:
            OSError: if another process has changed them.
        """
        vectors = {slot: self.vectors[slot] for slot in slots if slot in self.vectors}
        select = "SELECT path, hash FROM remote JOIN contents USING (slot) WHERE slot = ? LIMIT 1"
        places = {slot: self.database.execute(select, (slot,)).fetchone() for slot in slots - vectors.keys()}
        wanted = {place[0]: (slot, place[1]) for slot, place in places.items() if place is not None}
        found = self.collection.query(among(wanted), ["path", "vector", "row"]) if wanted else []
        for entity in found:
            slot, digest = wanted[entity["path"]]
            if entity["row"]["hash"] == digest:
                vectors[slot] = np.array(entity["vector"], dtype=np.float32)
        if not vectors.keys() >= slots:
            raise OSError(f"{self.name}: another process is writing the index: try again when it has finished")
        return vectors

    def _read_clip(self, digest: str, path: str) -> dict[str, Any]:
        """Return the frames of a clip as stored in Milvus; empty for an image.

        Raises:
            ValueError: if they are too large.
        """
        select = "SELECT times, duration, vectors FROM clips WHERE hash = ?"
        found = self.database.execute(select, (digest,)).fetchone() if self.holds_clips() else None
        if found is None:
            return {}
        clip = clip_to_json(*found)
        if len(json.dumps(clip)) > LONGEST_TEXT - ROW_BYTES:
            raise ValueError(
                f"{path}: its {len(clip['times'])} frames exceed Milvus' size limit: use an index in a folder, or a "
                "model with a lower num_frames"
            )
        return {"clip": clip}

    def _read_columns(self, image: int, path: str) -> dict[str, Any]:
        """Return the columns of an image as stored in Milvus.

        Raises:
            ValueError: if a value is infinite or they are too large.
        """
        row = self.database.execute('SELECT * FROM columns WHERE "hf_cots image" = ?', (image,)).fetchone() or (image,)
        cells = {f"c{i}": cell for i, cell in enumerate(row[1:]) if cell is not None}
        infinite = [self.column_names()[int(key[1:])] for key, cell in cells.items() if cell in (np.inf, -np.inf)]
        if infinite:
            raise ValueError(f"{path}: column '{infinite[0]}' is infinite, which Milvus cannot store: leave it empty")
        if len(json.dumps(cells, ensure_ascii=False).encode()) > LONGEST_TEXT:
            raise ValueError(
                f"{path}: its columns have more than {LONGEST_TEXT} bytes, the limit of Milvus: remove the longest "
                "from the source"
            )
        return cells


def check_path(path: str) -> str:
    """Check that Milvus can store a path; returns it.

    Raises:
        ValueError: if it is empty or too long.
    """
    if not 0 < len(path.encode()) <= LONGEST_TEXT:
        raise ValueError(f"{path[:40]!r}: names of images in Milvus must have 1 to {LONGEST_TEXT} bytes: rename it")
    return path
