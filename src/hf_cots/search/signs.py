"""Search in an index with binary vectors: candidates by the signs of the numbers, re-scored exactly.

A query is compared with the signs of all vectors, which are in memory (32 bytes for 256 dimensions); the vectors
themselves, with 8 bits per number, are read for the candidates only. The number of candidates is chosen to reach the
target recall, measured as for the inverted file of `approximate.py`.
"""

import json
import logging
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from .approximate import (
    CHANGED_FRACTION,
    MEASURED_RESULTS,
    TARGET,
    Measurement,
    are_sure,
    count_changes,
    draw_queries,
    find_recalls,
    least_scores,
    time_search,
)
from .encoders import Encoder
from .store import IndexStore, Snapshot
from .vectors import load_faiss, nearest, nearest_by_signs


logger = logging.getLogger(__name__)

FIRST = 4  # candidates per result that are tried first


@dataclass(frozen=True)
class SignMeasurement(Measurement):
    """The measured recall and time of the search by signs.

    Attributes:
        candidates: number of candidates that a search for 10, or for 100, scores: `{"10": ..., "100": ...}`.
    """

    EFFORT: ClassVar[str] = "candidates"
    candidates: dict[str, int]

    def open(self) -> "SignSearch":
        """Return the search that was measured."""
        return SignSearch({int(k): count for k, count in self.candidates.items()})


class SignSearch:
    """Search by signs.

    Args:
        candidates: number of candidates to score, by number of results.
    """

    def __init__(self, candidates: dict[int, int]):
        self.candidates = candidates

    def nearest(self, snapshot: Snapshot, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find (approximately) the k rows with the largest dot products; arguments and results as for
        `vectors.nearest`."""
        count = next(self.candidates[most] for most in MEASURED_RESULTS if k <= most)
        return nearest_by_signs(snapshot.rows, snapshot.bits, query, k, count, snapshot.live)


def check_binary(dtype: str | None) -> None:
    """Check that binary vectors, if requested, are possible.

    Raises:
        ModuleNotFoundError: without FAISS, which measures the recall; names the extra to install.
    """
    if dtype == "binary" and load_faiss() is None:
        raise ModuleNotFoundError("faiss is not installed, which --dtype binary needs: pip install 'hf-cots[search]'")


def read_signs(store: IndexStore) -> SignMeasurement | None:
    """Return the measurement of the search by signs; None if there is none for the current vectors' file."""
    noted = store.meta.get("signs")
    measured = SignMeasurement(**json.loads(noted)) if noted else None
    return measured if measured and measured.vectors == store.meta["file"] else None


def update_signs(store: IndexStore, encoder: Encoder) -> None:
    """Measure the search by signs of an index with binary vectors again, if enough vectors have changed.

    Args:
        store: opened for writing.
        encoder: encodes the texts with which the recall is measured.
    """
    if store.dtype != "binary":
        return
    with store.reading() as snapshot:
        pass
    before = read_signs(store)
    if before is not None and count_changes(before, snapshot) <= CHANGED_FRACTION * snapshot.count:
        return
    if load_faiss() is None:
        logger.warning("faiss is not installed: the recall of %s cannot be measured", store.folder)
        return
    if snapshot.count == 0:
        return
    queries = draw_queries(store, snapshot, encoder)
    search = SignSearch({})
    recalls = choose_candidates(search, snapshot, queries)
    every = np.concatenate(list(queries.values()))
    measured = SignMeasurement(
        vectors=store.meta["file"],
        end=len(snapshot.rows),
        live=snapshot.count,
        target=TARGET,
        recall={str(k): recall for k, recall in recalls.items()},
        milliseconds=time_search(lambda query: search.nearest(snapshot, query, 10), every),
        exact_milliseconds=time_search(lambda query: nearest(snapshot.rows, query, 10, snapshot.live), every[::64]),
        candidates={str(k): count for k, count in search.candidates.items()},
    )
    with store.transaction():
        store.set_meta(signs=json.dumps(asdict(measured)))


def choose_candidates(
    search: SignSearch, snapshot: Snapshot, queries: dict[str, np.ndarray]
) -> dict[int, dict[str, float]]:
    """Set, for each number of results, the smallest number of candidates (4, 8, 16, ... times the results) with which
    [`are_sure`] holds for [`TARGET`], or all vectors; returns the mean recalls."""
    least = {kind: least_scores(snapshot, embeds) for kind, embeds in queries.items()}
    means = {}
    for k in MEASURED_RESULTS:
        search.candidates[k] = FIRST * k
        while True:
            recalls = {kind: find_recalls(search, snapshot, queries[kind], k, least[kind][k]) for kind in queries}
            if are_sure(recalls, TARGET) or search.candidates[k] >= len(snapshot.rows):
                break
            search.candidates[k] *= 2
        means[k] = {kind: float(each.mean()) for kind, each in recalls.items()}
    return means
