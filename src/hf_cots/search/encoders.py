"""One interface for all encoders, which embed images and texts as normalized float32 vectors.

COTS, any dual encoder of transformers (CLIP, SigLIP, ALIGN, Chinese-CLIP, BLIP retrieval, ...), any
sentence-transformers model, plain text models and exported models are all used as an [`Encoder`] in search and
evaluation; see [`hf_cots.search.loading.load_encoder`].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from ..data.images import BrokenImage, skip_image
from ..data.sources import PairDataset
from ..models.video_frames import VideoFrames
from .clips import (
    FRAME_TYPE,
    ClipFrames,
    Embedded,
    Media,
    PreparedClip,
    ReadAhead,
    first_times,
    in_passes,
    pool_frames,
)
from .encoding import AnyImage, embed_ahead, order_by_length
from .processes import gather_objects, own_blocks, processes


T = TypeVar("T")
DIRECTIONS = ("text_to_image", "image_to_text")
PRECISIONS = ("float32", "bfloat16", "auto")
NUM_FRAMES = 8  # frames per clip, for models without a setting of their own
# The two steps of encoding images: preprocessing of one image, which runs in threads ahead of the model, and the
# model's forward pass for a batch of preprocessed images.
EncodingSteps: TypeAlias = tuple[Callable[[Image.Image], Any], Callable[[list[Any]], np.ndarray]]
TextLimit: TypeAlias = tuple[PreTrainedTokenizerBase | None, int | None]


class Encoder(Protocol):
    """A model that embeds images and texts as normalized float32 numpy arrays."""

    @property
    def name(self) -> str:
        """Name of the model in reports."""

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""

    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray:
        """Return the (n, dim) image embeddings, encoded one batch at a time; shows a progress bar if `total` is given.

        Raises:
            ValueError: if the model has no image tower.
        """

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Return the (n, dim) text embeddings; a single `str` is one text."""

    def fingerprint(self) -> str:
        """Hash the names, shapes, dtypes and values of the weights; equal weights have equal hashes, wherever they
        were loaded from."""


class LoadedEncoder(ABC):
    """An [`Encoder`] as returned by [`load_encoder`], which also describes what its embeddings depend on.

    Attributes:
        precision: precision it computes in: "float32" (as the weights) or "bfloat16".
    """

    name: str
    precision: str = "float32"

    @abstractmethod
    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray: ...

    def describe(self) -> dict[str, str]:
        """Return hashes of what the embeddings depend on beside the weights, such as the config, by name."""
        return {}

    def text_limit(self) -> TextLimit:
        """Return the tokenizer and the number of tokens at which it truncates texts; each is None if there is none."""
        return None, None

    @property
    def num_frames(self) -> int:
        """Number of frames per clip that the model was trained for."""
        return NUM_FRAMES

    def embed_clips(self, clips: Sequence[PreparedClip]) -> tuple[np.ndarray, np.ndarray] | None:
        """Embed preprocessed clips in one forward pass.

        Returns:
            (n, D) embeddings of the clips and (frames, D) image embeddings of their distinct frames, clip after clip;
            None if the model has no video features, in which case a clip's embedding is the mean of its frames'.
        """
        return None

    def steps(self, batch_size: int) -> EncodingSteps:
        """Return the [`EncodingSteps`]; by default the first does nothing and the model preprocesses its images."""
        return lambda image: image, lambda images: self.encode_images(images, batch_size)

    def in_precision(self, precision: str) -> Any:
        """Return the same encoder computing in another precision; arguments and errors as for [`set_precision`]."""
        if precision == "bfloat16":
            raise ValueError(f"{self.name} does not support --precision {precision}")
        return self


def check_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        ValueError: naming the valid ones.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be {', '.join(PRECISIONS)}, not {precision!r}")


def precision_of(encoder: Encoder) -> str:
    """Return the precision that an encoder computes in; see [`LoadedEncoder`]."""
    return encoder.precision if isinstance(encoder, LoadedEncoder) else "float32"


