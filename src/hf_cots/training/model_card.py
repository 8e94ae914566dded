"""Write the card of a saved model from the templates beside this file."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from .._errors import naming
from ..evaluation.rendering.tables import card_table
from ..models import CookieConfig, COTSConfig, COTSImageTokenizerConfig, SimlaConfig
from ..models.cards import NO_LICENSE, UNKNOWN_LICENSE
from ..search.encoders import DIRECTIONS
from .names import data_name
from .record import LOSSES, QUERIES, TRAINING


RECIPE, RESULTS = "recipe.yaml", "results.json"
MARKED = re.compile(r"<!-- results -->.*?<!-- end of results -->", re.DOTALL)
TEMPLATES = Path(__file__).with_name("templates")


def write_card(template: str, folder: Path | str, data: ModelCardData, **values: Any) -> None:
    """Fill a template and save it as the folder's `README.md`."""
    card = ModelCard.from_template(data, template_path=str(TEMPLATES / template), **values)
    card.save(Path(folder) / "README.md")


def write_model_card(
    folder: Path | str,
    config: COTSConfig | SimlaConfig | CookieConfig,
    training: str,
    model_name: str | None = None,
    license: str | None = None,
    location: str | None = None,
) -> None:
    """Write `README.md` with the card of a retrieval model, from the training record and results in its folder.

    Args:
        folder: the model's folder. The card reports the contents of `training.json` ([`record_training`]) and
            `results.json` (an evaluation report), and shows or links `losses.png`, `queries.png` and `recipe.yaml`.
        config: the model's config.
        training: a sentence or two about the training data and its length.
        model_name: its name on the Hub; by default the folder's name.
        license: license of the weights, as a Hub identifier. It depends on the training data, so that only you can
            choose it; if None, the card says that no license was chosen.
        location: what the card's example passes to `from_pretrained`; defaults to the name.
    """
    folder = Path(folder)
    name, report = model_name or folder.name, read_report(folder)
    data = ModelCardData(
        license=license or UNKNOWN_LICENSE,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["hf_cots", config.model_type, "image-text-retrieval"],
        model_name=name,
        eval_results=None if report is None else list_metrics(report),
    )
    write_card(
        "model_card.md",
        folder,
        data,
        model_name=name,
        location=location or name,
        license=license,
        no_license=NO_LICENSE,
        config=config,
        vision=config.vision_config,
        text=config.text_config,
        training=training,
        results=render_results(folder, report),
        **about_training(folder),
    )


def about_training(folder: Path) -> dict[str, Any]:
    """Template variables about the training: `record`, the contents of `training.json` or None; `training_rows` of a
    table, which has the loss curves below it; and `has_recipe`."""
    path = folder / TRAINING
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    losses = LOSSES if (folder / LOSSES).is_file() else None
    rows = render_part("training.md", record=record, losses=losses)
    return {"record": record, "training_rows": rows, "has_recipe": (folder / RECIPE).is_file()}


def render_part(template: str, **values: Any) -> str:
    """Render the template of one part of a card."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return Template(text, trim_blocks=True, lstrip_blocks=True).render(**values).strip()


# ---------------------------------------------------------------------- results


def read_report(folder: Path) -> dict[str, Any] | None:
    """Read the evaluation report in a model's folder; None if there is none.

    Raises:
        ValueError: if `results.json` is not such a report.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    with naming(path):
        report = json.loads(path.read_text(encoding="utf-8"))
    if not all(name in report for name in (*DIRECTIONS, "chance")):
        raise ValueError(f"{path} is not a retrieval report: write one with `hf-cots evaluate --output`")
    return report


def evaluated_on(report: dict[str, Any]) -> str:
    """The name of the data in a report."""
    return data_name(report.get("data", {}).get("name", "held-out pairs"))


def list_metrics(report: dict[str, Any]) -> list[EvalResult]:
    """The metrics for the card's metadata."""
    task, data = "image-text-retrieval", evaluated_on(report)
    return [
        EvalResult(task, "custom", data, metric, value, metric_name=f"{direction} {metric}")
        for direction in DIRECTIONS
        for metric, value in report[direction].items()
        if metric.startswith("R@")
    ]


def render_results(folder: Path, report: dict[str, Any] | None) -> str:
    """Render the results section of a card, between its markers."""
    table = None if report is None else card_table(report)
    queries = QUERIES if (folder / QUERIES).is_file() else None
    data = None if report is None else evaluated_on(report)
    return render_part("results.md", report=report, table=table, data=data, queries=queries)


def refresh_results(folder: Path) -> None:
    """Update the results in a card, for example after `hf-cots evaluate --output` has written new ones next to it. A
    card without markers around its results is left unchanged."""
    path, report = folder / "README.md", read_report(folder)
    card = ModelCard.load(path)
    if report is None or not MARKED.search(card.text):
        return
    card.text = MARKED.sub(lambda _: render_results(folder, report), card.text)
    card.data.eval_results = list_metrics(report)
    card.data.model_name = card.data.model_name or folder.name
    card.save(path)


def write_image_tokenizer_card(
    folder: Path | str,
    config: COTSImageTokenizerConfig,
    training: str,
    results: dict[str, float],
    eval_data: str | None,
    model_name: str,
    license: str | None = None,
    location: str | None = None,
) -> None:
    """Write `README.md` with the card of an image tokenizer.

    Args:
        folder, config, training, model_name, license, location: as for [`write_model_card`].
        results: metrics of [`evaluate_image_tokenizer`] on `eval_data`, with reconstructions in the folder's
            `reconstructions.png`; empty if it was not evaluated.
    """
    data = ModelCardData(
        license=license or UNKNOWN_LICENSE,
        library_name="transformers",
        tags=["hf_cots", "image-tokenizer"],
        model_name=model_name,
    )
    write_card(
        "image_tokenizer_card.md",
        folder,
        data,
        model_name=model_name,
        location=location or model_name,
        license=license,
        no_license=NO_LICENSE,
        config=config,
        training=training,
        results=results,
        data_name=eval_data,
        **about_training(Path(folder)),
    )


def tell_of_truncation(path: Path, dim: int, before: int) -> None:
    """Note in a card that the embeddings were truncated, and that its results are those of the full model."""
    card = ModelCard.load(path)
    card.data.eval_results = card.data.model_name = None  # which were not measured with these embeddings
    note = f"**Embeddings of the first {dim} of {before} dimensions.** Results below, if any, are of all {before}.\n"
    card.text = f"{note}\n{card.text}"
    card.save(path)
    (path.parent / RESULTS).unlink(missing_ok=True)  # from which a card's metadata are written
