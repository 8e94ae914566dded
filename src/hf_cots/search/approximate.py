"""Approximate search of a large index: an inverted file of FAISS beside the vectors, whose recall is measured.

The inverted file keeps the vectors in clusters, with 8 bits a number. A search looks into the `nprobe` clusters that
are nearest to the query, and orders what it finds there by exact scores. `nprobe` is the least with which the answers
have the recall that is asked for, measured against exact search on images and texts of the index itself, with three
standard errors to spare: the least that does on some queries does not on others, and a few queries between the
clusters, of which one finds hardly anything, are the most of what is missed.

    approximate-N.faiss     slot by slot what is in the vectors' file, up to a slot; N changes with each writing

The file is complete on disk before the transaction that names it. What has come since is searched exactly, what is
gone is left out, and a file of other vectors is not used.
"""

import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..data.shards import replace_file
from .encoders import Encoder
from .store import IndexStore, Snapshot, quote_name
from .vectors import BLOCK, load_faiss, nearest, rank, unpack


logger = logging.getLogger(__name__)

MIN_VECTORS = 200_000  # below, exact search takes milliseconds
MEASURED_RESULTS = (10, 100)  # a search for more than 10 is as one for 100
MAX_RESULTS = MEASURED_RESULTS[-1]  # the recall of longer answers is not measured: they are exact
QUERIES = 512  # of each kind, on which the recall is measured
STANDARD_ERRORS = 3  # of their mean, which must be so far above the target
TARGET = 0.99
CHANGED_FRACTION = 0.02  # of the vectors, added or deleted since: from there the file is written and measured anew
GROWTH = 2  # of the index since its clusters were found: from there they are found anew
POINTS_PER_CLUSTER = 50  # on which they are found; FAISS wants 39 at least


@dataclass(frozen=True)
class Measurement:
    """What an index records about a search that is not exact.

    Attributes:
        vectors, end: the vectors' file that it is of, and the slot after its last one.
        live: how many of the slots had an image.
        target: the recall that was asked for.
        recall: the part of the 10, or 100, best that is found: `{"10": {"images": ..., "texts": ...}, "100": ...}`.
        milliseconds, exact_milliseconds: of a search for 10, when it was measured.
    """

    EFFORT: ClassVar[str]  # the field that says how much a search looks at
    vectors: str
    end: int
    live: int
    target: float
    recall: dict[str, dict[str, float]]
    milliseconds: float
    exact_milliseconds: float

    def measured(self) -> dict[str, Any]:
        """The measurement as a user reads it."""
        names = ("target", "recall", self.EFFORT, "milliseconds", "exact_milliseconds")
        return {name: value for name, value in asdict(self).items() if name in names}

    def recall_at(self, k: int) -> tuple[int, float]:
        """For how many results a search for k was measured, and the recall of the kind of queries with the lower."""
        most = next(most for most in MEASURED_RESULTS if k <= most)
        return most, min(self.recall[str(most)].values())

    def __str__(self) -> str:
        recalls = [
            f"recall@{k} " + ", ".join(f"{recall:.4f} for {kind}" for kind, recall in kinds.items())
            for k, kinds in self.recall.items()
        ]
        times = f"{self.milliseconds:.2g} ms a search, exactly {self.exact_milliseconds:.2g} ms"
        return f"approximate search, measured {'; '.join(recalls)}; {times}"


@dataclass(frozen=True)
class Approximation(Measurement):
    """What an index records about its inverted file.

    Attributes:
        file, checksum: its name and CRC-32.
        trained: how many vectors there were when the clusters were found.
        nprobe: how many clusters a search for 10, or for 100, looks into: `{"10": ..., "100": ...}`.
    """

    EFFORT: ClassVar[str] = "nprobe"
    file: str
    checksum: int
    trained: int
    nprobe: dict[str, int]


def read_approximation(store: IndexStore) -> Approximation | None:
    """What an index notes of its inverted file, if it has one that is of its vectors."""
    noted = store.meta.get("approximate")
    approximation = Approximation(**json.loads(noted)) if noted else None
    return approximation if approximation and approximation.vectors == store.meta["file"] else None


def check_approximate(count: int, approximate: bool | None, recall: float | None) -> float:
    """Check that approximate search, if requested, is possible and useful for this number of images.

    Returns:
        The recall that it must have; 0 if it is not requested.

    Raises:
        ModuleNotFoundError: without FAISS; names the extra to install.
        ValueError: if there are too few images, or the recall is not in range.
    """
    if not approximate:
        if recall is not None:
            raise ValueError("--recall is only for approximate search: add --approximate")
        return 0.0
    target = TARGET if recall is None else recall
    if not 0 < target <= 1:
        raise ValueError(f"--recall must be above 0 and at most 1, got {target}")
    if count < MIN_VECTORS:
        raise ValueError(
            f"--approximate needs at least {MIN_VECTORS} images: {count} images are searched exactly in milliseconds"
        )
    if load_faiss() is None:
        raise ModuleNotFoundError("faiss is not installed, which --approximate needs: pip install 'hf-cots[search]'")
    return target


