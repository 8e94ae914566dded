"""`hf-cots classify`, `text-matching` and `image-retrieval` as functions, from names of model and data to a report.


A report has JSON types: the metrics under the task's name with their `intervals`, `chance`, and what is needed to
reproduce them: `model`, `data`, `settings`, `statistics`, `environment`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...search.encoders import Encoder
from ...search.loading import load_encoder
from ..results import EvaluationResult
from ..retrieval.report import environment
from ..retrieval.significance import LEVEL, RESAMPLES
from .image_retrieval import encode_labelled, evaluate_image_retrieval
from .labelled_images import load_labelled_images
from .prompts import read_templates
from .sts import evaluate_sts, load_sts_benchmark, load_text_pairs
from .zero_shot import evaluate_zero_shot, read_class_names


def run_classification(
    model: str,
    data: str,
    templates: Sequence[str],
    classes: Path | None = None,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "test",
    batch_size: int = 64,
    separator: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Evaluate zero-shot classification; see [`hf_cots.evaluation.tasks.zero_shot`] for the arguments. `revision` is
    the revision of the model on the Hub, in all tasks.

    Raises:
        FileNotFoundError, OSError, ValueError: saying what is wrong with the model, the data or a setting; the same in
            all tasks.
    """
    prompts = read_templates(templates)
    images = load_labelled_images(data, image_column, label_column, split, separator=separator)
    names = read_class_names(classes, images)
    encoder = load_encoder(model, revision=revision)
    result = evaluate_zero_shot(encoder, images, names, prompts, batch_size, progress=True)
    settings = {"templates": prompts, "class_names": names}
    return _build_report(result, encoder, images.describe(result.broken), settings, "images")


def run_text_matching(
    model: str,
    data: str,
    text_columns: tuple[str, str] = ("sentence1", "sentence2"),
    score_column: str = "score",
    split: str = "test",
    sts_benchmark: bool = False,
    separator: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Correlate cosines with human scores; see [`hf_cots.evaluation.tasks.sts`] for the arguments."""
    if sts_benchmark:
        pairs = load_sts_benchmark(data)
    else:
        pairs = load_text_pairs(data, text_columns, score_column, split, separator)
    encoder = load_encoder(model, revision=revision)
    settings = {"sts_benchmark": True} if sts_benchmark else {"columns": [*text_columns, score_column]}
    result = evaluate_sts(encoder, pairs)
    return _build_report(result, encoder, pairs.describe(), settings, "pairs of texts")


def run_image_retrieval(
    model: str,
    data: str,
    gallery: str | None = None,
    across: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "test",
    batch_size: int = 64,
    separator: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Evaluate image retrieval by label; see [`hf_cots.evaluation.tasks.image_retrieval`] for the arguments.

    Args:
        gallery: another data set with the same columns, which is searched instead of the queries.
    """
    columns = () if across is None else (across,)
    about_data = (image_column, label_column, split, columns, separator)
    sets = [load_labelled_images(name, *about_data) for name in (data, gallery) if name]
    encoder = load_encoder(model, revision=revision)
    encoded = [encode_labelled(encoder, images, across, batch_size, progress=True) for images in sets]
    about, *about_gallery = [images.describe(embeddings.broken) for images, embeddings in zip(sets, encoded)]
    result = evaluate_image_retrieval(*encoded)
    report = _build_report(result, encoder, about, {"across": across}, "query images")
    return report | ({"gallery": about_gallery[0]} if gallery else {})


def _build_report(
    result: EvaluationResult, encoder: Encoder, data: dict[str, Any], settings: dict[str, Any], items: str
) -> dict[str, Any]:
    return result.to_dict() | {
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
