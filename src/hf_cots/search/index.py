"""Search images with a text or an image: one forward pass per image, one dot product per query.

[`ImageIndex`] keeps its embeddings in memory; [`DiskIndex`] is one in a folder, which is brought up to date, filtered
and shared between processes.
"""

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from .._errors import check_output_folder
from ..data.folders import cache_folder, find_images
from ..data.hashes import hex_digest
from ..data.images import BrokenImage, read_image
from ..data.shards import replace_file
from ..models import load_image
from ..models.losses import l2_normalize
from .encoders import Encoder
from .encoding import check_batch_size
from .fingerprint import describe_model, different_parts
from .gallery import FolderGallery, Gallery, SourceOptions, open_gallery, place, read_file
from .loading import load_encoder
from .store import IndexStore, is_index, quote_name
from .update import IndexUpdate, UpdateSummary
from .vectors import load_faiss, nearest
from .where import check_expression, only_reading


logger = logging.getLogger(__name__)

SLOTS_AT_ONCE = 10_000  # in one query of SQLite
AnyQuery: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor  # a str is a text


@dataclass(frozen=True)
class Match:
    """A search result: the file, its cosine similarity to the query, in [-1, 1], and what the index knows of it."""

    path: Path
    score: float
    columns: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    id: int | None = field(default=None, compare=False, repr=False)  # of its row in an index on disk


def check_k(k: int) -> None:
    """Check the number of matches that is asked for.

    Raises:
        ValueError: if it is not a positive whole number.
    """
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be at least 1 and a whole number, got {k!r}")