class Search(Protocol):
    """A search that may be approximate."""

    def nearest(self, snapshot: Snapshot, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k rows with the largest dot products, or nearly; as `vectors.nearest`."""


class ApproximateSearch:
    """The search in an inverted file.

    Args:
        inverted: a `faiss.IndexIVF` of the first slots.
        nprobe: how many clusters a search for so many results looks into.
    """

    def __init__(self, inverted: Any, nprobe: dict[int, int]):
        self.inverted, self.nprobe = inverted, nprobe
        self._version: int | None = None
        self._selector: Any = None

    @classmethod
    def open(cls, store: IndexStore) -> "ApproximateSearch | None":
        """That of an index; None, after a line in the log, if it has none that is whole and of its vectors."""
        approximation, faiss = read_approximation(store), load_faiss()
        reason = "its file for approximate search is missing, damaged or not up to date: `hf-cots index` mends it"
        if faiss is None:
            reason = "faiss is not installed: pip install 'hf-cots[search]'"
        if approximation is not None and faiss is not None:
            path = store.folder / approximation.file
            try:
                if file_checksum(path) == approximation.checksum:
                    nprobe = {int(k): value for k, value in approximation.nprobe.items()}
                    return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), nprobe)
            except (OSError, RuntimeError) as error:
                logger.info("%s: %s", path, error)
        logger.warning("searching %s exactly, because %s", store.folder, reason)
        return None

    def nearest(self, snapshot: Snapshot, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k rows with the largest dot products, or nearly; arguments and results as of `vectors.nearest`.

        The scores are exact, and so is the search of rows that the file does not have.
        """
        rows, live, covered = snapshot.rows, snapshot.live, self.inverted.ntotal
        query = np.ascontiguousarray(query, dtype=np.float32)
        found = self._candidates(snapshot, query, k)
        newer, _ = nearest(rows[covered:], query, k, None if live is None else live[covered:])
        found = np.concatenate([found, newer + covered])
        if len(found) < min(k, snapshot.count):  # the clusters are too small
            return nearest(rows, query, k, live)
        return rank(rows, query, found, k)

    def _candidates(self, snapshot: Snapshot, query: np.ndarray, k: int) -> np.ndarray:
        faiss = load_faiss()
        if self._version != snapshot.version:
            live = snapshot.live
            bits = None if live is None else np.packbits(live[: self.inverted.ntotal], bitorder="little")
            self._selector = None if bits is None else faiss.IDSelectorBitmap(bits)
            self._version = snapshot.version
        nprobe = next(self.nprobe[most] for most in MEASURED_RESULTS if k <= most)
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=self._selector)
        # More than k, because scores in 8 bits are not quite in order.
        found = self.inverted.search(query[None], 2 * k + 32, params=parameters)[1][0]
        return found[found >= 0]  # -1 where there are fewer


def file_checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


# ---------------------------------------------------------------------- writing


def update_approximate(store: IndexStore, encoder: Encoder) -> Approximation | None:
    """Bring the inverted file of an index up to date with its vectors, if it should have one.

    Args:
        store: opened for writing; its `approximate_target` is the recall that is asked for.
        encoder: embeds texts on which the recall is measured.

    Returns:
        What the index notes of it now.
    """
    target = float(store.meta.get("approximate_target", 0))
    with store.reading() as snapshot:
        pass
    approximation = None
    if target and load_faiss() is None:
        logger.warning("faiss is not installed: the approximate search of %s was not updated", store.folder)
        return read_approximation(store)
    if target and snapshot.count < MIN_VECTORS:
        logger.warning("%s has fewer than %d different images and is searched exactly", store.folder, MIN_VECTORS)
    elif target:
        approximation = _usable(store, target)
        if approximation is None or count_changes(approximation, snapshot) > CHANGED_FRACTION * snapshot.count:
            approximation = _write(store, snapshot, target, encoder, approximation)
    if approximation is None and "approximate" in store.meta:
        with store.transaction() as database:
            database.execute("DELETE FROM meta WHERE key = 'approximate'")
    for path in store.folder.glob("approximate-*"):
        if approximation is None or path.name != approximation.file:
            path.unlink()
    return approximation


