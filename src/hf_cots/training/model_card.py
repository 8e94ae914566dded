"""The model card that every saved model carries."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.rendering.tables import markdown_table
from ..models import CookieConfig, COTSConfig, COTSImageTokenizerConfig, SimlaConfig


CARD = """---
{{ card_data }}
---

# {{ model_name }}

{{ about }}

## Use

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{{ model_name }}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{{ model_name }}", trust_remote_code=True)
outputs = model(**processor(images=images, text=texts, return_tensors="pt"))
outputs.logits_per_image  # (images, texts); image_embeds and text_embeds are normalised
```

## Training

{{ training }}

| | |
|---|---|
| image stream | {{ vision }} |
| text stream | {{ text }} |
| contrast | {{ contrast }} |
| weights | {{ weights }} |

## Results

{{ results }}

## Limits

The model knows what its training pairs showed. Check it on your own data before you rely on it, in particular where a
wrong or biased answer would harm someone.
"""


ABOUT = {
    "cots": """A COTS model (Lu et al., *COTS: Collaborative Two-Stream Vision-Language Pre-Training Model for
Cross-Modal Retrieval*, CVPR 2022, [arXiv 2204.07441](https://arxiv.org/abs/2204.07441)): two encoders that meet only
in a dot product. Trained with [hf_cots](https://pypi.org/project/hf-cots/); the paper's authors released no code or
weights, and this is not their model.""",
    "simla": """A SIMLA model (Khan et al., *Single-Stream Multi-Level Alignment for Vision-Language Pretraining*, ECCV
2022, [arXiv 2203.14395](https://arxiv.org/abs/2203.14395)): a dual encoder, and with `model.match` a judge that reads
a text and a picture together. Trained with [hf_cots](https://pypi.org/project/hf-cots/); these are not the authors'
weights.""",
    "cookie": """A COOKIE model (Wen et al., *COOKIE: Contrastive Cross-Modal Knowledge Sharing Pre-training for
Vision-Language Representation*, ICCV 2021): two encoders whose heads are one transformer with shared weights, and that
meet only in a dot product. Trained with [hf_cots](https://pypi.org/project/hf-cots/); the paper's authors released no
code or weights, and this is not their model.""",
}


IMAGE_TOKENIZER_CARD = """---
{{ card_data }}
---

# {{ model_name }}

An image tokenizer for [hf_cots](https://pypi.org/project/hf-cots/): a discrete VAE in the shape of DALL-E's (Ramesh et
al., *Zero-Shot Text-to-Image Generation*, 2021, [arXiv 2102.12092](https://arxiv.org/abs/2102.12092)) that turns a
picture of {{ side }} x {{ side }} pixels into {{ grid }} x {{ grid }} of {{ codes }} codes, and back. These are not
OpenAI's weights.

## Use

```python
from transformers import AutoModel

tokenizer = AutoModel.from_pretrained("{{ model_name }}", trust_remote_code=True)
codes = tokenizer.get_codebook_indices(pixels)  # pixels (n, 3, {{ side }}, {{ side }}) in [0, 1]
tokenizer.decode(codes)  # pixels again
```

## Training

{{ training }} Reconstruction: {{ reconstruction }}, KL weight {{ kl_weight }}.

## Results

{{ results }}
"""


def write_image_tokenizer_card(
    folder: Path | str,
    config: COTSImageTokenizerConfig,
    training: str,
    results: dict[str, float],
    data_name: str | None,
    model_name: str,
) -> None:
    """Write `README.md` with the card into an image tokenizer's folder.

    Args:
        folder, config, training, model_name: as for [`write_model_card`].
        results: of [`evaluate_image_tokenizer`] on `data_name`, whose picture lies in the folder as
            `reconstructions.png`; empty if it was not evaluated.
    """
    lines = ["Not evaluated."]
    if results:
        lines = [f"On `{data_name}`, pixels in [0, 1]:", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value:.5g} |" for name, value in results.items()]
        lines += ["", "![Pictures above what their codes keep](reconstructions.png)"]
    if results.get("collapsed"):
        lines += ["", "**The codebook has collapsed**: less than a tenth of it is in use."]
    ModelCard.from_template(
        ModelCardData(library_name="transformers", tags=["hf_cots", "image-tokenizer"], model_name=model_name),
        template_str=IMAGE_TOKENIZER_CARD,
        model_name=model_name,
        training=training,
        side=config.image_size,
        grid=config.grid_size,
        codes=config.codebook_size,
        reconstruction=config.reconstruction,
        kl_weight=config.kl_weight,
        results="\n".join(lines),
    ).save(Path(folder) / "README.md")


def contrast_line(config: COTSConfig | SimlaConfig | CookieConfig) -> str:
    """What a card says of the contrast."""
    if isinstance(config, CookieConfig):
        layers = f"{config.num_shared_layers} {'shared' if config.share_weights else 'unshared'} layers"
        return f"{config.cross_modal_loss} within the batch, temperature {config.temperature}, {layers}"
    return f"{config.contrast}, queue {config.queue_size}, momentum {config.momentum}"


def write_model_card(
    folder: Path | str,
    config: COTSConfig | SimlaConfig | CookieConfig,
    training: str,
    results: dict[str, dict[str, float]] | None = None,
    data_name: str = "held-out pairs",
    model_name: str | None = None,
    licence: str | None = None,
) -> None:
    """Write `README.md` with the card into a model folder.

    Args:
        folder: the model's.
        config: its config.
        training: a sentence or two on data and length of the training.
        results: `{"text_to_image": ..., "image_to_text": ...}` of [`evaluate_retrieval`], if it was evaluated.
        data_name: what the results were measured on.
        model_name: as the Hub will call it; the folder's name if not given.
        licence: of the weights; the owner of the training data knows it.
    """
    name = model_name or Path(folder).name
    metrics = [
        EvalResult("image-text-retrieval", "custom", data_name, metric, value, metric_name=f"{direction} {metric}")
        for direction, values in (results or {}).items()
        for metric, value in values.items()
        if metric.startswith("R@")
    ]
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["hf_cots", config.model_type, "image-text-retrieval"],
        model_name=name,
        eval_results=metrics or None,
    )
    vision, text = config.vision_config, config.text_config
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        model_name=name,
        training=training,
        vision=f"{vision.model_type}, {vision.image_size} pixels, patches of {vision.patch_size}, width "
        f"{vision.hidden_size}, {vision.num_hidden_layers} layers",
        text=f"{text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers",
        about=ABOUT[config.model_type],
        contrast=contrast_line(config),
        weights=", ".join(f"{name} {weight:g}" for name, weight in config.loss_weights.items()),
        results=(f"On {data_name}, in percent:\n\n" + markdown_table(results)) if results else "Not evaluated.",
    )
    card.save(Path(folder) / "README.md")
