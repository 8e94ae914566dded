"""Small vectors: what the dimensions and the bits of embeddings cost, in recall, among 152,000 icons.

    python -m benchmarks.small_vectors --work runs/ablation --output benchmarks/results/small_vectors.json

Two models learn heads on the stored features of frozen towers, as in `make icon-ablation` (one epoch, in-batch
contrast): one plainly, one with `nested_dims`. A gallery has the icons that trained and those of sets that did not,
each query is a name that icons of both have, and right is any icon of that name. Searches are those of an index in a
folder: float32, float16 and int8 exactly over the vectors as they are kept; binary by the signs, the best 10, 100 and
1,000 of which are ordered by the vectors in int8. Recall is against exact search with all dimensions in float32.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch

from hf_cots.models.losses import l2_normalize
from hf_cots.search.vectors import l2_normalize as normalize
from hf_cots.search.vectors import nearest, nearest_by_signs, pack, sign_bits, unpack

from .ablation.icons import icon_galleries, icons_file
from .ablation.measure import create_trainer
from .ablation.plan import Recipes, Run
from .ablation.sets import AblationSet
from .machine import machine


RECIPES = Path("benchmarks/ablation/icons.yaml")
NESTED = {"plain": [], "nested": [32, 64, 128]}
DIMS, K, TIMED = (256, 128, 64, 32), 10, 20
CANDIDATES = (10, 100, 1000)


def train(kind: str, work: Path, steps: int) -> dict[str, np.ndarray]:
    """Train a model; returns `gallery`, `queries` (n, 256) and the names of both."""
    recipes, data = Recipes(RECIPES), AblationSet.prepare("icons", work)
    recipes.content["rows"][kind] = recipes.content["rows"]["clip"] | {"nested_dims": NESTED[kind] or None}
    run = Run("icons", "heads", kind, 64, steps, "steps", 0.0, 0)
    trainer = create_trainer(recipes, run, data, work / "small_vectors" / kind, steps, smoke=False)
    trainer.train()
    model, stored, encoder = trainer.model.eval().encoder, trainer.train_dataset, trainer.encoder
    others = icon_galleries(data.folder)["unseen styles"]
    with torch.no_grad():
        known = l2_normalize(model.visual_projection(stored.image_features[stored.image_rows]))
    new = encoder.encode_images([others.read_row(row) for row in range(len(others))])
    names = pq.read_table(icons_file(data.folder, None), columns=["name"])["name"].to_pylist()
    new_names = others.table["name"][:]
    queries = sorted(set(new_names) & set(names))
    return {
        "gallery": np.concatenate([known.numpy(), new]),
        "names": np.array([*names, *new_names]),
        "queries": encoder.encode_texts(queries),
        "asked": np.array(queries),
    }


def load(kind: str, work: Path, steps: int) -> dict[str, np.ndarray]:
    """What [`train`] gives, which is kept."""
    path = work / "small_vectors" / f"{kind}-{steps}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = train(kind, work, steps)
        np.savez(path, **arrays)
    return dict(np.load(path))


def hits(found: np.ndarray, data: dict[str, np.ndarray]) -> float:
    """R@10 in percent: queries with an icon of their name among the first ten that are found (n, 10)."""
    return 100 * float((data["names"][found] == data["asked"][:, None]).any(axis=1).mean())


def find_best(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(n, 10) rows with the largest dot products."""
    return faiss.knn(queries, np.ascontiguousarray(gallery), K, faiss.METRIC_INNER_PRODUCT)[1]


def compare(found: np.ndarray, exact: np.ndarray, data: dict[str, np.ndarray]) -> dict[str, float]:
    """Recall of what is found (n, 10) against the exact answers, and R@10 of the task."""
    recall = np.mean([len(np.intersect1d(one, other)) / K for one, other in zip(found, exact)])
    return {"recall@10": round(float(recall), 4), "R@10": round(hits(found, data), 2)}


def time_search(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """CPU milliseconds of a query, the median of some."""
    taken = []
    for query in queries[: TIMED + 1]:
        start = time.process_time()
        search(query)
        taken.append(1000 * (time.process_time() - start))
    return round(float(np.median(taken[1:])), 2)


def measure(data: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every number of dimensions in every precision."""
    report: dict[str, Any] = {"gallery": len(data["gallery"]), "queries": len(data["queries"]), "rows": []}
    exact = find_best(data["gallery"], data["queries"])
    for dim in DIMS:
        gallery, queries = normalize(data["gallery"][:, :dim]), normalize(data["queries"][:, :dim])
        for dtype in ("float32", "float16", "int8"):
            rows = pack(gallery, dtype)
            about = {"dims": dim, "dtype": dtype, "bytes": rows[:1].nbytes}
            found = compare(find_best(unpack(rows), queries), exact, data)
            taken = time_search(partial(nearest, rows, k=K), queries)
            report["rows"].append(about | found | {"ms": taken})
        bits = sign_bits(rows)  # of the vectors in int8, which order the candidates
        for count in CANDIDATES:

            def search(query: np.ndarray, rows: Any = rows, bits: Any = bits, count: int = count) -> np.ndarray:
                return nearest_by_signs(rows, bits, query, K, count)[0][:K]

            about = {"dims": dim, "dtype": "binary", "candidates": count, "bytes": bits.shape[1]}
            found = compare(np.stack([search(query) for query in queries]), exact, data)
            report["rows"].append(about | found | {"ms": time_search(search, queries)})
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/small_vectors.json"))
    parser.add_argument("--steps", type=int, default=2400)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "steps": arguments.steps, "models": {}}
    for kind in NESTED:
        report["models"][kind] = measure(load(kind, arguments.work, arguments.steps))
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