def set_precision(encoder: Encoder, precision: str) -> Encoder:
    """Return the same encoder computing in "float32", "bfloat16", or "auto" (bfloat16 on GPUs that support it).

    Raises:
        ValueError: if the precision is unknown, or the encoder does not support it.
    """
    check_precision(precision)
    if isinstance(encoder, LoadedEncoder):
        return encoder.in_precision(precision)
    if precision == "bfloat16":
        raise ValueError(f"{encoder.name} does not support --precision {precision}")
    return encoder


def encoding_steps(encoder: Encoder, batch_size: int) -> EncodingSteps:
    """Return the [`EncodingSteps`] of an encoder."""
    if isinstance(encoder, LoadedEncoder):
        return encoder.steps(batch_size)
    return lambda image: image, lambda images: encoder.encode_images(images, batch_size)


class Side(NamedTuple):
    """Queries and gallery of one retrieval direction, in the order of [`rank_direction`]'s arguments.

    Attributes:
        query_embeds, gallery_embeds: (n, D) and (m, D) float32, normalized.
        query_ids, gallery_ids: (n,) and (m,) int64 image ids; equal ids belong together.
    """

    query_embeds: np.ndarray
    gallery_embeds: np.ndarray
    query_ids: np.ndarray
    gallery_ids: np.ndarray


@dataclass(frozen=True)
class EncodedPairs:
    """The embeddings of a data set's images and captions, each encoded once.

    Attributes:
        image_embeds: (images, D) float32, normalized.
        text_embeds: (texts, D) float32, normalized.
        image_ids: (images,) int64. Equal ids belong together.
        text_ids: (texts,) int64: the id of the image that a text describes.
        rows: each image's row in the data set.
        captions: index of each text's pair in the data set.
        broken: images that could not be read; they are skipped with their captions.
    """

    image_embeds: np.ndarray
    text_embeds: np.ndarray
    image_ids: np.ndarray
    text_ids: np.ndarray
    rows: list[int]
    captions: list[int]
    broken: list[BrokenImage]

    def side(self, direction: str) -> Side:
        """Return queries and gallery of the direction "text_to_image" or "image_to_text"."""
        if direction == "text_to_image":
            return Side(self.text_embeds, self.image_embeds, self.text_ids, self.image_ids)
        return Side(self.image_embeds, self.text_embeds, self.image_ids, self.text_ids)


def check_finite(embeds: np.ndarray, kind: str, name: Callable[[int], str]) -> None:
    """Check that all embeddings of some images or texts are finite: NaN would win or lose every comparison.

    Args:
        embeds: (n, D).
        kind: "image" or "text".
        name: returns the name of one of the n items for the error message.

    Raises:
        ValueError: saying how many are not finite, and naming the first.
    """
    broken = np.flatnonzero(~np.isfinite(embeds).all(axis=1)).tolist()
    if broken:
        raise ValueError(f"{len(broken)} {kind} embeddings are not finite; the first is that of {name(broken[0])}")


def frames_per_clip(encoder: Encoder) -> int:
    """Return the number of frames per clip for an encoder: the model's own setting, or 8."""
    return encoder.num_frames if isinstance(encoder, LoadedEncoder) else NUM_FRAMES


def choose_frames(pairs: PairDataset, encoder: Encoder, num_frames: int | None) -> None:
    """Set how many frames of each clip are read: `num_frames`, or [`frames_per_clip`] if None; no effect on images.

    Raises:
        ValueError: if the pairs have images instead of clips and a number is given.
    """
    if pairs.num_frames is not None:
        pairs.num_frames = num_frames or frames_per_clip(encoder)
    elif num_frames is not None:
        raise ValueError(
            f"--num-frames is only for clips, but {pairs.name} has images: choose clips with --video-column"
        )


