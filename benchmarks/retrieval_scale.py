"""Time and memory of retrieval metrics from embeddings.

    OMP_NUM_THREADS=2 python -m benchmarks.retrieval_scale --output benchmarks/results/retrieval_scale.json

1. The shape of COCO-5K, 5,000 images x 25,000 texts of 256 dimensions, both directions. Target: below 10 s on 2 cores
   and below 500 MB above the embeddings.
2. One 256th of the queries of 1,000,000 x 1,000,000, memory-mapped: the work of one of 256 processes. Ranking all
   queries takes the same memory plus 96 bytes of results per query.

Memory is the peak `RssAnon` of the process, sampled every 5 ms, less that before the start; pages of the mapped files,
which the system may drop at any time, are `RssFile` and not counted. `load_before` shows whether the machine was in
use: with more than one busy process per core, threads wait for each other and times mean little.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from hf_cots.evaluation.retrieval.ranking import rank_queries

from .machine import machine


def anonymous_memory() -> float:
    """Read `RssAnon` of this process in MB (10^6 bytes)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / 1e6


class Watch:
    """Measures wall time and peak memory of a `with` block."""

    def __enter__(self):
        self.before = self.peak = anonymous_memory()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        self.start, self.start_of_work = time.perf_counter(), time.process_time()
        return self

    def sample(self):
        while not self.stop.wait(0.005):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self.start
        self.work = time.process_time() - self.start_of_work
        self.stop.set()
        self.thread.join()

    def result(self) -> dict:
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.work, 2),
            "megabytes_above": round(self.peak - self.before),
        }


def coco_5k() -> dict:
    """Rank both directions three times; reports the run with the median time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(5_000, 256, generator=generator), dim=1)
    ids = torch.arange(5_000)
    text_ids = ids.repeat_interleave(5)
    texts = torch.nn.functional.normalize(
        images[text_ids] + 0.2 * torch.randn(25_000, 256, generator=generator), dim=1
    )
    images, texts, ids, text_ids = (each.numpy() for each in (images, texts, ids, text_ids))
    runs = []
    for _ in range(3):
        with Watch() as watch:
            to_image = rank_queries(texts, images, text_ids, ids)
            to_text = rank_queries(images, texts, ids, text_ids)
        runs.append(watch.result())
    recalls = [round(float(columns["R@1"].mean()), 3) for columns in (to_image, to_text)]
    median = sorted(runs, key=lambda run: run["seconds"])[1]
    return median | {"megabytes_above": max(run["megabytes_above"] for run in runs), "runs": runs, "R@1": recalls}


def sampled_queries(folder: Path, size: int, parts: int) -> dict:
    """Rank one of `parts` equal parts of the queries of size x size, from mapped files."""
    generator = np.random.default_rng(0)
    for name in ("queries", "gallery"):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (size, 256))
        for start in range(0, size, 100_000):
            rows = generator.standard_normal((min(100_000, size - start), 256), dtype=np.float32)
            file[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        del file
    ids = np.arange(size)
    queries, gallery = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("queries", "gallery"))
    with Watch() as watch:
        columns = rank_queries(queries, gallery, ids, ids, shard=(0, parts))
    done = len(columns["rank"])
    return watch.result() | {
        "queries": size,
        "queries_ranked": done,
        "gallery": size,
        "scores_per_second": round(done * size / watch.seconds),
        "hours_for_all_queries": round(watch.seconds * parts / 3600, 1),
        "megabytes_of_results_for_all_queries": round(8 * len(columns) * size / 1e6),
        "mean_rank": round(float(columns["rank"].mean())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/retrieval_scale.json"))
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=256)
    arguments = parser.parse_args()
    results = {
        "load_before": round(os.getloadavg()[0], 1),
        "machine": machine(),
        "coco_5k_both_directions": coco_5k(),
    }
    with tempfile.TemporaryDirectory() as folder:
        results["sampled_queries"] = sampled_queries(Path(folder), arguments.size, arguments.parts)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
