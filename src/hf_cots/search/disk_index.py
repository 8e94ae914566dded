"""An index in a folder: brought up to date by content, filtered by columns, shared between processes.

[`DiskIndex`] joins the rows and vectors of `store.py`, the updates of `update.py` and the search of `vectors.py`.
"""

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.images import BrokenImage
from ..data.shards import replace_file
from .approximate import (
    MAX_RESULTS,
    ApproximateSearch,
    Measurement,
    Search,
    check_approximate,
    read_approximation,
    update_approximate,
)
from .base import AnyQuery, Match, StoredIndex, check_k, describe_clip
from .building import bring_up_to_date, check_model, check_not_empty, name_model
from .encoders import Encoder
from .gallery import Gallery, SourceOptions, open_gallery, place
from .keywords import WINDOW, KeywordTable, KeywordTables, check_columns, fuse
from .loading import load_encoder
from .signs import check_binary, read_signs, update_signs
from .store import IndexStore, Snapshot, is_index, quote_name
from .update import UpdateSummary
from .vectors import load_faiss, nearest
from .where import check_expression, only_reading


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

NUMBERS_AT_ONCE = 10_000  # numbers in one SQLite query
PLACES = 'SELECT "hf_cots slot", "hf_cots path", "hf_cots id"'


class DiskIndex(StoredIndex):
    """An index in a folder, created by [`build`] and opened by [`open`].

    Scores and order equal those of an [`ImageIndex`] over the same images; images with equal scores are ordered by
    path. Every search sees the last committed state. Several threads can share an index.

    Args:
        folder: folder of the index.
        encoder: the model that it was built with.
        root: the folder that image paths are relative to; by default the source folder it was built from.

    Attributes:
        summary: summary of the last update.

    Raises:
        FileNotFoundError: if there is no index.
        OSError: if it cannot be opened.
        ValueError: if the index was built with another model or is damaged.
    """

    def __init__(self, folder: str | Path, encoder: Encoder, root: Path | None = None):
        super().__init__(encoder)
        self.folder = Path(folder)
        self.store = IndexStore(folder)
        check_model(self.store.name, self.store.meta, encoder)
        kept = self.store.meta.get("root")
        self.root = root or (Path(kept) if kept else None)
        self.summary = UpdateSummary()
        self._lock = threading.Lock()
        self._approximate: tuple[str | None, Search | None] = None, None  # the metadata it was opened for, the search
        self._keywords = KeywordTables()

    @staticmethod
    def build(
        model: str | Path | Encoder,
        source: str | Path | Gallery,
        to: str | Path,
        dtype: str | None = None,
        options: SourceOptions | None = None,
        batch_size: int = 64,
        progress: bool = False,
        device: "str | torch.device | None" = None,
        revision: str | None = None,
        with_columns: bool = True,
        wait: bool = False,
        approximate: bool | None = None,
        recall: float | None = None,
        precision: str | None = None,
    ) -> "DiskIndex":
        """Create an index, or update it from its source.

        Only contents that the index does not have yet are encoded. A killed build loses at most one batch; the same
        call continues it. Under torchrun or accelerate all processes must call: each encodes a part, and the first one
        writes.

        Args:
            model, device, revision: see [`load_encoder`]; or an encoder.
            source: a folder of images, a data set as for [`load_pairs`], or an opened gallery.
            to: folder of the index; created if it does not exist.
            dtype: precision of the stored vectors: "float32", "float16", "int8", or "binary", which is int8 and is
                searched approximately by signs; None keeps that of the index, or uses float32 for a new one.
            options: how a data set is read.
            batch_size: images per forward pass.
            progress: show a progress bar.
            with_columns: store the columns of the source, to filter by them.
            wait: wait for another process that writes the index, instead of raising an error.
            approximate: True turns on approximate search, for which each update also maintains a file; False turns it
                off and removes the file; None keeps the current state.
            recall: minimum measured recall of approximate search; 0.99 if None.
            precision: precision of the model: "float32" (as the weights), "bfloat16", or "auto", which is bfloat16 on
                GPUs that support it; None keeps that of the index, or uses float32 for a new one.

        Returns:
            The index; its `summary` says what was done.

        Raises:
            FileNotFoundError: if there is no such source.
            OSError: if the index cannot be written, or another process is writing it.
            ValueError: if the index has another model, source, dtype or precision; if no image can be read; or if
                there are too few images for approximate search.
            ModuleNotFoundError: for approximate search without FAISS.
        """

        def open_store(dim: int, **meta: str) -> IndexStore:
            if is_index(to):
                return IndexStore(to, writable=True, wait=wait)
            return IndexStore.create(to, dim, dtype or "float32", wait, **name_model(model, revision), **meta)

        gallery = source if isinstance(source, Gallery) else open_gallery(source, options, with_columns)
        target = check_approximate(len(gallery.paths), approximate, recall)
        check_binary(dtype)
        asked = {} if approximate is None else {"approximate_target": str(target)}
        encoder = load_encoder(model, device, revision) if isinstance(model, (str, Path)) else model
        summary = bring_up_to_date(
            open_store, encoder, gallery, dtype, precision, batch_size, progress, also=update_searches, **asked
        )
        index = DiskIndex(to, encoder, gallery.root)
        index.summary = summary
        check_not_empty(index, gallery, summary)
        return index

    @staticmethod
    def open(
        index: str | Path, model: str | Path | Encoder | None = None, device: "str | torch.device | None" = None
    ) -> "DiskIndex":
        """Open an index for searching.

        Args:
            index: its folder.
            model: the model that it was built with, if it has moved since; or its encoder.
            device: see [`load_encoder`].

        Raises:
            FileNotFoundError: if there is no index.
            OSError: if its model does not exist.
            ValueError: if the index was built with another model or is damaged.
        """
        if model is None:
            store = IndexStore(index)
            store.close()
            model = load_encoder(store.meta["model"], device, store.meta.get("revision"))
        return DiskIndex(index, load_encoder(model, device) if isinstance(model, (str, Path)) else model)

    def update(self, batch_size: int = 64, progress: bool = False) -> UpdateSummary:
        """Update the index from the source that it was built from; arguments and errors as for [`build`]."""
        meta = self.store.meta
        options, columns = SourceOptions(**json.loads(meta["options"])), meta["with_columns"] == "1"
        updated = DiskIndex.build(
            self.encoder, meta["source"], self.folder, None, options, batch_size, progress, with_columns=columns
        )
        updated.store.close()
        self.summary = updated.summary
        return self.summary

    # ------------------------------------------------------------------ contents

    @property
    def meta(self) -> dict[str, str]:
        return self.store.meta

    def version(self) -> int:
        with self._lock:
            return self.store.version()

    def __len__(self) -> int:
        with self._lock, self.store.reading():
            return self.store.database.execute("SELECT count(*) FROM images WHERE slot IS NOT NULL").fetchone()[0]

    @property
    def paths(self) -> list[Path]:
        """The searchable images, in sorted order."""
        with self._lock, self.store.reading():
            return [place(self.root, path) for path, _ in self._list_images()]

    @property
    def embeds(self) -> np.ndarray:
        """The (n, D) float32 embeddings, in the order of `paths`."""
        with self._lock, self.store.reading() as snapshot:
            return snapshot.vectors([slot for _, slot in self._list_images()])

    @property
    def broken(self) -> list[BrokenImage]:
        """The images that cannot be used, with the reasons."""
        with self._lock, self.store.reading():
            rows = self.store.database.execute(
                "SELECT path, reason FROM images WHERE reason IS NOT NULL ORDER BY path"
            ).fetchall()
        return [BrokenImage(str(place(self.root, path)), reason) for path, reason in rows]

    def count_clips(self) -> int:
        with self._lock, self.store.reading():
            return super().count_clips()

    @property
    def columns(self) -> list[str]:
        """The columns of the source that can be used in filters, as can `path`."""
        with self._lock, self.store.reading():
            return self.store.column_names()

    def _list_images(self) -> list[tuple[str, int]]:
        select = "SELECT path, slot FROM images WHERE slot IS NOT NULL ORDER BY path"
        return self.store.database.execute(select).fetchall()

    # ------------------------------------------------------------------ other formats

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file with a row per image, in the order of `paths`: `path`, `embedding` (D float32) and the
        columns."""
        with self._lock, self.store.reading() as snapshot:
            names = self.store.column_names()
            selection = f'SELECT * {select_images(names, None)} ORDER BY "hf_cots path"'
            rows = self.store.database.execute(selection).fetchall()
            vectors = snapshot.vectors([row[0] for row in rows])
        flat = pa.array(vectors.reshape(-1))
        table = {"path": [str(place(self.root, row[1])) for row in rows]}
        table |= {"embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
        kept = {name: [row[3 + i] for row in rows] for i, name in enumerate(names) if name not in table}
        kept = {name: pa.array(cells if is_uniform(cells) else map(as_text, cells)) for name, cells in kept.items()}
        replace_file(Path(path), lambda draft: pq.write_table(pa.table(table | kept), draft))

    def to_faiss(self, path: str | Path) -> None:
        """Write a `faiss.IndexFlatIP` whose ids are positions in `paths`.

        Raises:
            ModuleNotFoundError: without FAISS; names the extra to install.
        """
        faiss = load_faiss()
        if faiss is None:
            raise ModuleNotFoundError(
                "faiss is not installed, which is needed to write its files: pip install 'hf-cots[search]'"
            )
        flat = faiss.IndexFlatIP(self.store.dim)
        flat.add(self.embeds)
        replace_file(Path(path), lambda draft: faiss.write_index(flat, str(draft)))

    # ------------------------------------------------------------------ search

    def search(
        self,
        query: AnyQuery | None = None,
        k: int = 10,
        image: AnyQuery | None = None,
        minus: AnyQuery | None = None,
        where: str | None = None,
        hybrid: str | Sequence[str] | None = None,
        exact: bool = False,
    ) -> list[Match]:
        """Find the k best images, exactly, unless the index was built with `approximate`: see [`approximation`].

        Args:
            query, k, image, minus: as for [`BaseIndex.search`].
            where: an SQL expression on the columns, such as "license = 'MIT' AND width > 100". All images for which it
                is true are considered, and only those.
            hybrid: names of columns (or `path`) to also search by keyword for the words of the query, which must be a
                text. The score is then the sum of reciprocal ranks in both searches, and `similarity` the cosine
                similarity.
            exact: search exactly, even if the index has approximate search.

        Returns:
            Matches with their columns.

        Raises:
            ValueError: as [`BaseIndex.search`]; or if `where` or `hybrid` is invalid.
        """
        check_k(k)
        self.check_where(where)  # before the query is encoded
        text = query if isinstance(query, str) else None
        self.prepare_hybrid(hybrid, text)
        return self.search_vector(self.embed_query(query, image, minus), k, where, hybrid, text, exact)

    def check_where(self, where: str | None) -> None:
        """Check a filter; raises a ValueError that names the mistake."""
        with self._lock, self.store.reading():
            self._select(where, "SELECT 1", "LIMIT 0")

    def prepare_hybrid(self, hybrid: str | Sequence[str] | None, text: str | None) -> None:
        """Check the columns and text of a hybrid search and build the keyword table of the columns, as the first
        search would; raises a ValueError that names the mistake."""
        with self._lock, self.store.reading() as snapshot:
            columns = check_columns(hybrid, self.store.column_names(), text)
            if columns:
                self._read_words(snapshot.version, columns)

    def approximation(self, k: int = 10, where: str | None = None, exact: bool = False) -> Measurement | None:
        """Return the measured recall of a search; None if it is exact, as all searches with a filter or for more than
        100 matches are."""
        with self._lock, self.store.reading():
            used = self._open_approximate(k, where, exact)
            if used is None:
                return None
            return read_approximation(self.store) if isinstance(used, ApproximateSearch) else read_signs(self.store)

    def _open_approximate(self, k: int, where: str | None, exact: bool) -> Search | None:
        """Return the approximate search to use; None for exact search."""
        meta = self.store.meta
        inverted = float(meta.get("approximate_target", 0)) > 0
        if exact or where is not None or k > MAX_RESULTS or not (inverted or self.store.dtype == "binary"):
            return None
        noted = f"{meta['file']} {meta.get('approximate')} {meta.get('signs')}"
        if self._approximate[0] != noted:
            search: Search | None = ApproximateSearch.open(self.store) if inverted else None
            signs = read_signs(self.store) if search is None else None
            self._approximate = noted, signs.open() if signs else search
        return self._approximate[1]

    def search_vector(
        self,
        vector: np.ndarray,
        k: int = 10,
        where: str | None = None,
        hybrid: str | Sequence[str] | None = None,
        text: str | None = None,
        exact: bool = False,
    ) -> list[Match]:
        """Find the k best images for a normalized embedding (D,), and for the words of `text` in the columns `hybrid`;
        otherwise as [`search`]."""
        check_k(k)
        vector = np.asarray(vector, dtype=np.float32)
        with self._lock, self.store.reading() as snapshot:
            allowed, columns = snapshot.live, check_columns(hybrid, self.store.column_names(), text)
            if where is not None:
                allowed = np.zeros(len(snapshot.rows), dtype=bool)
                allowed[[slot for (slot,) in self._select(where, 'SELECT DISTINCT "hf_cots slot"')]] = True
            window = max(int(k), WINDOW) if columns else int(k)
            approximate = self._open_approximate(window, where, exact)
            if approximate is not None:
                found, scores = approximate.nearest(snapshot, vector, window)
            else:
                found, scores = nearest(snapshot.rows, vector, window, allowed)
            similarity_of = dict(zip(found.tolist(), scores.tolist()))
            images = {row[2]: row for row in self._select_in(where, PLACES, "hf_cots slot", similarity_of)}
            if columns:
                by_words = self._find_words(snapshot, vector, text or "", columns, where, window)
                images |= {row[2]: row for row in self._select_in(where, PLACES, "hf_cots id", by_words)}
                others = {slot for slot, *_ in images.values()} - similarity_of.keys()  # found by words alone
                similarity_of |= score_rows(snapshot.rows, vector, np.array(list(others), dtype=np.int64))
                score_of = fuse({image: similarity_of[row[0]] for image, row in images.items()}, by_words, window)
            else:
                score_of = {image: similarity_of[row[0]] for image, row in images.items()}
            best = sorted(images.values(), key=lambda row: (-score_of[row[2]], -similarity_of[row[0]], row[1]))[:k]
            return self._list_matches(best, vector, score_of, similarity_of if columns else {})

    def _read_words(self, version: int, columns: tuple[str, ...]) -> KeywordTable:
        cells = f'SELECT "hf_cots id", "hf_cots slot", {", ".join(map(quote_name, columns))}'
        return self._keywords.get(version, columns, lambda: self._select(None, cells))

    def _find_words(
        self,
        snapshot: Snapshot,
        query: np.ndarray,
        text: str,
        columns: tuple[str, ...],
        where: str | None,
        window: int,
    ) -> dict[int, float]:
        """Return the ids and scores of the best `window` images by the words of a text. Images that tie with the last
        are included too, but only the `window` most similar of them, since no others can be among the results."""
        ids, slots, scores = self._read_words(snapshot.version, columns).scores(text)
        if where is not None:
            allowed = np.isin(ids, [image for (image,) in self._select(where, 'SELECT "hf_cots id"')])
            ids, slots, scores = ids[allowed], slots[allowed], scores[allowed]
        if len(ids) == 0:
            logger.info("none of the query's words occur in %s: ranking by the model alone", ", ".join(columns))
        elif len(ids) > window:
            last = np.partition(scores, -window)[-window]
            similar = list(score_rows(snapshot.rows, query, slots[scores == last], window))
            best = (scores > last) | ((scores == last) & np.isin(slots, similar))
            ids, scores = ids[best], scores[best]
        return dict(zip(ids.tolist(), scores.tolist()))

    def _list_matches(
        self, rows: list[Any], vector: np.ndarray, score_of: dict[int, float], similarity_of: dict[int, float]
    ) -> list[Match]:
        """Create the matches for rows of [`PLACES`], with all their fields."""
        names = self.store.column_names()
        described = self._select_in(None, "SELECT *", "hf_cots id", [image for _, _, image in rows])
        cells_of = {image: dict(zip(names, cells)) for _, _, image, *cells in described}
        digests: dict[int, str] = {}
        for part in in_parts(slot for slot, _, _ in rows):
            digests |= self.store.database.execute(f"SELECT slot, hash FROM contents WHERE slot IN ({part})")
        clips = self.store.read_clips(slot for slot, _, _ in rows)
        return [
            Match(
                place(self.root, path),
                score_of[image],
                cells_of[image],
                image,
                similarity=similarity_of.get(slot),
                digest=digests[slot],
                **describe_clip(clips.get(slot), vector),
            )
            for slot, path, image in rows
        ]

    def _select(self, where: str | None, begin: str, end: str = "") -> list[Any]:
        """Run an SQL query over the images for which `where` is true."""
        names = self.store.column_names()
        selection = f"{begin} {select_images(names, where)} {end}"
        with only_reading(self.store.database, where or "", [*names, "path"]):
            return self.store.database.execute(selection).fetchall()

    def _select_in(self, where: str | None, begin: str, key: str, numbers: Iterable[int]) -> list[Any]:
        """Run a query over the images for which `where` is true and whose `key` (slot or id) is among `numbers`."""
        ends = (f"AND {quote_name(key)} IN ({part})" for part in in_parts(numbers))
        return [row for end in ends for row in self._select(where, begin, end)]


def update_searches(store: IndexStore, encoder: Encoder) -> None:
    """Bring the approximate searches of an index up to date with its vectors."""
    update_approximate(store, encoder)
    update_signs(store, encoder)


def in_parts(numbers: Iterable[int]) -> Iterator[str]:
    """Yield comma-separated lists of numbers for SQL, with up to [`NUMBERS_AT_ONCE`] numbers each."""
    listed = list(map(str, numbers))
    for start in range(0, len(listed), NUMBERS_AT_ONCE):
        yield ", ".join(listed[start : start + NUMBERS_AT_ONCE])


def score_rows(rows: np.ndarray, query: np.ndarray, numbers: np.ndarray, k: int | None = None) -> dict[int, float]:
    """Compute the exact scores of some rows, by row number; only of the best k (and ties) if `k` is given."""
    wanted = np.zeros(len(rows), dtype=bool)
    wanted[numbers] = True
    found, scores = nearest(rows, query, k or len(numbers), wanted)
    return dict(zip(found.tolist(), scores.tolist()))


def is_uniform(cells: Sequence[Any]) -> bool:
    """Whether the cells that are not None are all texts or all numbers."""
    return len({isinstance(cell, str) for cell in cells if cell is not None}) < 2


def as_text(cell: Any) -> str | None:
    """Convert a cell of a column with both texts and numbers to text."""
    return None if cell is None else str(cell)


def select_images(columns: Sequence[str], where: str | None) -> str:
    """Build the FROM and WHERE clauses that select slot, path, id and columns of the searchable images.

    Raises:
        ValueError: naming the mistake in the expression.
    """
    names = "".join(f", columns.{quote_name(name)}" for name in columns)
    path = "" if "path" in (name.lower() for name in columns) else ", images.path"  # to filter by it
    inner = (
        f'SELECT images.slot AS "hf_cots slot", images.path AS "hf_cots path", images.id AS "hf_cots id"{names}{path} '
        'FROM images LEFT JOIN columns ON "hf_cots image" = images.id WHERE images.slot IS NOT NULL'
    )
    condition = check_expression(where, [*columns, "path"]) if where is not None else "1"
    return f"FROM ({inner}) WHERE {condition}"