def media_steps(
    encoder: Encoder, batch_size: int
) -> tuple[Callable[[Media], Any], Callable[[list[Any]], list[Embedded]]]:
    """Return the steps of [`encoding_steps`] for images and clips together. A forward pass has at most `batch_size`
    images or frames.

    A clip is embedded by the model's `get_video_features`, which COTS has; for other models its embedding is the mean
    of its frames' embeddings. Equal frames are encoded once.
    """
    prepare_one, embed_together = encoding_steps(encoder, batch_size)

    def prepare(media: Media) -> Any:
        if not isinstance(media, VideoFrames):
            return prepare_one(media)
        frames = [prepare_one(image) for image in media.images]
        return PreparedClip(frames, list(media.frame_index), first_times(media), media.duration)

    def embed_pass(clips: list[PreparedClip]) -> list[Embedded]:
        of_model = encoder.embed_clips(clips) if isinstance(encoder, LoadedEncoder) else None
        if of_model is None:
            frames = np.asarray(embed_together([frame for clip in clips for frame in clip.frames]))
            videos = pool_frames(frames, clips)
        else:
            videos, frames = of_model
        ends = np.cumsum([len(clip.frames) for clip in clips])
        own = np.split(frames.astype(FRAME_TYPE), ends[:-1])
        return [
            Embedded(video, ClipFrames(clip.times, clip.duration, vectors))
            for video, clip, vectors in zip(videos, clips, own)
        ]

    def embed(prepared: list[Any]) -> list[Embedded]:
        images = [each for each in prepared if not isinstance(each, PreparedClip)]
        of_images = iter(map(Embedded, np.asarray(embed_together(images))) if images else ())
        clips = (each for each in prepared if isinstance(each, PreparedClip))
        of_clips = iter([each for part in in_passes(clips, batch_size) for each in embed_pass(part)])
        return [next(of_clips if isinstance(each, PreparedClip) else of_images) for each in prepared]

    return prepare, embed


def encode_clips(
    encoder: Encoder, clips: Iterable[VideoFrames], batch_size: int = 64, total: int | None = None
) -> np.ndarray:
    """Return the (n, D) embeddings of clips, as defined in [`media_steps`]; shows a progress bar if `total` is given.

    Args:
        batch_size: frames per forward pass.

    Raises:
        ValueError: if the batch size is not positive.
    """
    embeds, _ = encode_readable(encoder, lambda clip: clip, clips, batch_size, total, frames_per_clip(encoder))
    return embeds


def encode_media(
    encoder: Encoder,
    read: Callable[[T], Media],
    items: Iterable[T],
    batch_size: int = 64,
    total: int | None = None,
    ahead: ReadAhead | None = None,
) -> tuple[list[Embedded], list[BrokenImage | None]]:
    """Encode images and clips; threads read and preprocess them ahead of the model. Unreadable ones are skipped.

    Args:
        read: reads the image or clip of an item, in a thread; raises BrokenImage if it is unreadable.
        batch_size: images or frames per forward pass.
        total: number of items; shows a progress bar if given.
        ahead: how many items are read ahead; one batch of images if None.

    Returns:
        The embeddings of the readable items; and for each item the error if it is unreadable, or None.
    """
    prepare, embed = media_steps(encoder, batch_size)
    parts, problems = embed_ahead(items, lambda item: prepare(read(item)), embed, batch_size, total, ahead)
    return list(chain(*parts)), problems


def encode_readable(
    encoder: Encoder,
    read: Callable[[T], Media],
    items: Iterable[T],
    batch_size: int = 64,
    total: int | None = None,
    num_frames: int | None = None,
) -> tuple[np.ndarray, list[BrokenImage | None]]:
    """Encode images or clips as [`encode_media`] does, and return only the embeddings.

    Args:
        num_frames: number of frames of each item, if the items are clips.

    Returns:
        (n, D) embeddings of the readable images or clips; and for each item the error if it is unreadable, or None.
    """
    found, problems = encode_media(encoder, read, items, batch_size, total, ReadAhead(batch_size, num_frames or 1))
    if not found:
        return encoder.encode_images([]), problems
    return np.array([each.vector for each in found], dtype=np.float32), problems


