"""Encode many images or texts: M + N forward passes, after which every comparison is a dot product."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data.ahead import map_ahead
from ..data.images import BrokenImage
from ..models import COTSModel, as_texts, load_image
from ..models.losses import l2_normalize
from ..models.processing_cots import NO_LIMIT
from ..models.processing_dual_encoder import PADDED_TO_FULL_LENGTH
from .clips import PreparedClip, ReadAhead


T = TypeVar("T")
PRECISIONS = ("float32", "bfloat16", "auto")
AnyImage: TypeAlias = Image.Image | str | Path | bytes | np.ndarray | torch.Tensor  # what `load_image` reads


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision to encode in: that which is named, or, for "auto", bfloat16 on a GPU that computes in it.

    Raises:
        ValueError: if there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return precision


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


def as_items(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """One image, or any collection of them, as a collection.

    Raises:
        ValueError: naming what is no image.
    """
    single = isinstance(images, (Image.Image, str, Path, bytes))
    if isinstance(images, (np.ndarray, torch.Tensor)):
        single = images.ndim < 4 and not (isinstance(images, np.ndarray) and images.dtype.kind in "OU")
    if not single and not isinstance(images, Iterable):
        raise ValueError(f"images must be an image or a collection of images, not {type(images).__name__}")
    return [images] if single else images  # type: ignore[list-item,return-value]


def as_images(images: AnyImage | Iterable[AnyImage]) -> Iterator[Image.Image]:
    """One image, or any collection of them, as RGB images, read one by one; errors as of [`as_items`]."""
    return map(load_image, as_items(images))


def text_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Tokenizer options: pad to the longest text of the batch, truncate to the maximum length, if there is one."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    padding = "max_length" if model.config.model_type in PADDED_TO_FULL_LENGTH else "longest"
    limit = min(positions, tokenizer.model_max_length)
    return {"padding": padding, "truncation": True, "max_length": limit if limit < NO_LIMIT else None}


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """Compute within in "bfloat16" where it is precise enough, by autocast, or in the weights' own type.

    The weights stay as they are, and so does all that depends on them, such as an index's fingerprint of its model.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def prepare_image(processor: ProcessorMixin, image: AnyImage) -> BatchFeature:
    """What a model takes of one image: the part of encoding that needs no model, for threads ahead of it."""
    return processor(images=[load_image(image)], return_tensors="pt")


@torch.no_grad()
def embed_images(model: PreTrainedModel, prepared: Sequence[BatchFeature], precision: str = "float32") -> torch.Tensor:
    """(n, D) normalized embeddings, float32, on the CPU, of images that [`prepare_image`] prepared, in one pass."""
    names = prepared[0].keys()
    inputs = BatchFeature({name: torch.cat([each[name] for each in prepared]) for name in names})
    inputs = inputs.to(model.device, model.dtype)
    with computing_in(precision, model.device):
        features = model.get_image_features(**inputs).pooler_output
    return l2_normalize(features).float().cpu()


