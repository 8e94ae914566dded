"""Encode many images or texts: M + N forward passes, after which every comparison is a dot product."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..models import as_texts, load_image
from ..models.losses import l2_normalize
from ..models.processing_cots import NO_LIMIT
from ..models.processing_dual_encoder import PADDED_TO_FULL_LENGTH


AnyImage: TypeAlias = Image.Image | str | Path | bytes | np.ndarray | torch.Tensor  # what `load_image` reads


def check_batch_size(size: int) -> None:
    """Check that a batch has at least one item.

    Raises:
        ValueError: if it has none.
    """
    if not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {size!r}")


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most `size` items.

    Raises:
        ValueError: if the size is not positive.
    """
    check_batch_size(size)
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def as_images(images: AnyImage | Iterable[AnyImage]) -> Iterator[Image.Image]:
    """One image, or any collection of them, as RGB images, read one by one.

    Raises:
        ValueError: naming what is no image.
    """
    single = isinstance(images, (Image.Image, str, Path, bytes))
    if isinstance(images, (np.ndarray, torch.Tensor)):
        single = images.ndim < 4 and not (isinstance(images, np.ndarray) and images.dtype.kind in "OU")
    if not single and not isinstance(images, Iterable):
        raise ValueError(f"images must be an image or a collection of images, not {type(images).__name__}")
    for image in [images] if single else images:
        yield load_image(image)


def text_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Tokenizer options: pad to the longest text of the batch, truncate to the maximum length, if there is one."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    padding = "max_length" if model.config.model_type in PADDED_TO_FULL_LENGTH else "longest"
    limit = min(positions, tokenizer.model_max_length)
    return {"padding": padding, "truncation": True, "max_length": limit if limit < NO_LIMIT else None}


@torch.no_grad()
def embed_images(model: PreTrainedModel, inputs: BatchFeature) -> torch.Tensor:
    """(n, D) normalized embeddings, float32, on the CPU, of what a model's processor made of n images."""
    inputs = inputs.to(model.device, model.dtype)
    return l2_normalize(model.get_image_features(**inputs).pooler_output).float().cpu()


@torch.no_grad()
def encode_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: AnyImage | Iterable[AnyImage],
    batch_size: int = 64,
    total: int | None = None,
) -> torch.Tensor:
    """Normalized image embeddings (n, D), float32, on the CPU.

    Args:
        model: a COTS or another dual encoder with `get_image_features` and `get_text_features`, whose `pooler_output`
            is the projected vector; in evaluation mode, on any device.
        processor: the model's.
        images: one image or many, as PIL images, paths, bytes or arrays; taken one batch at a time.
        batch_size: images in a forward pass.
        total: their number, for the progress bar; no bar without it.

    Raises:
        ValueError: naming what is no image; or if the batch size is not positive.
    """
    embeddings = []
    with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
        for batch in batches(as_images(images), batch_size):
            embeddings.append(embed_images(model, processor(images=batch, return_tensors="pt")))
            bar.update(len(batch))
    # An empty result has the width of any text's embedding.
    return torch.cat(embeddings) if embeddings else encode_texts(model, processor, ["a"])[:0]


@torch.no_grad()
def encode_texts(
    model: PreTrainedModel, processor: ProcessorMixin, texts: str | Iterable[str], batch_size: int = 256
) -> torch.Tensor:
    """Normalized text embeddings (n, D), float32, on the CPU.

    Args:
        model, processor, batch_size: as for [`encode_images`].
        texts: one text, or any collection of texts; cut at [`text_options`]' length.

    Raises:
        ValueError: naming what is no text; or if the batch size is not positive.
    """
    texts = as_texts(texts)
    if not texts:
        return encode_texts(model, processor, ["a"])[:0]
    options = text_options(model, processor.tokenizer)
    embeddings = []
    for batch in batches(texts, batch_size):
        inputs = processor(text=batch, return_tensors="pt", **options).to(model.device)
        embeddings.append(l2_normalize(model.get_text_features(**inputs).pooler_output).float().cpu())
    return torch.cat(embeddings)