def encode_rows(
    encoder: Encoder,
    pairs: PairDataset,
    rows: Sequence[int],
    batch_size: int = 64,
    progress: bool = False,
    split: bool = False,
) -> tuple[np.ndarray, list[int], list[BrokenImage]]:
    """Encode the images of some rows. Unreadable images are skipped with a warning.

    Args:
        split: divide the rows among the processes of torchrun or accelerate. Each of them must call, with the same
            arguments, and each gets all embeddings.

    Returns:
        (n, D) embeddings as defined in [`Encoder`], the n rows that could be read, and the unreadable images.

    Raises:
        ValueError: naming an image whose embedding is not finite.
    """
    blocks = own_blocks(rows, batch_size) if split else [(0, rows)]
    own = [row for _, block in blocks for row in block]
    total = len(own) if progress else None
    embeds, problems = encode_readable(encoder, pairs.read_row, own, batch_size, total, pairs.num_frames)
    if split and processes().num_processes > 1:
        embeds, problems = gather_blocks(embeds, problems, blocks)
    broken = [problem for problem in problems if problem is not None]
    for each in broken:
        skip_image(each)
    read = [row for row, problem in zip(rows, problems) if problem is None]
    check_finite(embeds, "image", lambda i: pairs.image_name(read[i]))
    return embeds, read, broken


def gather_blocks(
    embeds: np.ndarray, problems: list[BrokenImage | None], blocks: list[tuple[int, Sequence[Any]]]
) -> tuple[np.ndarray, list[BrokenImage | None]]:
    """Gather the embeddings and errors that all processes computed for their [`own_blocks`], in the order of the
    items."""
    parts, item, row = [], 0, 0
    for number, block in blocks:
        own = problems[item : item + len(block)]
        count = own.count(None)
        parts.append((number, embeds[row : row + count], own))
        item, row = item + len(block), row + count
    every = sorted(gather_objects(parts), key=lambda part: part[0])
    return (
        np.concatenate([vectors for _, vectors, _ in every]),
        [problem for _, _, own in every for problem in own],
    )


def encode_texts_together(encoder: Encoder, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """Return the (n, D) embeddings of texts, divided among the processes of torchrun or accelerate. All of them must
    call, and each gets all embeddings; the batches are those of a single process."""
    if processes().num_processes == 1:
        return encoder.encode_texts(texts, batch_size)
    order = order_by_length(texts, batch_size)
    blocks = own_blocks(order, batch_size)
    own = [encoder.encode_texts([texts[i] for i in block], batch_size) for _, block in blocks]
    embeds = np.concatenate(own) if own else np.empty((0, encoder.dim), np.float32)
    every, _ = gather_blocks(embeds, [None] * len(embeds), blocks)
    return every[np.argsort(order)]


def encode_pairs(
    encoder: Encoder, pairs: PairDataset, batch_size: int = 64, progress: bool = False, split: bool = False
) -> EncodedPairs:
    """Encode all images and all captions of a data set, each once.

    A file named by several rows, one caption each, is one image. Unreadable images are skipped with their captions.

    Args:
        encoder: embeds images and texts.
        pairs: the data. A caption's correct answers are the images with the same image id, and vice versa.
        batch_size: images per forward pass.
        progress: show a progress bar.
        split: divide images and texts among processes; see [`encode_rows`].

    Raises:
        ValueError: naming an image or text whose embedding is not finite.
    """
    first_rows = pairs.first_rows()
    distinct = np.unique(first_rows).tolist()
    image_embeds, rows, broken = encode_rows(encoder, pairs, distinct, batch_size, progress, split)
    present = set(rows)
    captions = [i for i, row in enumerate(first_rows[pairs.pair_rows].tolist()) if row in present]
    texts = pairs.captions(np.array(captions, dtype=np.int64))
    text_embeds = encode_texts_together(encoder, texts) if split else encoder.encode_texts(texts)
    check_finite(text_embeds, "text", lambda i: f"{pairs.name}, pair {captions[i]}")
    return EncodedPairs(
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        image_ids=pairs.image_ids[rows],
        text_ids=pairs.image_ids[pairs.pair_rows[captions]],
        rows=rows,
        captions=captions,
        broken=broken,
    )