@torch.no_grad()
def embed_clips(
    model: COTSModel, clips: Sequence[PreparedClip], precision: str = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed clips by their distinct frames in one pass.

    Returns:
        (n, D) embeddings of the clips, as the model's `get_video_features`, and (frames, D) of all their frames, one
        clip after another, each as an image's; normalized, float32, on the CPU.
    """
    pixels = torch.cat([frame["pixel_values"] for clip in clips for frame in clip.frames])
    rows = torch.zeros(len(clips), max(len(clip.frame_index) for clip in clips), dtype=torch.long)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    start = 0
    for number, clip in enumerate(clips):
        rows[number, : len(clip.frame_index)] = start + torch.tensor(clip.frame_index)
        mask[number, : len(clip.frame_index)] = True
        start += len(clip.frames)
    with computing_in(precision, model.device):
        features = model.encode_image(pixels.to(model.device, model.dtype)).pooler_output  # (frames, width)
        pooled = model.pool_frames(features[rows.to(model.device)], mask.to(model.device))
        videos, frames = model.visual_projection(pooled), model.visual_projection(features)
    return l2_normalize(videos).float().cpu(), l2_normalize(frames).float().cpu()


def embed_ahead(
    items: Iterable[T],
    prepare: Callable[[T], Any],
    embed: Callable[[list[Any]], Any],
    batch_size: int,
    total: int | None = None,
    ahead: ReadAhead | None = None,
) -> tuple[list[Any], list[BrokenImage | None]]:
    """Embed images batch by batch, while threads read and prepare those that come next.

    Args:
        items: what stands for the images.
        prepare: makes of one what `embed` takes, in a thread; of one that cannot be read it raises BrokenImage.
        embed: embeds a batch of at most `batch_size`, the frames of clips counted.
        total: the number of items, for a progress bar; none without it.
        ahead: how many items are prepared ahead; a batch if None.

    Returns:
        The embeddings of the images that can be read, batch by batch, and for each item why it cannot, or None.
    """
    check_batch_size(batch_size)

    def load(item: T) -> Any:
        try:
            return prepare(item)
        except BrokenImage as broken:
            return broken

    embeddings, problems, batch, size = [], [], [], 0
    ahead = ahead or ReadAhead(batch_size)
    with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
        for loaded in map_ahead(load, items, depth=ahead.depth):
            problems.append(loaded if isinstance(loaded, BrokenImage) else None)
            if problems[-1] is None:
                batch.append(loaded)
                size += ahead.note(loaded)
            if size >= batch_size:
                embeddings.append(embed(batch))
                batch, size = [], 0
            bar.update()
        if batch:
            embeddings.append(embed(batch))
    return embeddings, problems


def encode_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: AnyImage | Iterable[AnyImage],
    batch_size: int = 64,
    total: int | None = None,
    precision: str = "float32",
) -> torch.Tensor:
    """Normalized image embeddings (n, D), float32, on the CPU.

    Args:
        model: a COTS or another dual encoder with `get_image_features` and `get_text_features`, whose `pooler_output`
            is the projected vector; in evaluation mode, on any device.
        processor: the model's.
        images: one image or many, as PIL images, paths, bytes or arrays; taken as they are needed, and prepared in
            threads.
        batch_size: images in a forward pass.
        total: their number, for the progress bar; no bar without it.
        precision: see [`computing_in`].

    Raises:
        ValueError: naming what is no image; or if the batch size is not positive.
    """
    prepare, embed = partial(prepare_image, processor), partial(embed_images, model, precision=precision)
    embeddings, problems = embed_ahead(as_items(images), prepare, embed, batch_size, total)
    for broken in filter(None, problems):
        raise broken
    # An empty result has the width of any text's embedding.
    return torch.cat(embeddings) if embeddings else encode_texts(model, processor, ["a"])[:0]


def order_by_length(texts: Sequence[str], batch_size: int) -> list[int]:
    """The positions of texts, the longest first, since a batch is padded to its longest text; of texts that fit into
    one batch as they are.

    Raises:
        ValueError: if the batch size is not positive.
    """
    check_batch_size(batch_size)
    order = list(range(len(texts)))
    return order if len(texts) <= batch_size else sorted(order, key=lambda i: len(texts[i]), reverse=True)


def embed_by_length(texts: Sequence[str], embed: Callable[[list[str]], torch.Tensor], batch_size: int) -> torch.Tensor:
    """Embed texts, at least one, in batches of about equal length; the result is in their order."""
    order = order_by_length(texts, batch_size)
    embeddings = [embed([texts[i] for i in batch]) for batch in batches(order, batch_size)]
    return torch.cat(embeddings)[torch.tensor(order).argsort()]


@torch.no_grad()
def encode_texts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    texts: str | Iterable[str],
    batch_size: int = 256,
    precision: str = "float32",
) -> torch.Tensor:
    """Normalized text embeddings (n, D), float32, on the CPU.

    Args:
        model, processor, batch_size, precision: as for [`encode_images`].
        texts: one text, or any collection of texts; cut at [`text_options`]' length.

    Raises:
        ValueError: naming what is no text; or if the batch size is not positive.
    """
    texts = as_texts(texts)
    if not texts:
        return encode_texts(model, processor, ["a"])[:0]
    options = text_options(model, processor.tokenizer)

    def embed(batch: list[str]) -> torch.Tensor:
        inputs = processor(text=batch, return_tensors="pt", **options).to(model.device)
        with computing_in(precision, model.device):
            features = model.get_text_features(**inputs).pooler_output
        return l2_normalize(features).float().cpu()

    return embed_by_length(texts, embed, batch_size)
