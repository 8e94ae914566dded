"""Encode many images or texts: M + N forward passes, after which every comparison is a dot product."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..models.losses import l2_normalize


# Text towers that were trained on texts padded to full length, without an attention mask (Zhai et al., 2023).
PADDED_TO_FULL_LENGTH = ("siglip", "siglip2")


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def text_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Tokenizer options: pad to the longest text of the batch, truncate to the model's maximum length."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    padding = "max_length" if model.config.model_type in PADDED_TO_FULL_LENGTH else "longest"
    return {"padding": padding, "truncation": True, "max_length": min(positions, tokenizer.model_max_length)}


@torch.inference_mode()
def encode_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Iterable[Image.Image],
    batch_size: int = 64,
    total: int | None = None,
) -> torch.Tensor:
    """Normalized image embeddings (n, D), float32, on the CPU.

    Args:
        model: a COTS or another dual encoder with `get_image_features` and `get_text_features`, whose `pooler_output`
            is the projected vector; in evaluation mode, on any device.
        processor: the model's.
        images: RGB images, taken one batch at a time.
        batch_size: images in a forward pass.
        total: their number, for the progress bar; no bar without it.
    """
    embeddings = []
    with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
        for batch in batches(images, batch_size):
            inputs = processor(images=batch, return_tensors="pt").to(model.device, model.dtype)
            embeddings.append(l2_normalize(model.get_image_features(**inputs).pooler_output).float().cpu())
            bar.update(len(batch))
    # An empty result has the width of any text's embedding.
    return torch.cat(embeddings) if embeddings else encode_texts(model, processor, ["a"])[:0]


@torch.inference_mode()
def encode_texts(
    model: PreTrainedModel, processor: ProcessorMixin, texts: Sequence[str], batch_size: int = 256
) -> torch.Tensor:
    """Normalized text embeddings (n, D), float32, on the CPU; arguments as for [`encode_images`]."""
    if not texts:
        return encode_texts(model, processor, ["a"])[:0]
    options = text_options(model, processor.tokenizer)
    embeddings = []
    for batch in batches(texts, batch_size):
        inputs = processor(text=batch, return_tensors="pt", **options).to(model.device)
        embeddings.append(l2_normalize(model.get_text_features(**inputs).pooler_output).float().cpu())
    return torch.cat(embeddings)
