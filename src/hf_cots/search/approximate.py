"""Approximate search of a large index: a FAISS inverted file (IVF) beside the vectors, whose recall is measured.

The inverted file keeps the vectors in clusters, with 8 bits per number. A search scans the `nprobe` clusters nearest
to the query and sorts the candidates by exact scores. `nprobe` is the smallest value that reaches the requested
recall, measured against exact search with images and texts of the index itself, with a margin of three standard
errors: a value that is just enough for some queries is too small for others, since most misses come from a few
queries that lie between the clusters.

    approximate-N.faiss     the vectors' file up to some slot, slot by slot; N changes each time it is written

The file is complete on disk before the transaction that names it. Vectors added since are searched exactly, deleted
ones are left out, and an inverted file of another vectors' file is not used.
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
MEASURED_RESULTS = (10, 100)  # a search for 11 to 100 results uses the settings for 100
MAX_RESULTS = MEASURED_RESULTS[-1]  # searches for more are exact, because their recall is not measured
QUERIES = 512  # queries of each kind on which the recall is measured
STANDARD_ERRORS = 3  # how far the mean recall must be above the target
TARGET = 0.99
CHANGED_FRACTION = 0.02  # the file is rewritten and measured again once more than this part of the vectors changed
GROWTH = 2  # the clusters are trained again once the index is larger than this multiple of its size at training
POINTS_PER_CLUSTER = 50  # training points per cluster; FAISS wants at least 39


@dataclass(frozen=True)
class Measurement:
    """The measured recall and time of a search that is not exact.

    Attributes:
        vectors, end: the measured vectors' file, and the slot after its last one.
        live: number of slots that had an image.
        target: the requested recall.
        recall: recall@10 and recall@100: `{"10": {"images": ..., "texts": ...}, "100": ...}`.
        milliseconds, exact_milliseconds: time of an approximate and of an exact search for 10, when measured.
    """

    EFFORT: ClassVar[str]  # name of the field that controls how much is searched
    vectors: str
    end: int
    live: int
    target: float
    recall: dict[str, dict[str, float]]
    milliseconds: float
    exact_milliseconds: float

    def measured(self) -> dict[str, Any]:
        """Return the fields that are shown to users."""
        names = ("target", "recall", self.EFFORT, "milliseconds", "exact_milliseconds")
        return {name: value for name, value in asdict(self).items() if name in names}

    def recall_at(self, k: int) -> tuple[int, float]:
        """Return the number of results at which a search for k was measured, and the lower recall of the two kinds of
        queries there."""
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
    """The metadata of an inverted file.

    Attributes:
        file, checksum: its name and CRC-32.
        trained: number of vectors when the clusters were trained.
        nprobe: number of clusters that a search for 10, or for 100, scans: `{"10": ..., "100": ...}`.
    """

    EFFORT: ClassVar[str] = "nprobe"
    file: str
    checksum: int
    trained: int
    nprobe: dict[str, int]


def read_approximation(store: IndexStore) -> Approximation | None:
    """Return the metadata of the inverted file; None if there is none for the current vectors' file."""
    noted = store.meta.get("approximate")
    approximation = Approximation(**json.loads(noted)) if noted else None
    return approximation if approximation and approximation.vectors == store.meta["file"] else None


def check_approximate(count: int, approximate: bool | None, recall: float | None) -> float:
    """Check that approximate search, if requested, is possible and useful for this number of images.

    Returns:
        The recall that it must reach; 0 if approximate search is not requested.

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
        """Find (approximately) the k rows with the largest dot products; otherwise as `vectors.nearest`."""


class ApproximateSearch:
    """Search in an inverted file.

    Args:
        inverted: a `faiss.IndexIVF` of the first slots.
        nprobe: number of clusters to scan, by number of results.
    """

    def __init__(self, inverted: Any, nprobe: dict[int, int]):
        self.inverted, self.nprobe = inverted, nprobe
        self._version: int | None = None
        self._selector: Any = None

    @classmethod
    def open(cls, store: IndexStore) -> "ApproximateSearch | None":
        """Open the inverted file of an index; logs a warning and returns None if it is missing, damaged or outdated,
        or FAISS is not installed."""
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
        """Find (approximately) the k rows with the largest dot products; arguments and results as for
        `vectors.nearest`.

        The scores are exact, and rows that the inverted file does not have are searched exactly.
        """
        rows, live, covered = snapshot.rows, snapshot.live, self.inverted.ntotal
        query = np.ascontiguousarray(query, dtype=np.float32)
        found = self._candidates(snapshot, query, k)
        newer, _ = nearest(rows[covered:], query, k, None if live is None else live[covered:])
        found = np.concatenate([found, newer + covered])
        if len(found) < min(k, snapshot.count):  # the scanned clusters have too few rows
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
        # More than k, because the order by 8-bit scores is not quite exact.
        found = self.inverted.search(query[None], 2 * k + 32, params=parameters)[1][0]
        return found[found >= 0]  # FAISS pads with -1


def file_checksum(path: Path) -> int:
    """Compute the CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


# ---------------------------------------------------------------------- writing


