"""Batching, read-ahead and ordering by length for encoding many images or texts; nothing here needs torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import is_torch_tensor

from ..data.ahead import map_ahead
from ..data.images import BrokenImage
from ..models import load_image
from .clips import ReadAhead


if TYPE_CHECKING:
    import torch

T = TypeVar("T")
AnyImage: TypeAlias = Union[Image.Image, str, Path, bytes, np.ndarray, "torch.Tensor"]  # what `load_image` reads


def check_batch_size(size: int) -> None:
    """Check that a batch size is a whole number of at least 1.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {size!r}")


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of at most `size` items.

    Raises:
        ValueError: if the size is not positive.
    """
    check_batch_size(size)
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def as_items(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """Return one image, or a collection of images, as a collection.

    Raises:
        ValueError: naming the type that is neither.
    """
    single = isinstance(images, (Image.Image, str, Path, bytes))
    if isinstance(images, np.ndarray) or is_torch_tensor(images):
        single = images.ndim < 4 and not (isinstance(images, np.ndarray) and images.dtype.kind in "OU")
    if not single and not isinstance(images, Iterable):
        raise ValueError(f"images must be an image or a collection of images, not {type(images).__name__}")
    return [images] if single else images  # type: ignore[list-item,return-value]


def as_images(images: AnyImage | Iterable[AnyImage]) -> Iterator[Image.Image]:
    """Read one image, or a collection of images, one by one as RGB images; errors as for [`as_items`]."""
    return map(load_image, as_items(images))


def embed_ahead(
    items: Iterable[T],
    prepare: Callable[[T], Any],
    embed: Callable[[list[Any]], Any],
    batch_size: int,
    total: int | None = None,
    ahead: ReadAhead | None = None,
) -> tuple[list[Any], list[BrokenImage | None]]:
    """Embed images batch by batch, while threads read and preprocess the next ones.

    Args:
        items: the images or what identifies them, such as paths or rows.
        prepare: reads and preprocesses an item in a thread; raises BrokenImage if it is unreadable.
        embed: embeds a batch of preprocessed items.
        batch_size: images per batch; a clip counts as its number of frames.
        total: number of items; shows a progress bar if given.
        ahead: how many items are preprocessed ahead; one batch if None.

    Returns:
        The embeddings of the readable images, batch by batch; and for each item the error if it is unreadable, or
        None.
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


def order_by_length(texts: Sequence[str], batch_size: int) -> list[int]:
    """Return the positions of texts with the longest first, since a batch is padded to its longest text; in the given
    order if all fit into one batch.

    Raises:
        ValueError: if the batch size is not positive.
    """
    check_batch_size(batch_size)
    order = list(range(len(texts)))
    return order if len(texts) <= batch_size else sorted(order, key=lambda i: len(texts[i]), reverse=True)


def embed_by_length(texts: Sequence[str], embed: Callable[[list[str]], np.ndarray], batch_size: int) -> np.ndarray:
    """Embed one or more texts in batches of similar length; the embeddings are in the order of the texts."""
    order = order_by_length(texts, batch_size)
    embeddings = [embed([texts[i] for i in batch]) for batch in batches(order, batch_size)]
    return np.concatenate(embeddings)[np.argsort(order)]