def _usable(store: IndexStore, target: float) -> Approximation | None:
    """The inverted file that there is, if it is whole, of these vectors, and for this target."""
    approximation = read_approximation(store)
    if approximation is None or approximation.target != target:
        return None
    path = store.folder / approximation.file
    return approximation if path.is_file() and file_checksum(path) == approximation.checksum else None


def count_changes(measured: Measurement, snapshot: Snapshot) -> int:
    """How many vectors were added or deleted since a search was measured."""
    added = len(snapshot.rows) - measured.end
    return added + (measured.live + added - snapshot.count)


def _write(
    store: IndexStore,
    snapshot: Snapshot,
    target: float,
    encoder: Encoder,
    before: Approximation | None,
) -> Approximation | None:
    """Write the inverted file of a snapshot and name it in a transaction; None if it cannot reach the target."""
    start, faiss = time.monotonic(), load_faiss()
    grown = before is None or snapshot.count > GROWTH * before.trained
    if before is None or grown:
        inverted, trained = _train(snapshot), snapshot.count
    else:
        inverted, trained = faiss.read_index(str(store.folder / before.file)), before.trained
    for first in range(inverted.ntotal, len(snapshot.rows), BLOCK):
        vectors = np.array(unpack(snapshot.rows[first : first + BLOCK]))
        if snapshot.live is not None:
            vectors[~snapshot.live[first : first + BLOCK]] = 0  # damaged ones may hold NaN
        inverted.add(vectors)
    search, queries = ApproximateSearch(inverted, {}), draw_queries(store, snapshot, encoder)
    recalls = _choose(search, snapshot, queries, target)
    if recalls is None:
        logger.warning(
            "%s is searched exactly: approximate search does not reach a recall of %g", store.folder, target
        )
        return None
    every = np.concatenate(list(queries.values()))
    path = _next_file(store.folder)
    _write_synced(path, lambda draft: faiss.write_index(inverted, str(draft)))
    approximation = Approximation(
        file=path.name,
        checksum=file_checksum(path),
        vectors=store.meta["file"],
        end=len(snapshot.rows),
        live=snapshot.count,
        trained=trained,
        target=target,
        nprobe={str(k): nprobe for k, nprobe in search.nprobe.items()},
        recall={str(k): recall for k, recall in recalls.items()},
        milliseconds=time_search(lambda query: search.nearest(snapshot, query, 10), every),
        exact_milliseconds=time_search(lambda query: nearest(snapshot.rows, query, 10, snapshot.live), every[::64]),
    )
    with store.transaction():
        store.set_meta(approximate=json.dumps(asdict(approximation)))
    logger.info("wrote %s in %.0f s: %s", path, time.monotonic() - start, approximation)
    return approximation


def _next_file(folder: Path) -> Path:
    """A name that no inverted file has had while this one is there."""
    numbers = [int(path.name.split("-")[1].split(".")[0]) for path in folder.glob("approximate-*")]
    return folder / f"approximate-{max(numbers, default=0) + 1}.faiss"


