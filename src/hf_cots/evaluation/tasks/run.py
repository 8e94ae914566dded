"""`hf-cots classify`, `text-matching` and `image-retrieval` without their flags: from names to a report.

A report is for JSON: the figures under the task's name with their `intervals`, `chance`, and what is needed to make
the same again: `model`, `data`, `settings`, `statistics`, `environment`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data.images import BrokenImage
from ...search.encoders import Encoder
from ...search.loading import load_encoder
from ..retrieval.report import data_fingerprint, environment
from ..retrieval.significance import LEVEL, RESAMPLES
from .image_retrieval import encode_labelled, retrieve_images
from .labelled_images import LabelledImages, load_labelled_images
from .sts import load_sts_benchmark, load_text_pairs, match_texts
from .zero_shot import classify, read_class_names, read_templates


def run_classification(
    model: str,
    data: str,
    templates: Sequence[str],
    classes: Path | None = None,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "test",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Zero-shot classification; see [`hf_cots.evaluation.tasks.zero_shot`] for the arguments.

    Raises:
        FileNotFoundError, OSError, ValueError: saying what is wrong with the model, the data or a setting. The same
            holds of the other tasks.
    """
    prompts = read_templates(templates)
    images = load_labelled_images(data, image_column, label_column, split)
    names = read_class_names(classes, images)
    encoder = load_encoder(model)
    result = classify(encoder, images, names, prompts, batch_size, progress=True)
    settings = {"templates": prompts, "class_names": names}
    return _complete(result.to_dict(), encoder, _describe(images, result.broken), settings, "pictures")


def run_text_matching(
    model: str,
    data: str,
    text_columns: tuple[str, str] = ("sentence1", "sentence2"),
    score_column: str = "score",
    split: str = "test",
    sts_benchmark: bool = False,
) -> dict[str, Any]:
    """Correlation of cosines with human scores; see [`hf_cots.evaluation.tasks.sts`] for the arguments."""
    pairs = load_sts_benchmark(data) if sts_benchmark else load_text_pairs(data, text_columns, score_column, split)
    encoder = load_encoder(model)
    result = match_texts(encoder, pairs)
    about = {"name": pairs.name, "fingerprint": pairs.fingerprint(), "rows": len(pairs.first)}
    settings = {"sts_benchmark": True} if sts_benchmark else {"columns": [*text_columns, score_column]}
    return _complete(result.to_dict(), encoder, about, settings, "pairs of texts")


def run_image_retrieval(
    model: str,
    data: str,
    gallery: str | None = None,
    across: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "test",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Image retrieval by label; see [`hf_cots.evaluation.tasks.image_retrieval`] for the arguments.

    Args:
        gallery: another data set with the same columns, to be searched instead of the queries' own.
    """
    columns = () if across is None else (across,)
    sets = [load_labelled_images(name, image_column, label_column, split, columns) for name in (data, gallery) if name]
    encoder = load_encoder(model)
    encoded = [encode_labelled(encoder, images, across, batch_size, progress=True) for images in sets]
    result = retrieve_images(*encoded)
    report = _complete(
        result.to_dict(), encoder, _describe(sets[0], encoded[0].broken), {"across": across}, "query pictures"
    )
    return report | ({"gallery": _describe(sets[1], encoded[1].broken)} if gallery else {})


def _describe(images: LabelledImages, broken: Sequence[BrokenImage]) -> dict[str, Any]:
    return {
        "name": images.name,
        "fingerprint": data_fingerprint(images.pictures),
        "rows": len(images.labels),
        "classes": len(images.classes),
        "image_column": images.pictures.image_column,
        "label_column": images.label_column,
        "left_out": [str(each) for each in broken],
    }


def _complete(
    result: dict[str, Any], encoder: Encoder, data: dict[str, Any], settings: dict[str, Any], items: str
) -> dict[str, Any]:
    return result | {
        "model": {"name": encoder.name, "fingerprint": encoder.fingerprint()},
        "data": data,
        "settings": settings,
        "statistics": {
            "intervals": f"{LEVEL:.0%}, percentiles of the bootstrap over {items}",
            "resamples": RESAMPLES,
            "seed": 0,
        },
        "environment": environment(),
    }