def update_approximate(store: IndexStore, encoder: Encoder) -> Approximation | None:
    """Bring the inverted file of an index up to date with its vectors, or remove it if it is no longer wanted.

    Args:
        store: opened for writing; its `approximate_target` is the requested recall.
        encoder: encodes the texts with which the recall is measured.

    Returns:
        The metadata of the file, or None if there is no such file now.
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
    """Return the existing inverted file if it is undamaged, of the current vectors, and for this target."""
    approximation = read_approximation(store)
    if approximation is None or approximation.target != target:
        return None
    path = store.folder / approximation.file
    return approximation if path.is_file() and file_checksum(path) == approximation.checksum else None


def count_changes(measured: Measurement, snapshot: Snapshot) -> int:
    """Count the vectors that were added or deleted since a search was measured."""
    added = len(snapshot.rows) - measured.end
    return added + (measured.live + added - snapshot.count)


def _write(
    store: IndexStore,
    snapshot: Snapshot,
    target: float,
    encoder: Encoder,
    before: Approximation | None,
) -> Approximation | None:
    """Write the inverted file of a snapshot and commit its name; returns None if it cannot reach the target."""
    start, faiss = time.monotonic(), load_faiss()
    grown = before is None or snapshot.count > GROWTH * before.trained
    if before is None or grown:
        inverted, trained = _train(snapshot), snapshot.count
    else:
        inverted, trained = faiss.read_index(str(store.folder / before.file)), before.trained
    for first in range(inverted.ntotal, len(snapshot.rows), BLOCK):
        vectors = np.array(unpack(snapshot.rows[first : first + BLOCK]))
        if snapshot.live is not None:
            vectors[~snapshot.live[first : first + BLOCK]] = 0  # damaged vectors may hold NaN
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
    """Return a file name with a number above those of the existing inverted files."""
    numbers = [int(path.name.split("-")[1].split(".")[0]) for path in folder.glob("approximate-*")]
    return folder / f"approximate-{max(numbers, default=0) + 1}.faiss"


def _write_synced(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file such that it is complete on disk before it gets its name.

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
    """Return an empty inverted file, with clusters trained on live vectors."""
    faiss = load_faiss()
    clusters = 2 ** round(np.log2(2 * np.sqrt(snapshot.count)))
    vectors = snapshot.vectors(_draw(snapshot, POINTS_PER_CLUSTER * clusters))
    inverted = faiss.index_factory(vectors.shape[1], f"IVF{clusters},SQ8", faiss.METRIC_INNER_PRODUCT)
    inverted.train(vectors)
    return inverted


def _live_slots(snapshot: Snapshot, first: int, end: int) -> np.ndarray:
    """Return the live slots in `[first, end)`."""
    if snapshot.live is None:
        return np.arange(first, min(end, len(snapshot.rows)))
    return first + np.flatnonzero(snapshot.live[first:end])


def _draw(snapshot: Snapshot, count: int) -> np.ndarray:
    """Draw live slots at random with a fixed seed; returns them sorted."""
    slots = _live_slots(snapshot, 0, len(snapshot.rows))
    return np.sort(np.random.default_rng(0).choice(slots, min(count, len(slots)), replace=False))


# ---------------------------------------------------------------------- measuring


def draw_queries(store: IndexStore, snapshot: Snapshot, encoder: Encoder) -> dict[str, np.ndarray]:
    """Return the embeddings of up to [`QUERIES`] images and as many texts of an index."""
    texts = np.asarray(encoder.encode_texts(_texts(store)))
    queries = {"images": snapshot.vectors(_draw(snapshot, QUERIES)), "texts": texts[np.isfinite(texts).all(axis=1)]}
    return {kind: embeds for kind, embeds in queries.items() if len(embeds)}


def _texts(store: IndexStore) -> list[str]:
    """Return texts like those users search for: cells of the first text column with different texts for most of the
    drawn images, or else words of the file names."""
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
    """Set, for each number of results, the smallest `nprobe` with which [`are_sure`] holds for a target; returns the
    mean recalls, or None if no `nprobe` is enough."""
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
        while high - low > max(1, high // 16):  # smaller steps change little
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        search.nprobe[k] = high
    return means


def are_sure(recalls: dict[str, np.ndarray], target: float) -> bool:
    """Whether each kind of queries has a mean recall at least [`STANDARD_ERRORS`] standard errors above a target."""
    sure = [each.mean() - STANDARD_ERRORS * each.std() / len(each) ** 0.5 for each in recalls.values()]
    return min(sure) >= target


def least_scores(snapshot: Snapshot, queries: np.ndarray) -> dict[int, np.ndarray]:
    """Compute, for each number of results k, the (n,) exact scores of the queries' k-th best images."""
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
    """Compute the (n,) recall@k of a search for each query; images with equal scores are interchangeable."""
    found = [search.nearest(snapshot, query, k)[1][:k] for query in queries]
    return np.array([(scores >= score).sum() for scores, score in zip(found, least)]) / min(k, snapshot.count)


def time_search(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """Measure the mean time of a search in milliseconds."""
    start = time.perf_counter()
    for query in queries:
        search(query)
    return (time.perf_counter() - start) / len(queries) * 1000