def _write_synced(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is complete on disk once it has its name.

    Raises:
        OSError: if it cannot be written.
    """

    def write_draft(draft: Path) -> None:
        try:
            write(draft)
        except RuntimeError as error:
            raise OSError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        with open(draft, "rb") as file:
            os.fsync(file.fileno())

    replace_file(path, write_draft)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _train(snapshot: Snapshot) -> Any:
    """An empty inverted file, with clusters of the vectors that count."""
    faiss = load_faiss()
    clusters = 2 ** round(np.log2(2 * np.sqrt(snapshot.count)))
    vectors = snapshot.vectors(_draw(snapshot, POINTS_PER_CLUSTER * clusters))
    inverted = faiss.index_factory(vectors.shape[1], f"IVF{clusters},SQ8", faiss.METRIC_INNER_PRODUCT)
    inverted.train(vectors)
    return inverted


def _live_slots(snapshot: Snapshot, first: int, end: int) -> np.ndarray:
    """The slots that count, from `first` to before `end`."""
    if snapshot.live is None:
        return np.arange(first, min(end, len(snapshot.rows)))
    return first + np.flatnonzero(snapshot.live[first:end])


def _draw(snapshot: Snapshot, count: int) -> np.ndarray:
    """Slots that count, drawn at random, always the same, in order."""
    slots = _live_slots(snapshot, 0, len(snapshot.rows))
    return np.sort(np.random.default_rng(0).choice(slots, min(count, len(slots)), replace=False))


# ---------------------------------------------------------------------- measuring


def draw_queries(store: IndexStore, snapshot: Snapshot, encoder: Encoder) -> dict[str, np.ndarray]:
    """Embeddings of images and of texts of an index, of each up to [`QUERIES`]."""
    texts = np.asarray(encoder.encode_texts(_texts(store)))
    queries = {"images": snapshot.vectors(_draw(snapshot, QUERIES)), "texts": texts[np.isfinite(texts).all(axis=1)]}
    return {kind: embeds for kind, embeds in queries.items() if len(embeds)}


def _texts(store: IndexStore) -> list[str]:
    """Texts as one may search for: cells of the first column that says something else of most images, or the files'
    names."""
    tables = store.database.execute("PRAGMA table_info(columns)")
    names = [name for _, name, affinity, *_ in tables if affinity == "TEXT"]
    ids = [each for (each,) in store.database.execute("SELECT id FROM images WHERE slot IS NOT NULL ORDER BY id")]
    drawn = np.random.default_rng(1).choice(ids, min(QUERIES, len(ids)), replace=False).tolist()
    columns = "".join(f", columns.{quote_name(name)}" for name in names)
    rows = store.database.execute(
        f'SELECT images.path{columns} FROM images LEFT JOIN columns ON "hf_cots image" = images.id '
        f"WHERE images.id IN ({', '.join(map(str, drawn))}) ORDER BY images.path"
    ).fetchall()
    for cells in list(zip(*rows))[1:]:
        texts = dict.fromkeys(cell for cell in cells if isinstance(cell, str) and cell.strip())
        if len(texts) > len(drawn) / 2:
            return list(texts)
    return list(dict.fromkeys(" ".join(Path(path).stem.replace("_", " ").split("-")) or "image" for path, *_ in rows))


def _choose(
    search: ApproximateSearch, snapshot: Snapshot, queries: dict[str, np.ndarray], target: float
) -> dict[int, dict[str, float]] | None:
    """Give a search, for each number of results, the least `nprobe` with which the recall of all kinds of queries
    reaches a target, some standard errors below its mean; returns the means, or None if none does."""
    least = {kind: least_scores(snapshot, embeds) for kind, embeds in queries.items()}
    means = {}
    for k in MEASURED_RESULTS:

        def reaches(nprobe: int, k: int = k) -> bool:
            search.nprobe[k] = nprobe
            recalls = {kind: find_recalls(search, snapshot, queries[kind], k, least[kind][k]) for kind in queries}
            enough = are_sure(recalls, target)
            if enough:
                means[k] = {kind: float(each.mean()) for kind, each in recalls.items()}
            return enough

        low, high = 0, 1  # `low` is not enough
        while not reaches(high):
            if high == search.inverted.nlist:
                return None
            low, high = high, min(2 * high, search.inverted.nlist)
        while high - low > max(1, high // 16):  # a smaller step changes little
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        search.nprobe[k] = high
    return means


def are_sure(recalls: dict[str, np.ndarray], target: float) -> bool:
    """Whether the recall of all kinds of queries reaches a target, some standard errors below its mean."""
    sure = [each.mean() - STANDARD_ERRORS * each.std() / len(each) ** 0.5 for each in recalls.values()]
    return min(sure) >= target


def least_scores(snapshot: Snapshot, queries: np.ndarray) -> dict[int, np.ndarray]:
    """For each number of results, the (n,) exact scores that an image needs to be among them."""
    faiss = load_faiss()
    slots: np.ndarray = np.empty((len(queries), 0), dtype=np.int64)
    scores: np.ndarray = np.empty((len(queries), 0), dtype=np.float32)
    for first in range(0, len(snapshot.rows), BLOCK):
        numbers = _live_slots(snapshot, first, first + BLOCK)
        if len(numbers):
            best, local = faiss.knn(
                queries, snapshot.vectors(numbers), min(MAX_RESULTS, len(numbers)), faiss.METRIC_INNER_PRODUCT
            )
            slots, scores = np.hstack([slots, numbers[local]]), np.hstack([scores, best])
            order = np.argsort(-scores, axis=1)[:, :MAX_RESULTS]
            slots, scores = (np.take_along_axis(each, order, axis=1) for each in (slots, scores))
    exact = [rank(snapshot.rows, query, each, len(each))[1] for query, each in zip(queries, slots)]
    return {k: np.array([each[:k][-1] for each in exact]) for k in MEASURED_RESULTS}


def find_recalls(search: Search, snapshot: Snapshot, queries: np.ndarray, k: int, least: np.ndarray) -> np.ndarray:
    """Of each query, the part of the k best that is found; images with equal scores are as good as one another."""
    found = [search.nearest(snapshot, query, k)[1][:k] for query in queries]
    return np.array([(scores >= score).sum() for scores, score in zip(found, least)]) / min(k, snapshot.count)


def time_search(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    start = time.perf_counter()
    for query in queries:
        search(query)
    return (time.perf_counter() - start) / len(queries) * 1000
