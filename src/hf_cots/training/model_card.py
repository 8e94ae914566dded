"""Write the card of a saved model from the templates beside this file."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.rendering.tables import markdown_table
from ..models import CookieConfig, COTSConfig, COTSImageTokenizerConfig, SimlaConfig
from ..models.cards import NO_LICENSE, UNKNOWN_LICENSE


TEMPLATES = Path(__file__).with_name("templates")


def write_card(template: str, folder: Path | str, data: ModelCardData, **values: Any) -> None:
    """Fill a template and save it as the folder's `README.md`."""
    card = ModelCard.from_template(data, template_path=str(TEMPLATES / template), **values)
    card.save(Path(folder) / "README.md")


def write_model_card(
    folder: Path | str,
    config: COTSConfig | SimlaConfig | CookieConfig,
    training: str,
    results: dict[str, dict[str, float]] | None = None,
    data_name: str = "held-out pairs",
    model_name: str | None = None,
    license: str | None = None,
    location: str | None = None,
) -> None:
    """Write `README.md` with the card of a retrieval model.

    Args:
        folder: the model's folder.
        config: the model's config.
        training: a sentence or two on data and length of the training.
        results: `{"text_to_image": ..., "image_to_text": ...}` of [`evaluate_retrieval`], if it was evaluated.
        data_name: the data that the results were measured on.
        model_name: its name on the Hub; by default the folder's name.
        license: of the weights, as the Hub names it. It depends on the training data, so only their owner can name it;
            without it the card says so.
        location: what the card's example passes to `from_pretrained`; by default the name.
    """
    name = model_name or Path(folder).name
    metrics = [
        EvalResult("image-text-retrieval", "custom", data_name, metric, value, metric_name=f"{direction} {metric}")
        for direction, values in (results or {}).items()
        for metric, value in values.items()
        if metric.startswith("R@")
    ]
    data = ModelCardData(
        license=license or UNKNOWN_LICENSE,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["hf_cots", config.model_type, "image-text-retrieval"],
        model_name=name,
        eval_results=metrics or None,
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
        results=markdown_table(results) if results else None,
        data_name=data_name,
    )


def write_image_tokenizer_card(
    folder: Path | str,
    config: COTSImageTokenizerConfig,
    training: str,
    results: dict[str, float],
    data_name: str | None,
    model_name: str,
    license: str | None = None,
    location: str | None = None,
) -> None:
    """Write `README.md` with the card of an image tokenizer.

    Args:
        folder, config, training, model_name, license, location: as for [`write_model_card`].
        results: metrics of [`evaluate_image_tokenizer`] on `data_name`, whose image of reconstructions is
            `reconstructions.png` in the folder; empty if it was not evaluated.
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
        data_name=data_name,
    )


def tell_of_truncation(path: Path, dim: int, before: int) -> None:
    """Say in a card that the embeddings were truncated, and that its results are those of the whole model."""
    card = ModelCard.load(path)
    card.data.eval_results = card.data.model_name = None  # which were not measured with these embeddings
    note = f"**Embeddings of the first {dim} of {before} dimensions.** Results below, if any, are of all {before}.\n"
    card.text = f"{note}\n{card.text}"
    card.save(path)
