"""An index in a folder: brought up to date by content, filtered by columns, shared between processes.

[`DiskIndex`] joins the rows and vectors of `store.py`, the updates of `update.py` and the search of `vectors.py`.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ..data.images import BrokenImage, read_image
from ..data.shards import replace_file
from .approximate import (
    MAX_RESULTS,
    ApproximateSearch,
    Approximation,
    check_approximate,
    read_approximation,
    update_approximate,
)
from .base import AnyQuery, BaseIndex, Match, check_k
from .encoders import Encoder, precision_of, set_precision
from .encoding import check_batch_size
from .fingerprint import describe_model, different_parts
from .gallery import Gallery, SourceOptions, open_gallery, place, read_file
from .loading import load_encoder
from .processes import processes
from .reading import help_to_update
from .store import IndexStore, is_index, quote_name
from .update import IndexUpdate, UpdateSummary
from .vectors import load_faiss, nearest
from .where import check_expression, only_reading


SLOTS_AT_ONCE = 10_000  # in one query of SQLite


def check_model(store: IndexStore, encoder: Encoder) -> None:
    """Check that a model is the one that an index was built with.

    Raises:
        ValueError: naming both, and in what they differ.
    """
    different = different_parts(json.loads(store.meta["fingerprint"]), describe_model(encoder))
    if different:
        raise ValueError(
            f"the index {store.folder} was built with {store.meta['model']}, and {encoder.name} has another "
            f"{' and another '.join(different)}: their embeddings do not compare. Name that model, or another index"
        )


def check_source(store: IndexStore, source: str, dtype: str | None) -> None:
    """Check that an index is of a source and of a precision. A folder that is gone may have been moved.

    Raises:
        ValueError: naming what it is of.
    """
    before = store.meta["source"]
    if source != before and Path(before).exists():
        raise ValueError(f"the index {store.folder} is of {before}, not of {source}: name another one with --to")
    if dtype is not None and dtype != store.dtype:
        raise ValueError(f"the index {store.folder} keeps {store.dtype}, not {dtype}: name another one with --to")


def name_model(model: str | Path | Encoder, revision: str | None) -> dict[str, str]:
    """What an index notes of a model, to load it again."""
    name = str(model) if isinstance(model, (str, Path)) else model.name
    path = str(Path(name).resolve()) if Path(name).exists() else name
    return {"model": path} | ({"revision": revision} if revision else {})


def write_update(
    store: IndexStore,
    encoder: Encoder,
    gallery: Gallery,
    settings: dict[str, str],
    dtype: str | None,
    precision: str | None,
    batch_size: int,
    progress: bool,
) -> UpdateSummary:
    """Bring an index up to date, and close its store; arguments and errors as for [`DiskIndex.build`]."""
    try:
        check_model(store, encoder)
        check_source(store, settings["source"], dtype)
        encoder = set_precision(encoder, precision or store.precision)
        if precision_of(encoder) != store.precision:
            raise ValueError(
                f"the index {store.folder} was encoded in {store.precision}, not in {precision_of(encoder)}: name "
                "another one with --to"
            )
        with store.transaction():
            store.set_meta(**settings)
        summary = IndexUpdate(store, encoder, gallery, batch_size).run(progress)
        update_approximate(store, encoder)
    finally:
        store.close()
    return summary


class DiskIndex(BaseIndex):
    """An index in a folder; made by [`build`] and opened by [`open`].

    Scores and order are those of [`ImageIndex`] over the same images; images with equal scores are in the order of
    their paths. Every search sees the last state that a writer has committed. Several threads may share one.

    Args:
        folder: of the index.
        encoder: the model that it was built with.
        root: the folder that the images' paths start from; the one that it was built from if None.

    Attributes:
        summary: what the last update did.

    Raises:
        FileNotFoundError: if there is no index.
        OSError: if it cannot be opened.
        ValueError: if the model is another one, or the index is damaged.
    """

    def __init__(self, folder: str | Path, encoder: Encoder, root: Path | None = None):
        self.folder, self.encoder = Path(folder), encoder
        self.store = IndexStore(folder)
        check_model(self.store, encoder)
        kept = self.store.meta.get("root")
        self.root = root or (Path(kept) if kept else None)
        self.summary = UpdateSummary()
        self._lock = threading.Lock()
        self._approximate: tuple[str | None, ApproximateSearch | None] = None, None  # of the index's note of it
        self._opened: tuple[int, Gallery, dict[Path, int]] | None = None

    @staticmethod
    def build(
        model: str | Path | Encoder,
        source: str | Path | Gallery,
        to: str | Path,
        dtype: str | None = None,
        options: SourceOptions | None = None,
        batch_size: int = 64,
        progress: bool = False,
        device: str | torch.device | None = None,
        revision: str | None = None,
        with_columns: bool = True,
        wait: bool = False,
        approximate: bool | None = None,
        recall: float | None = None,
        precision: str | None = None,
    ) -> "DiskIndex":
        """Make an index, or bring one up to date with its source.

        Only contents that the index does not have are encoded. A kill loses at most one batch; the same call goes on.
        Under torchrun or accelerate all processes must call: each encodes a part, and the first one writes.

        Args:
            model, device, revision: see [`load_encoder`]; or an encoder.
            source: a folder of images, or a data set as [`load_pairs`] reads it; or an opened one.
            to: folder of the index; made if it is not there.
            dtype: of the vectors, "float32", "float16" or "int8"; if None that of the index, or else float32.
            options: how a data set is read.
            batch_size: images in a forward pass.
            progress: show a progress bar.
            with_columns: keep what the source says of its images, to filter by.
            wait: for another process that writes the index, instead of refusing.
            approximate: from now on, each update also brings a file for approximate search up to date, which searches
                use; False removes it, None leaves it as it is.
            recall: that an approximate search must have, as measured; 0.99 if None.
            precision: to encode in: "float32" (as the weights are), "bfloat16", or "auto", which is bfloat16 on a GPU
                that computes in it; if None that of the index, or else float32.

        Returns:
            The index; its `summary` tells what was done.

        Raises:
            FileNotFoundError: if there is no such source.
            OSError: if the index cannot be written, or another process writes it.
            ValueError: if the index is of another model, source, dtype or precision, or no image can be read; or if
                there are too few for approximate search.
            ModuleNotFoundError: for approximate search without FAISS.
        """
        check_batch_size(batch_size)
        gallery = source if isinstance(source, Gallery) else open_gallery(source, options, with_columns)
        target = check_approximate(len(gallery.paths), approximate, recall)
        encoder = load_encoder(model, device, revision) if isinstance(model, (str, Path)) else model
        settings = {"source": gallery.name, "options": json.dumps(asdict(gallery.options))}
        settings["with_columns"] = str(int(gallery.with_columns))
        settings["root"] = "" if gallery.root is None else str(gallery.root.resolve())
        if approximate is not None:
            settings["approximate_target"] = str(target)
        summary = UpdateSummary()
        if processes().is_main_process:
            if is_index(to):
                store = IndexStore(to, writable=True, wait=wait)
            else:
                named = {"fingerprint": json.dumps(describe_model(encoder)), **name_model(model, revision)}
                named["precision"] = precision_of(set_precision(encoder, precision or "float32"))
                store = IndexStore.create(to, encoder.dim, dtype or "float32", wait, **named, **settings)
            summary = write_update(store, encoder, gallery, settings, dtype, precision, batch_size, progress)
        else:
            help_to_update(encoder, gallery, batch_size)
        processes().wait_for_everyone()
        index = DiskIndex(to, encoder, gallery.root)
        index.summary = summary
        if len(index) == 0:
            reasons = "".join(f"; {broken}" for broken in summary.broken[:3])
            raise ValueError(f"none of {len(gallery.paths)} image files can be read{reasons}")
        return index

    @staticmethod
    def open(
        index: str | Path, model: str | Path | Encoder | None = None, device: str | torch.device | None = None
    ) -> "DiskIndex":
        """Open an index for searching.

        Args:
            index: its folder.
            model: the model that it was built with, where it is no longer where it was then; or its encoder.
            device: see [`load_encoder`].

        Raises:
            FileNotFoundError: if there is no index.
            OSError: if its model is not there.
            ValueError: if the model is another one, or the index is damaged.
        """
        if model is None:
            store = IndexStore(index)
            store.close()
            model = load_encoder(store.meta["model"], device, store.meta.get("revision"))
        return DiskIndex(index, load_encoder(model, device) if isinstance(model, (str, Path)) else model)

    def update(self, batch_size: int = 64, progress: bool = False) -> UpdateSummary:
        """Bring the index up to date with the source that it was built from; arguments and errors as for [`build`]."""
        meta = self.store.meta
        options, columns = SourceOptions(**json.loads(meta["options"])), meta["with_columns"] == "1"
        updated = DiskIndex.build(
            self.encoder, meta["source"], self.folder, None, options, batch_size, progress, with_columns=columns
        )
        updated.store.close()
        self.summary = updated.summary
        return self.summary

    # ------------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        with self._lock, self.store.reading():
            return self.store.database.execute("SELECT count(*) FROM images WHERE slot IS NOT NULL").fetchone()[0]

    @property
    def paths(self) -> list[Path]:
        """The images that can be found, in sorted order."""
        with self._lock, self.store.reading():
            return [place(self.root, path) for path, _ in self._list_images()]

    @property
    def embeds(self) -> torch.Tensor:
        """(n, D) float32, in the order of `paths`."""
        with self._lock, self.store.reading() as snapshot:
            return torch.from_numpy(snapshot.vectors([slot for _, slot in self._list_images()]))

    @property
    def broken(self) -> list[BrokenImage]:
        """The images that cannot be used, with the reasons."""
        with self._lock, self.store.reading():
            rows = self.store.database.execute(
                "SELECT path, reason FROM images WHERE reason IS NOT NULL ORDER BY path"
            ).fetchall()
        return [BrokenImage(str(place(self.root, path)), reason) for path, reason in rows]

    @property
    def columns(self) -> list[str]:
        """The columns of the source that can be filtered by; `path` can, too."""
        with self._lock, self.store.reading():
            return self.store.column_names()

    def _list_images(self) -> list[tuple[str, int]]:
        select = "SELECT path, slot FROM images WHERE slot IS NOT NULL ORDER BY path"
        return self.store.database.execute(select).fetchall()

    def _open_gallery(self) -> tuple[Gallery, dict[Path, int]]:
        """The source as it is since the last update, and its images' numbers."""
        with self._lock:
            version = self.store.version()
            if self._opened is None or self._opened[0] != version:
                options = SourceOptions(**json.loads(self.store.meta["options"]))
                gallery = open_gallery(self.store.meta["source"], options, with_columns=False)
                numbers = {place(gallery.root, path): i for i, path in enumerate(gallery.paths)}
                self._opened = version, gallery, numbers
            return self._opened[1:]

    def read_bytes(self, path: Path) -> bytes:
        """Read the encoded image of a match.

        Raises:
            BrokenImage: if it can no longer be read.
        """
        if self.root is not None:
            return read_file(path)
        gallery, numbers = self._open_gallery()
        if path not in numbers:
            raise BrokenImage(str(path), f"it is no longer in {self.store.meta['source']}")
        return gallery.read(numbers[path])

    def read_image(self, path: Path) -> Image.Image:
        return read_image(path) if self.root is not None else read_image(self.read_bytes(path), str(path))

    # ------------------------------------------------------------------ other formats

    def to_parquet(self, path: str | Path) -> None:
        """Write one row per image: `path`, `embedding` (D float32) and the columns; images in the order of `paths`."""
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
        """Write a `faiss.IndexFlatIP`, whose ids are positions in `paths`.

        Raises:
            ModuleNotFoundError: without FAISS; names the extra to install.
        """
        faiss = load_faiss()
        if faiss is None:
            raise ModuleNotFoundError("faiss is not installed; to write its files: pip install 'hf-cots[search]'")
        flat = faiss.IndexFlatIP(self.store.dim)
        flat.add(self.embeds.numpy())
        replace_file(Path(path), lambda draft: faiss.write_index(flat, str(draft)))

    # ------------------------------------------------------------------ search

    def search(
        self,
        query: AnyQuery | None = None,
        k: int = 10,
        image: AnyQuery | None = None,
        minus: AnyQuery | None = None,
        where: str | None = None,
        exact: bool = False,
    ) -> list[Match]:
        """Find the k best images, exactly, unless the index was built with `approximate`: see [`approximation`].

        Args:
            query, k, image, minus: as for [`BaseIndex.search`].
            where: an SQL expression over the columns, such as "license = 'MIT' AND width > 100"; only the images for
                which it holds are considered, all of them.
            exact: consider all images in an index with approximate search, too.

        Returns:
            Matches with their columns.

        Raises:
            ValueError: as [`BaseIndex.search`]; or naming what is wrong with `where`.
        """
        check_k(k)
        self.check_where(where)  # a mistake costs no encoding
        return self.search_vector(self.embed_query(query, image, minus), k, where, exact)

    def check_where(self, where: str | None) -> None:
        """Check a filter; raises ValueError, naming what is wrong with it."""
        with self._lock, self.store.reading():
            self._select(where, "SELECT 1", "LIMIT 0")

    def approximation(self, k: int = 10, where: str | None = None, exact: bool = False) -> Approximation | None:
        """The measured recall of a search; None if it is exact. With a filter, or for more than 100, it always is."""
        with self._lock, self.store.reading():
            used = self._open_approximate(k, where, exact) is not None
            return read_approximation(self.store) if used else None

    def _open_approximate(self, k: int, where: str | None, exact: bool) -> ApproximateSearch | None:
        """What a search is to use instead of all vectors."""
        if exact or where is not None or k > MAX_RESULTS or not float(self.store.meta.get("approximate_target", 0)):
            return None
        noted = f"{self.store.meta['file']} {self.store.meta.get('approximate')}"
        if self._approximate[0] != noted:
            self._approximate = noted, ApproximateSearch.open(self.store)
        return self._approximate[1]

    def search_vector(
        self, vector: torch.Tensor, k: int = 10, where: str | None = None, exact: bool = False
    ) -> list[Match]:
        """Find the k best images for an embedding (D,) of length 1; otherwise as [`search`]."""
        check_k(k)
        with self._lock, self.store.reading() as snapshot:
            allowed, names = snapshot.live, self.store.column_names()
            if where is not None:
                allowed = np.zeros(len(snapshot.rows), dtype=bool)
                allowed[[slot for (slot,) in self._select(where, 'SELECT DISTINCT "hf_cots slot"')]] = True
            approximate = self._open_approximate(k, where, exact)
            if approximate is not None:
                found, scores = approximate.nearest(snapshot, vector.numpy(), int(k))
            else:
                found, scores = nearest(snapshot.rows, vector.numpy(), int(k), allowed)
            rows: list[Any] = []
            for start in range(0, len(found), SLOTS_AT_ONCE):
                part = ", ".join(map(str, found[start : start + SLOTS_AT_ONCE].tolist()))
                rows += self._select(where, "SELECT *", f'AND "hf_cots slot" IN ({part})')
        score_of = dict(zip(found.tolist(), scores.tolist()))
        rows.sort(key=lambda row: (-score_of[row[0]], row[1]))
        return [
            Match(place(self.root, path), score_of[slot], dict(zip(names, cells)), image)
            for slot, path, image, *cells in rows[:k]
        ]

    def _select(self, where: str | None, begin: str, end: str = "") -> list[Any]:
        """What a query finds among the images for which `where` holds."""
        names = self.store.column_names()
        selection = f"{begin} {select_images(names, where)} {end}"
        with only_reading(self.store.database, where or "", [*names, "path"]):
            return self.store.database.execute(selection).fetchall()


def is_uniform(cells: Sequence[Any]) -> bool:
    """Whether all cells that are not missing are texts, or all are numbers."""
    return len({isinstance(cell, str) for cell in cells if cell is not None}) < 2


def as_text(cell: Any) -> str | None:
    """A cell of a column that holds texts and numbers."""
    return None if cell is None else str(cell)


def select_images(columns: Sequence[str], where: str | None) -> str:
    """The images that count, as the end of a query: their slot, path, id and columns.

    Raises:
        ValueError: naming what is wrong with the expression.
    """
    names = "".join(f", columns.{quote_name(name)}" for name in columns)
    path = "" if "path" in (name.lower() for name in columns) else ", images.path"  # so that one may filter by it
    inner = (
        f'SELECT slot AS "hf_cots slot", images.path AS "hf_cots path", images.id AS "hf_cots id"{names}{path} '
        'FROM images LEFT JOIN columns ON "hf_cots image" = images.id WHERE slot IS NOT NULL'
    )
    condition = check_expression(where, [*columns, "path"]) if where is not None else "1"
    return f"FROM ({inner}) WHERE {condition}"
