"""Encode many images or texts: M + N forward passes, after which every comparison is a dot product.

Evaluation and search both stand on this file, which is why it lies on the lower of the two floors.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..models import COTSModel, COTSProcessor


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@torch.inference_mode()
def encode_images(
    model: COTSModel,
    processor: COTSProcessor,
    images: Iterable[Image.Image],
    batch_size: int = 64,
    total: int | None = None,
) -> torch.Tensor:
    """Normalised image embeddings (n, projection_dim), float32, on the CPU.

    Args:
        model: in evaluation mode, on any device.
        processor: the model's.
        images: RGB pictures, taken one batch at a time.
        batch_size: pictures in a forward pass.
        total: their number, for the progress bar; no bar without it.
    """
    embeddings = []
    with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
        for batch in batches(images, batch_size):
            pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
            embeddings.append(model(pixel_values=pixels.to(model.device, model.dtype)).image_embeds.float().cpu())
            bar.update(len(batch))
    return torch.cat(embeddings) if embeddings else torch.empty(0, model.config.projection_dim)


@torch.inference_mode()
def encode_texts(
    model: COTSModel, processor: COTSProcessor, texts: Sequence[str], batch_size: int = 256
) -> torch.Tensor:
    """Normalised text embeddings (n, projection_dim), float32, on the CPU; arguments as for [`encode_images`]."""
    embeddings = []
    for batch in batches(texts, batch_size):
        inputs = processor(text=batch, return_tensors="pt").to(model.device)
        embeddings.append(model(**inputs).text_embeds.float().cpu())
    return torch.cat(embeddings) if embeddings else torch.empty(0, model.config.projection_dim)
