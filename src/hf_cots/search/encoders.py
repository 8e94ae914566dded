"""One interface for all encoders: images and texts become normalized float32 vectors.

COTS, any dual encoder of transformers (CLIP, SigLIP, ALIGN, Chinese-CLIP, BLIP retrieval, ...), any
sentence-transformers model and plain text models are search's and evaluation's [`Encoder`]s alike; see
[`hf_cots.search.loading.load_encoder`].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm
from transformers import BlipForImageTextRetrieval, PreTrainedTokenizerBase, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.hashes import weights_fingerprint
from ..data.images import BrokenImage, skip_image
from ..data.sources import PairDataset
from ..models import CookieModel, COTSModel, as_texts
from ..models.losses import l2_normalize
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
from .encoding import (
    AnyImage,
    as_images,
    batches,
    check_batch_size,
    choose_precision,
    computing_in,
    embed_ahead,
    embed_by_length,
    embed_clips,
    embed_images,
    encode_images,
    encode_texts,
    order_by_length,
    prepare_image,
    text_options,
)
from .exported import ExportedEncoder
from .processes import own_blocks, processes


T = TypeVar("T")
NUM_FRAMES = 8  # of a clip, for models that do not say how many they take
DIRECTIONS = ("text_to_image", "image_to_text")


class Encoder(Protocol):
    """A model that embeds images and texts. Embeddings are float32, on the CPU, and of length 1."""

    @property
    def name(self) -> str:
        """The name of the model in reports."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        """(n, dim) for images, taken one batch at a time; a progress bar if `total` is given.

        Raises:
            ValueError: if the model has no image tower.
        """

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """(n, dim); a single `str` is one text."""

    def fingerprint(self) -> str:
        """Hash of the weights' names, shapes, types and values: equal for equal weights, wherever they were loaded."""


@runtime_checkable
class DualTower(Protocol):
    """The interface of dual encoders in transformers; `pooler_output` of either is the projected vector."""

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling: ...

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling: ...


@dataclass(frozen=True)
class ModelEncoder(ABC):
    """Width and fingerprint of an [`Encoder`] that wraps a `torch.nn.Module`.

    Attributes:
        precision: in which it computes: "float32", as its weights are, or "bfloat16"; see [`computing_in`].
    """

    model: Any
    precision: str = field(default="float32", kw_only=True)

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor: ...

    @cached_property
    def dim(self) -> int:
        return self.encode_texts(["a"]).shape[1]

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)


def precision_of(encoder: Encoder) -> str:
    """In which an encoder computes; see [`ModelEncoder`]."""
    return encoder.precision if isinstance(encoder, ModelEncoder) else "float32"


def set_precision(encoder: Encoder, precision: str) -> Encoder:
    """The same encoder, computing in "float32", "bfloat16", or what [`choose_precision`] takes for "auto".

    Raises:
        ValueError: if there is no such precision, or the encoder cannot compute in it.
    """
    if isinstance(encoder, ModelEncoder):
        return replace(encoder, precision=choose_precision(precision, encoder.model.device))
    if choose_precision(precision, torch.device("cpu")) != "float32":
        raise ValueError(f"{encoder.name} cannot encode in {precision}")
    return encoder


