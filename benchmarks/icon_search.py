"""Searches icons with a trained model: by name, by keywords, in all colors, and beside a search of the icons' names.

    python -m benchmarks.icon_search runs/cots-icons/model --output model_cards/cots-icons

Needs the set of `make icons` and the extra `demo`. Writes `results.json` and `queries.png`, twenty queries with what
they find.
"""

import argparse
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from hf_cots import load_encoder
from hf_cots.data.augmentation import recolor_image
from hf_cots.data.images import read_image
from hf_cots.demo.figures import INK, PALE, Canvas
from hf_cots.demo.recipe import text_tower_folder
from hf_cots.search.encoders import Encoder
from hf_cots.search.keywords import reciprocal_ranks

from .ablation.icons import ICONS
from .machine import machine


KS = (1, 5, 10)
KEYWORDS = 5  # of an icon that make up a query, as in training
RESAMPLES = 2000
WINDOW = 1000  # of each ranking that count when two are fused
QUERIES = (
    "a place to sleep",
    "send a message",
    "throw away",
    "go back",
    "money",
    "a dangerous animal",
    "listen to music",
    "rainy weather",
    "a vehicle on rails",
    "take a picture",
    "a board game",
    "repair something",
    "a hot drink",
    "no internet",
    "birthday party",
    "see a doctor",
    "winter sports",
    "a ghost",
    "a medieval weapon",
    "something that lives in the sea",
)


def read_gallery(path: Path, names: pa.ChunkedArray | None = None) -> dict[str, list]:
    """Read `images`, `names`, and `keywords` (None where an icon has none), of icons with one of the names."""
    table = pq.read_table(path, columns=["image", "name", "keywords"])
    if names is not None:
        table = table.filter(pc.is_in(table["name"], names))
    rows = table.to_pylist()
    return {
        "images": [read_image(row["image"]["bytes"]) for row in rows],
        "names": [row["name"] for row in rows],
        "keywords": [", ".join(row["keywords"][:KEYWORDS]) or None for row in rows],
    }


def rank_best(scores: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(queries,) ranks, from 1, of each query's best correct answer; ties count against it."""
    best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~correct).sum(axis=1) + 1


def recalls(ranks: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Recall at 1, 5 and 10 in percent, with 95% intervals when names are drawn with replacement."""
    _, groups = np.unique(names, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(
        groups.max() + 1, np.full(groups.max() + 1, 1 / (groups.max() + 1)), RESAMPLES
    )
    weights = drawn[:, groups]  # (resamples, queries)
    result: dict[str, Any] = {"queries": len(ranks), "intervals": {}}
    for k in KS:
        found = ranks <= k
        result[f"R@{k}"] = 100 * float(found.mean())
        samples = 100 * (weights @ found) / weights.sum(axis=1)
        result["intervals"][f"R@{k}"] = np.quantile(samples, [0.025, 0.975]).tolist()
    return result


def measure_gallery(model: Encoder, sentences: Encoder, gallery: dict[str, list]) -> dict[str, Any]:
    """Search a gallery by name, and by keywords: with the model, by the icons' names, and with both."""
    names = gallery["names"]
    images = model.encode_images(gallery["images"])
    recolored = [recolor_image(image, np.random.default_rng(row)) for row, image in enumerate(gallery["images"])]
    others = model.encode_images(recolored)
    same = np.array(names)[:, None] == np.array(names)[None]
    chance = {f"R@{k}": 100 * float((1 - (1 - same.mean(axis=1)) ** k).mean()) for k in KS}
    by_name = model.encode_texts(names)
    report = {
        "chance": chance,
        "names": recalls(rank_best(by_name @ images.T, same), names),
        "names, recolored icons": recalls(rank_best(by_name @ others.T, same), names),
    }
    asked = [row for row, words in enumerate(gallery["keywords"]) if words]
    queries, wanted = [gallery["keywords"][row] for row in asked], [names[row] for row in asked]
    seen = model.encode_texts(queries) @ images.T
    read = sentences.encode_texts(queries) @ sentences.encode_texts(names).T
    both = np.stack([reciprocal_ranks(a, WINDOW) + reciprocal_ranks(b, WINDOW) for a, b in zip(seen, read)])
    for label, scores in (("model", seen), ("MiniLM on names", read), ("both", both)):
        report[f"keywords, {label}"] = recalls(rank_best(scores, same[asked]), wanted)
    return report


def measure_speed(model: Encoder, gallery: dict[str, list]) -> dict[str, float]:
    """Median milliseconds for one icon alone and for each of 64, and for one text, on one thread."""
    torch.set_num_threads(1)
    some, texts = gallery["images"][:64], gallery["names"][:64]
    calls = {
        "one icon": (lambda i: model.encode_images([some[i]]), 1),
        "an icon of 64": (lambda i: model.encode_images(some), 64),
        "one text": (lambda i: model.encode_texts([texts[i]]), 1),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(20):
        for name, (call, size) in calls.items():
            start = time.perf_counter()
            call(i)
            taken[name].append(1000 * (time.perf_counter() - start) / size)
    return {name: round(float(np.median(values[2:])), 3) for name, values in taken.items()}


def draw_queries(model: Encoder, gallery: dict[str, list], path: Path, columns: int = 8) -> None:
    """Draw the queries, ten on the left and ten on the right, with the icons that they find; one of each name."""
    images = model.encode_images(gallery["images"])
    similarities = model.encode_texts(list(QUERIES)) @ images.T
    page = Canvas(16, 9.2)
    page.text(0.5, 0.3, "Twenty queries among icons of words and sets that never trained", 17, INK)
    for number, (query, row) in enumerate(zip(QUERIES, similarities)):
        left, top = 0.4 + 7.9 * (number // 10), 1.0 + 0.81 * (number % 10)
        page.text(left + 1.5, top + 0.25, textwrap.fill(query, 19), 10, ha="right", va="center")
        best: dict[str, int] = {}
        for index in np.argsort(-row, kind="stable"):
            best.setdefault(gallery["names"][index], int(index))
            if len(best) == columns:
                break
        for column, (name, index) in enumerate(best.items()):
            place = left + 1.65 + 0.75 * column
            page.image(place, top, 0.5, gallery["images"][index])
            page.text(place + 0.25, top + 0.52, textwrap.shorten(name, 17, placeholder="…"), 5.5, PALE, ha="center")
    page.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--icons", type=Path, default=ICONS)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    trained = pq.read_table(arguments.icons / "train.parquet", columns=["name"])["name"]
    galleries = {
        "unseen words": read_gallery(arguments.icons / "test.parquet"),
        "known words, unseen styles": read_gallery(arguments.icons / "test_new_styles.parquet", trained),
    }
    model: Any = load_encoder(str(arguments.model))
    sentences = load_encoder(text_tower_folder())
    report: dict[str, Any] = {"machine": machine()}
    report["parameters"] = {
        name: sum(each.numel() for each in part.parameters()) for name, part in model.model.named_children()
    }
    for name, gallery in galleries.items():
        report[name] = measure_gallery(model, sentences, gallery)
        print(f"{name}: " + ", ".join(f"{row} {each['R@10']:.1f}" for row, each in report[name].items()))
    report["milliseconds"] = measure_speed(model, galleries["unseen words"])
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    first, second = galleries.values()
    draw_queries(model, {key: first[key] + second[key] for key in first}, arguments.output / "queries.png")


if __name__ == "__main__":
    main()
