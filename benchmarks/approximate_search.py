"""Approximate search of an index on disk: time to build, size, time and recall of a search.

    python -m benchmarks.approximate_search --output benchmarks/results/approximate_search.json

Vectors of 256 dimensions in 1,000 Gaussian clusters, noise as large as the centers' spread. Texts are draws of the
same clusters with twice the noise, moved by one vector of length 1 that all of them share, as the texts of dual
encoders are apart from the images: their best images have a cosine of 0.3. Recall is measured again on 4,096 queries
of each kind that the choice of parameters did not see; three bad ones among 256 move the mean by 0.007. Times are CPU
milliseconds of one thread, without the query's encoding.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from hf_cots.search.approximate import ApproximateSearch, update_approximate
from hf_cots.search.store import IndexStore, Snapshot
from hf_cots.search.vectors import nearest, pack, rank

from .machine import machine


DIM, CLUSTERS, BATCH = 256, 1_000, 50_000
QUERIES, TIMED = 4_096, 256  # of each kind


class Clusters:
    """Draws images and texts. An encoder, too, whose texts are such draws."""

    name, dim = "clusters", DIM

    def __init__(self):
        draws = np.random.default_rng(0)
        self.centers = draws.normal(size=(CLUSTERS, DIM)).astype(np.float32)
        gap = draws.normal(size=DIM).astype(np.float32)
        self.gap = gap / np.linalg.norm(gap)

    def images(self, count: int, seed: int, noise: float = 1.0) -> np.ndarray:
        """(count, DIM) float32 of length 1."""
        draws = np.random.default_rng(seed)
        rows = self.centers[draws.integers(CLUSTERS, size=count)]
        rows = rows + noise * draws.standard_normal((count, DIM), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def texts(self, count: int, seed: int) -> np.ndarray:
        """(count, DIM) float32 of length 1."""
        rows = self.images(count, seed, noise=2.0) + self.gap
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_texts(self, texts, batch_size: int = 256) -> np.ndarray:
        return self.texts(len(texts), seed=9)


def fill(store: IndexStore, clusters: Clusters, count: int, dtype: str) -> None:
    """Write so many images into an empty index."""
    for start in range(0, count, BATCH):
        rows = pack(clusters.images(min(BATCH, count - start), seed=1 + start), dtype)
        first, checksum = store.append(rows)
        with store.transaction() as database:
            database.execute("INSERT INTO batches VALUES (?, ?, ?)", (first, len(rows), checksum))
            slots = range(first, first + len(rows))
            database.executemany("INSERT INTO contents(slot, hash) VALUES (?, ?)", ((i, str(i)) for i in slots))
            database.executemany("INSERT INTO images(path, slot) VALUES (?, ?)", ((f"{i}.jpg", i) for i in slots))


def cpu_milliseconds(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """Of one query, the mean."""
    start = time.process_time()
    for query in queries:
        search(query)
    return round((time.process_time() - start) / len(queries) * 1000, 3)


def recall(search: ApproximateSearch, snapshot: Snapshot, queries: np.ndarray, k: int) -> tuple[float, float]:
    """Against `faiss.knn` over all vectors, which are float32: the mean, and its standard error."""
    _, best = faiss.knn(queries, np.ascontiguousarray(snapshot.rows), k, faiss.METRIC_INNER_PRODUCT)
    least = [rank(snapshot.rows, query, slots, k)[1][-1] for query, slots in zip(queries, best)]
    hits = [(search.nearest(snapshot, query, k)[1][:k] >= score).sum() for query, score in zip(queries, least)]
    recalls = np.array(hits) / k
    return round(float(recalls.mean()), 4), round(float(recalls.std()) / len(recalls) ** 0.5, 4)


def measure(folder: Path, count: int) -> dict:
    """Build, search, and describe."""
    clusters = Clusters()
    store = IndexStore.create(folder, DIM, "float32", fingerprint="{}", model="clusters", approximate_target="0.99")
    fill(store, clusters, count, "float32")
    wall, cpu = time.perf_counter(), time.process_time()
    approximation = update_approximate(store, clusters)  # type: ignore[arg-type]
    built = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    if approximation is None:
        raise ValueError(f"{count} vectors are searched exactly")
    start = time.perf_counter()
    search: Any = ApproximateSearch.open(store)
    opened = round(time.perf_counter() - start, 2)
    with store.reading() as snapshot:
        pass
    fresh = {"images": clusters.images(QUERIES, seed=7), "texts": clusters.texts(QUERIES, seed=8)}
    times: dict[str, dict[str, float]] = {"10": {}, "100": {}}
    recalls: dict[str, dict[str, float]] = {"10": {}, "100": {}}
    errors: dict[str, dict[str, float]] = {"10": {}, "100": {}}
    for kind, queries in fresh.items():
        for k in (10, 100):
            times[str(k)][kind] = cpu_milliseconds(partial(search.nearest, snapshot, k=k), queries[:TIMED])
            recalls[str(k)][kind], errors[str(k)][kind] = recall(search, snapshot, queries, k)
    return {
        "vectors": count,
        "build": built,
        "open_seconds": opened,
        "megabytes": round((folder / approximation.file).stat().st_size / 1e6, 1),
        "vectors_megabytes": round(store.vectors_path.stat().st_size / 1e6, 1),
        "clusters": search.inverted.nlist,
        "measured_by_the_index": approximation.measured(),
        "recall_on_other_queries": recalls,
        "its_standard_error": errors,
        "cpu_milliseconds": times,
        "cpu_milliseconds_exact": cpu_milliseconds(
            lambda query: nearest(snapshot.rows, query, 10), fresh["texts"][:20]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vectors", type=int, nargs="+", default=[200_000, 1_000_000])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    faiss.omp_set_num_threads(1)
    results = []
    for count in options.vectors:
        load = round(os.getloadavg()[0], 2)
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(Path(folder) / "index", count) | {"load_before": load})
        print(json.dumps(results[-1], indent=2), flush=True)
    report = {"machine": machine() | {"faiss": faiss.__version__}, "results": results}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