@dataclass(frozen=True)
class DualEncoder(ModelEncoder):
    """A dual encoder of transformers, a COTS included, and its processor."""

    processor: ProcessorMixin
    name: str = "model"

    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        return encode_images(self.model, self.processor, images, batch_size, total, self.precision)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        return encode_texts(self.model, self.processor, texts, batch_size, self.precision)

    def encode_videos(
        self, clips: Iterable[VideoFrames], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        """(n, dim) for clips, taken as they are needed; see [`encode_clips`]."""
        return encode_clips(self, clips, batch_size, total)

    def encode_frames(self, clip: VideoFrames, batch_size: int = 64) -> torch.Tensor:
        """(images, dim) for the distinct frames of a clip, each alone."""
        return self.encode_images(clip.images, batch_size)


@dataclass(frozen=True)
class TextEncoder(ModelEncoder):
    """A plain text model of transformers: the mean of its last hidden states over the text's tokens.

    Mean pooling is the default of sentence-transformers for a model that does not say how it pools, and better than
    the first token for a model trained on text only (Reimers and Gurevych, 2019, table 6).
    """

    tokenizer: PreTrainedTokenizerBase
    name: str = "model"

    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        raise ValueError(f"{self.name} ({type(self.model).__name__}) has no image tower: it can only encode texts")

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        texts = as_texts(texts)
        if not texts:
            return torch.empty(0, self.dim)
        options = text_options(self.model, self.tokenizer)

        def embed(batch: list[str]) -> torch.Tensor:
            inputs = self.tokenizer(batch, return_tensors="pt", **options).to(self.model.device)
            with computing_in(self.precision, self.model.device):
                states = self.model(**inputs).last_hidden_state.float()  # (b, length, D)
            mask = inputs["attention_mask"][..., None]
            return l2_normalize((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).cpu()

        return embed_by_length(texts, embed, batch_size)


@dataclass(frozen=True)
class SentenceEncoder(ModelEncoder):
    """A `sentence_transformers.SentenceTransformer`: it pools and projects as its own files say."""

    name: str = "model"

    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        if not self.model.supports("image"):
            raise ValueError(
                f"{self.name} has no image tower: it encodes {', '.join(map(str, self.model.modalities))}"
            )
        embeddings = []
        with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
            for batch in batches(as_images(images), batch_size):
                embeddings.append(self._encode(batch, batch_size))
                bar.update(len(batch))
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.dim)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        check_batch_size(batch_size)
        texts = as_texts(texts)
        return self._encode(texts, batch_size) if texts else torch.empty(0, self.dim)

    def _encode(self, items: list, batch_size: int) -> torch.Tensor:
        with computing_in(self.precision, self.model.device):
            embeds = self.model.encode(items, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        return l2_normalize(embeds).float().cpu()


class BlipRetrieval(BlipForImageTextRetrieval):
    """BLIP for retrieval with the interface of the other dual encoders: the two towers without the matching head.

    `AutoModel` would load such a file as a `BlipModel`, whose projections have other names and would be random.
    """

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.vision_model(pixel_values=pixel_values, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.vision_proj(states[:, 0]))

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.text_encoder(input_ids=input_ids, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.text_proj(states[:, 0]))


class Side(NamedTuple):
    """Queries and gallery of one retrieval direction, in the order of [`rank_direction`]'s arguments.

    Attributes:
        query_embeds, gallery_embeds: (n, D) and (m, D) float32, normalized.
        query_ids, gallery_ids: (n,) and (m,) int64 image ids; equal ids belong together.
    """

    query_embeds: torch.Tensor
    gallery_embeds: torch.Tensor
    query_ids: torch.Tensor
    gallery_ids: torch.Tensor


@dataclass(frozen=True)
class EncodedPairs:
    """The embeddings of a data set's images and captions, each encoded once.

    Attributes:
        image_embeds: (images, D) float32, normalized, on the CPU.
        text_embeds: (texts, D), likewise.
        image_ids: (images,) int64. Equal ids belong together.
        text_ids: (texts,) int64: the id of the image that a text describes.
        rows: row of the data set of each image.
        captions: index into the data set of the pair of each text.
        broken: images that could not be read; they are skipped with their captions.
    """

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_ids: torch.Tensor
    text_ids: torch.Tensor
    rows: list[int]
    captions: list[int]
    broken: list[BrokenImage]

    def side(self, direction: str) -> Side:
        """Queries and gallery of "text_to_image" or "image_to_text"."""
        if direction == "text_to_image":
            return Side(self.text_embeds, self.image_embeds, self.text_ids, self.image_ids)
        return Side(self.image_embeds, self.text_embeds, self.image_ids, self.text_ids)


def check_finite(embeds: torch.Tensor, kind: str, name: Callable[[int], str]) -> None:
    """Check that all embeddings of some images or texts are numbers: NaN would win or lose every comparison.

    Args:
        embeds: (n, D).
        kind: "image" or "text".
        name: tells what the error calls one of the n.

    Raises:
        ValueError: saying how many are not, and naming the first.
    """
    broken = (~embeds.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if broken:
        raise ValueError(f"{len(broken)} {kind} embeddings are not finite, the first is of {name(broken[0])}")


def encoding_steps(
    encoder: Encoder, batch_size: int
) -> tuple[Callable[[Image.Image], Any], Callable[[list[Any]], torch.Tensor]]:
    """The part of encoding images that needs no model, for threads ahead of it, and the model's, for a batch."""
    if isinstance(encoder, DualEncoder):
        model, processor, precision = encoder.model, encoder.processor, encoder.precision
        return partial(prepare_image, processor), lambda prepared: embed_images(model, prepared, precision)
    if isinstance(encoder, ExportedEncoder):
        return encoder.prepare_image, encoder.embed_images
    return lambda image: image, lambda images: encoder.encode_images(images, batch_size)


def pools_frames(model: Any) -> bool:
    """Whether a model makes one feature of those of a clip's frames; of the others' embeddings the mean is taken."""
    return isinstance(model, COTSModel) and not isinstance(model, CookieModel)


def frames_per_clip(encoder: Encoder) -> int:
    """How many frames of a clip an encoder takes: as many as its model was made for, or 8."""
    if isinstance(encoder, DualEncoder) and pools_frames(encoder.model):
        return encoder.model.config.num_frames
    return NUM_FRAMES


def media_steps(
    encoder: Encoder, batch_size: int
) -> tuple[Callable[[Media], Any], Callable[[list[Any]], list[Embedded]]]:
    """As [`encoding_steps`], for images and clips together. A pass has at most `batch_size` images or frames.

    The embedding of a clip is that of the model's `get_video_features`, which a COTS has; of another model the mean of
    the embeddings of its frames. Frames that are equal are encoded once.
    """
    prepare_one, embed_together = encoding_steps(encoder, batch_size)

    def prepare(media: Media) -> Any:
        if not isinstance(media, VideoFrames):
            return prepare_one(media)
        frames = [prepare_one(image) for image in media.images]
        return PreparedClip(frames, list(media.frame_index), first_times(media), media.duration)

    def embed_pass(clips: list[PreparedClip]) -> list[Embedded]:
        if isinstance(encoder, DualEncoder) and pools_frames(encoder.model):
            videos, frames = (each.numpy() for each in embed_clips(encoder.model, clips, encoder.precision))
        else:
            frames = embed_together([frame for clip in clips for frame in clip.frames]).numpy()
            videos = pool_frames(frames, clips)
        ends = np.cumsum([len(clip.frames) for clip in clips])
        own = np.split(frames.astype(FRAME_TYPE), ends[:-1])
        return [
            Embedded(video, ClipFrames(clip.times, clip.duration, vectors))
            for video, clip, vectors in zip(videos, clips, own)
        ]

    def embed(prepared: list[Any]) -> list[Embedded]:
        images = [each for each in prepared if not isinstance(each, PreparedClip)]
        of_images = iter(map(Embedded, embed_together(images).numpy()) if images else ())
        clips = (each for each in prepared if isinstance(each, PreparedClip))
        of_clips = iter([each for part in in_passes(clips, batch_size) for each in embed_pass(part)])
        return [next(of_clips if isinstance(each, PreparedClip) else of_images) for each in prepared]

    return prepare, embed


def encode_clips(
    encoder: Encoder, clips: Iterable[VideoFrames], batch_size: int = 64, total: int | None = None
) -> torch.Tensor:
    """(n, D) embeddings of clips as [`media_steps`] makes them; a progress bar if `total` is given.

    Args:
        batch_size: frames in a forward pass.

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
    """Encode the images and clips that can be read; threads read and prepare them ahead of the model.

    Args:
        read: reads the image or clip of an item, in a thread; raises BrokenImage if that cannot be.
        batch_size: images or frames in a forward pass.
        total: the number of items, for a progress bar; none without it.
        ahead: how many items are read ahead; as many images as a batch has if None.

    Returns:
        What those that can be read are, and for each item why it cannot be, or None.
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
) -> tuple[torch.Tensor, list[BrokenImage | None]]:
    """As [`encode_media`], of which the embeddings are wanted.

    Args:
        num_frames: items are clips of so many frames.

    Returns:
        (n, D) embeddings of the images or clips that can be read, and for each item why it cannot be, or None.
    """
    found, problems = encode_media(encoder, read, items, batch_size, total, ReadAhead(batch_size, num_frames or 1))
    if not found:
        return encoder.encode_images([]), problems
    return torch.from_numpy(np.array([each.vector for each in found], dtype=np.float32)), problems


def encode_rows(
    encoder: Encoder,
    pairs: PairDataset,
    rows: Sequence[int],
    batch_size: int = 64,
    progress: bool = False,
    split: bool = False,
) -> tuple[torch.Tensor, list[int], list[BrokenImage]]:
    """Encode the images of some rows. Those that cannot be read are named in a warning and skipped.

    Args:
        split: divide the rows among the processes of torchrun or accelerate. Each of them must call, with the same
            arguments, and each gets all embeddings.

    Returns:
        (n, D) embeddings as [`Encoder`] defines them, the n rows that could be read, and the unreadable images.

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
    embeds: torch.Tensor, problems: list[BrokenImage | None], blocks: list[tuple[int, Sequence[Any]]]
) -> tuple[torch.Tensor, list[BrokenImage | None]]:
    """Join what all processes have made of their [`own_blocks`], in the order of the items."""
    parts, item, row = [], 0, 0
    for number, block in blocks:
        own = problems[item : item + len(block)]
        count = own.count(None)
        parts.append((number, embeds[row : row + count].numpy(), own))
        item, row = item + len(block), row + count
    every = sorted(gather_object(parts), key=lambda part: part[0])
    return (
        torch.from_numpy(np.concatenate([vectors for _, vectors, _ in every])),
        [problem for _, _, own in every for problem in own],
    )


def encode_texts_together(encoder: Encoder, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """(n, D) embeddings of texts that are divided among the processes of torchrun or accelerate, all of which must
    call; each gets all, in batches as of one process."""
    if processes().num_processes == 1:
        return encoder.encode_texts(texts, batch_size)
    order = order_by_length(texts, batch_size)
    blocks = own_blocks(order, batch_size)
    own = [encoder.encode_texts([texts[i] for i in block], batch_size) for _, block in blocks]
    embeds = torch.cat(own) if own else torch.empty(0, encoder.dim)
    every, _ = gather_blocks(embeds, [None] * len(embeds), blocks)
    return every[torch.tensor(order).argsort()]


def encode_pairs(
    encoder: Encoder, pairs: PairDataset, batch_size: int = 64, progress: bool = False, split: bool = False
) -> EncodedPairs:
    """Encode all images and all captions of a data set, each once.

    A file that several rows name, one caption each, is one image. Images that cannot be read are skipped with their
    captions.

    Args:
        encoder: embeds images and texts.
        pairs: the data. A caption's correct answers are the images with the same image id, and vice versa.
        batch_size: images in a forward pass.
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
        image_ids=torch.from_numpy(pairs.image_ids[rows]),
        text_ids=torch.from_numpy(pairs.image_ids[pairs.pair_rows[captions]]),
        rows=rows,
        captions=captions,
        broken=broken,
    )