class ImageIndex:
    """The embeddings of a set of image files.

    Args:
        encoder: embeds images and queries; see [`load_encoder`].
        paths: the files. Those that cannot be read, or whose embedding is not finite, are skipped and kept, with the
            reason, in `broken`.
        batch_size: images in a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if no file can be used, or the batch size is not positive.

    Example:
        >>> index = ImageIndex.from_folder("runs/demo/model", "my/photos")  # doctest: +SKIP
        >>> for match in index.search("an animal with wings", k=5):  # doctest: +SKIP
        ...     print(f"{match.score:.3f}  {match.path}")
    """

    def __init__(self, encoder: Encoder, paths: Iterable[Path | str], batch_size: int = 64, progress: bool = False):
        check_batch_size(batch_size)
        files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        self.encoder = encoder
        self.paths: list[Path] = []
        self.broken: list[BrokenImage] = []
        embeds = encoder.encode_images(self._readable(files), batch_size, len(files) if progress else None)
        finite = embeds.isfinite().all(dim=1)
        self.broken += [
            BrokenImage(str(path), "its embedding is not finite") for path, good in zip(self.paths, finite) if not good
        ]
        self.paths = [path for path, good in zip(self.paths, finite) if good]
        self.embeds = embeds if finite.all() else embeds[finite]  # (n, D)
        if not self.paths:
            reasons = "".join(f"; {broken}" for broken in self.broken[:3])
            raise ValueError(f"none of {len(files)} image files can be read{reasons}")

    @classmethod
    def from_folder(
        cls,
        model: str | Path,
        folder: Path | str,
        batch_size: int = 64,
        progress: bool = False,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> "ImageIndex":
        """Load a model by Hub id or folder and encode every image below a folder.

        Args:
            model, device, revision: see [`load_encoder`], whose errors are raised too.
            folder: searched with its sub-folders.
            batch_size, progress: as for the class.

        Raises:
            FileNotFoundError: if the folder does not exist or holds no image.
        """
        paths = find_images(Path(folder))
        return cls(load_encoder(model, device, revision), paths, batch_size, progress)

    def _readable(self, paths: list[Path]) -> Iterator[Image.Image]:
        for path in paths:
            try:
                image = read_image(path)
            except BrokenImage as broken:
                self.broken.append(broken)
                continue
            self.paths.append(path)
            yield image

    def __len__(self) -> int:
        return len(self.paths)

    def read_image(self, path: Path) -> Image.Image:
        """Read the image of a match, upright and RGB.

        Raises:
            BrokenImage: if its file can no longer be read.
        """
        return read_image(path)

    @staticmethod
    def build(model: str | Path | Encoder, source: str | Path, to: str | Path, **options: Any) -> "DiskIndex":
        """Make an index on disk, or bring it up to date; see [`DiskIndex.build`]."""
        return DiskIndex.build(model, source, to, **options)

    @staticmethod
    def open(
        index: str | Path, model: str | Path | Encoder | None = None, device: str | torch.device | None = None
    ) -> "DiskIndex":
        """Open an index on disk; see [`DiskIndex.open`]."""
        return DiskIndex.open(index, model, device)

    def search(
        self, query: AnyQuery | None, k: int = 10, image: AnyQuery | None = None, minus: AnyQuery | None = None
    ) -> list[Match]:
        """Find the k best files for a text, or for an image, or for sums and differences of them.

        Args:
            query: a text, if it is a `str`; otherwise an image: a `Path`, bytes, a PIL image, an array or a tensor.
            k: how many; fewer are returned by a smaller index.
            image: an image with which the matches should agree, too, or alone; a `str` is a path here.
            minus: what they should not agree with. Embeddings of all parts are added, or subtracted, and normalized.

        Raises:
            ValueError: if the query is empty, no text and no image, or has an embedding that is not finite; or if k is
                not positive.
        """
        check_k(k)
        vector = self.embed_query(query, image, minus)
        scores, order = torch.topk(self.embeds @ vector, min(int(k), len(self)))
        return [Match(self.paths[i], score) for i, score in zip(order.tolist(), scores.tolist())]

    def embed_query(
        self, query: AnyQuery | None, image: AnyQuery | None = None, minus: AnyQuery | None = None
    ) -> torch.Tensor:
        """The embedding (D,) of a query; arguments and errors as for [`search`]."""
        image = Path(image) if isinstance(image, str) else image
        parts = [self._embed(part) for part in (query, image) if part is not None]
        if not parts:
            raise ValueError("the query must be one text (str) or one image, or both, and is neither")
        if len(parts) == 1 and minus is None:
            return parts[0]
        total = torch.stack(parts).sum(dim=0) - (0 if minus is None else self._embed(minus))
        if float(total.norm()) < 1e-6:
            raise ValueError("the parts of the query cancel one another")
        return l2_normalize(total[None])[0]

    def _embed(self, query: AnyQuery) -> torch.Tensor:
        """The embedding (D,) of one text or image."""
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty")
            embeds = self.encoder.encode_texts([query])
        elif isinstance(query, (Path, bytes, Image.Image, np.ndarray, torch.Tensor)):
            embeds = self.encoder.encode_images([load_image(query)])
        else:
            raise ValueError(f"the query must be one text (str) or one image, not {type(query).__name__}")
        if not embeds.isfinite().all():
            raise ValueError("the query's embedding is not finite: the model's weights or the query are damaged")
        return embeds[0]


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


class DiskIndex(ImageIndex):
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
        self._opened: tuple[int, Gallery, dict[Path, int]] | None = None

    @staticmethod
    def build(  # type: ignore[override]
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
    ) -> "DiskIndex":
        """Make an index, or bring one up to date with its source.

        Only contents that the index does not have are encoded. A kill loses at most one batch; the same call goes on.

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

        Returns:
            The index; its `summary` tells what was done.

        Raises:
            FileNotFoundError: if there is no such source.
            OSError: if the index cannot be written, or another process writes it.
            ValueError: if the index is of another model, source or dtype, or no image can be read.
        """
        check_batch_size(batch_size)
        gallery = source if isinstance(source, Gallery) else open_gallery(source, options, with_columns)
        encoder = load_encoder(model, device, revision) if isinstance(model, (str, Path)) else model
        settings = {"source": gallery.name, "options": json.dumps(asdict(gallery.options))}
        settings["with_columns"] = str(int(gallery.with_columns))
        settings["root"] = "" if gallery.root is None else str(gallery.root.resolve())
        if is_index(to):
            store = IndexStore(to, writable=True, wait=wait)
        else:
            named = {"fingerprint": json.dumps(describe_model(encoder)), **name_model(model, revision)}
            store = IndexStore.create(to, encoder.dim, dtype or "float32", wait, **named, **settings)
        try:
            check_model(store, encoder)
            check_source(store, settings["source"], dtype)
            with store.transaction():
                store.set_meta(**settings)
            summary = IndexUpdate(store, encoder, gallery, batch_size).run(progress)
        finally:
            store.close()
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
    def paths(self) -> list[Path]:  # type: ignore[override]
        """The images that can be found, in sorted order."""
        with self._lock, self.store.reading():
            return [place(self.root, path) for path, _ in self._list_images()]

    @property
    def embeds(self) -> torch.Tensor:  # type: ignore[override]
        """(n, D) float32, in the order of `paths`."""
        with self._lock, self.store.reading() as snapshot:
            return torch.from_numpy(snapshot.vectors([slot for _, slot in self._list_images()]))

    @property
    def broken(self) -> list[BrokenImage]:  # type: ignore[override]
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
    ) -> list[Match]:
        """Find the k best images, exactly.

        Args:
            query, k, image, minus: as for [`ImageIndex.search`].
            where: an SQL expression over the columns, such as "license = 'MIT' AND width > 100"; only the images for
                which it holds are considered, all of them.

        Returns:
            Matches with their columns.

        Raises:
            ValueError: as [`ImageIndex.search`]; or naming what is wrong with `where`.
        """
        check_k(k)
        self.check_where(where)  # a mistake costs no encoding
        return self.search_vector(self.embed_query(query, image, minus), k, where)

    def check_where(self, where: str | None) -> None:
        """Check a filter; raises ValueError, naming what is wrong with it."""
        with self._lock, self.store.reading():
            self._select(where, "SELECT 1", "LIMIT 0")

    def search_vector(self, vector: torch.Tensor, k: int = 10, where: str | None = None) -> list[Match]:
        """Find the k best images for an embedding (D,) of length 1; otherwise as [`search`]."""
        check_k(k)
        with self._lock, self.store.reading() as snapshot:
            allowed, names = snapshot.live, self.store.column_names()
            if where is not None:
                allowed = np.zeros(len(snapshot.rows), dtype=bool)
                allowed[[slot for (slot,) in self._select(where, 'SELECT DISTINCT "hf_cots slot"')]] = True
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


def open_folder(
    model: str | Path, folder: Path, revision: str | None = None, progress: bool = False
) -> tuple[ImageIndex, list[BrokenImage]]:
    """Bring the index of a folder in the user's cache up to date; where no cache can be written, make one in memory.

    Args:
        model, revision: see [`load_encoder`].
        folder: searched with its sub-folders.
        progress: show a progress bar.

    Returns:
        The index, and the images that cannot be used.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no image.
        OSError, ValueError: as [`load_encoder`] and [`DiskIndex.build`].
    """
    gallery = FolderGallery(folder, with_columns=False)
    encoder = load_encoder(model, None, revision)
    key = hex_digest([gallery.name.encode(errors="surrogateescape"), json.dumps(describe_model(encoder)).encode()])
    cached = cache_folder("indexes", key)
    try:
        check_output_folder(cached)
    except OSError as error:
        logger.info("the index is made in memory, for this search only: %s", error)
        in_memory = ImageIndex(encoder, [folder / path for path in gallery.paths], progress=progress)
        return in_memory, in_memory.broken
    index = DiskIndex.build(encoder, gallery, cached, progress=progress, wait=True)
    return index, index.summary.broken


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
