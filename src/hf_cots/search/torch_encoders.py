"""Encoders that run in torch: dual encoders, text models and sentence-transformers models.

[`hf_cots.search.loading.load_encoder`] loads them; they return numpy arrays.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import (
    BatchFeature,
    BlipForImageTextRetrieval,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.hashes import hex_digest, weights_fingerprint
from ..models import CookieModel, COTSModel, as_texts, load_image
from ..models.losses import l2_normalize
from ..models.processing_cots import NO_LIMIT
from ..models.processing_dual_encoder import PADDED_TO_FULL_LENGTH
from ..models.video_frames import VideoFrames
from .clips import PreparedClip
from .encoders import NUM_FRAMES, EncodingSteps, LoadedEncoder, TextLimit, check_precision, encode_clips
from .encoding import AnyImage, as_images, as_items, batches, check_batch_size, embed_ahead, embed_by_length
from .fingerprint import describe_processor, hash_json, hash_tokenizer


# Config fields added in later versions, with the values that correspond to the computation before they were added.
ADDED = {"frame_pooling": "mean", "num_frames": 8}


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve a precision: "auto" becomes "bfloat16" on GPUs that support it, else "float32".

    Raises:
        ValueError: if the precision is unknown.
    """
    check_precision(precision)
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return precision


def text_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the tokenizer options of a model: pad to the longest text of the batch (or to the full length, for models
    that need it), and truncate to the maximum length, if there is one."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    padding = "max_length" if model.config.model_type in PADDED_TO_FULL_LENGTH else "longest"
    limit = min(positions, tokenizer.model_max_length)
    return {"padding": padding, "truncation": True, "max_length": limit if limit < NO_LIMIT else None}


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """Return an autocast context for "bfloat16", or a disabled one for "float32", which uses the weights' dtype.

    The weights are not converted, so that what depends on them does not change, such as an index's fingerprint.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def prepare_image(processor: ProcessorMixin, image: AnyImage) -> BatchFeature:
    """Preprocess one image for a model; needs no model and runs in threads ahead of it."""
    return processor(images=[load_image(image)], return_tensors="pt")


@torch.no_grad()
def embed_images(model: PreTrainedModel, prepared: Sequence[BatchFeature], precision: str = "float32") -> np.ndarray:
    """Embed images preprocessed by [`prepare_image`] in one forward pass; returns (n, D) float32, normalized."""
    names = prepared[0].keys()
    inputs = BatchFeature({name: torch.cat([each[name] for each in prepared]) for name in names})
    inputs = inputs.to(model.device, model.dtype)
    with computing_in(precision, model.device):
        features = model.get_image_features(**inputs).pooler_output
    return to_numpy(l2_normalize(features))


def to_numpy(embeds: torch.Tensor) -> np.ndarray:
    """Convert embeddings to a float32 numpy array."""
    return embeds.float().cpu().numpy()


@torch.no_grad()
def embed_clips(
    model: COTSModel, clips: Sequence[PreparedClip], precision: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Embed clips by their distinct frames in one pass.

    Returns:
        (n, D) embeddings of the clips, as by the model's `get_video_features`, and (frames, D) image embeddings of
        their frames, one clip after another; normalized, float32.
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
    return to_numpy(l2_normalize(videos)), to_numpy(l2_normalize(frames))


def encode_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: AnyImage | Iterable[AnyImage],
    batch_size: int = 64,
    total: int | None = None,
    precision: str = "float32",
) -> np.ndarray:
    """Compute the normalized image embeddings (n, D), float32.

    Args:
        model: COTS or another dual encoder with `get_image_features` and `get_text_features`, whose `pooler_output`
            is the projected vector; in evaluation mode, on any device.
        processor: the model's processor.
        images: one or more images, as PIL images, paths, bytes or arrays; read lazily and preprocessed in threads.
        batch_size: images per forward pass.
        total: number of images; shows a progress bar if given.
        precision: see [`computing_in`].

    Raises:
        ValueError: naming what is not an image; or if the batch size is not positive.
    """
    prepare, embed = partial(prepare_image, processor), partial(embed_images, model, precision=precision)
    embeddings, problems = embed_ahead(as_items(images), prepare, embed, batch_size, total)
    for broken in filter(None, problems):
        raise broken
    # An empty result has the dimension of a text embedding.
    return np.concatenate(embeddings) if embeddings else encode_texts(model, processor, ["a"])[:0]


@torch.no_grad()
def encode_texts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    texts: str | Iterable[str],
    batch_size: int = 256,
    precision: str = "float32",
) -> np.ndarray:
    """Compute the normalized text embeddings (n, D), float32.

    Args:
        model, processor, batch_size, precision: as for [`encode_images`].
        texts: one text, or any collection of texts; truncated to the length in [`text_options`].

    Raises:
        ValueError: naming what is not a text; or if the batch size is not positive.
    """
    texts = as_texts(texts)
    if not texts:
        return encode_texts(model, processor, ["a"])[:0]
    options = text_options(model, processor.tokenizer)

    def embed(batch: list[str]) -> np.ndarray:
        inputs = processor(text=batch, return_tensors="pt", **options).to(model.device)
        with computing_in(precision, model.device):
            features = model.get_text_features(**inputs).pooler_output
        return to_numpy(l2_normalize(features))

    return embed_by_length(texts, embed, batch_size)


@runtime_checkable
class DualTower(Protocol):
    """The interface of dual encoders in transformers; the `pooler_output` of both methods is the projected vector."""

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling: ...

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling: ...


def pools_frames(model: Any) -> bool:
    """Whether a model has its own pooling of a clip's frames; for other models the frames' embeddings are averaged."""
    return isinstance(model, COTSModel) and not isinstance(model, CookieModel)


def hash_config(model: PreTrainedModel) -> str:
    """Hash a model's config such that indexes built before the [`ADDED`] fields existed still match the model."""
    fields = model.config.to_dict().items()
    return hash_json({key: value for key, value in fields if key not in ADDED or ADDED[key] != value})


@dataclass(frozen=True)
class ModelEncoder(LoadedEncoder):
    """Base class of the encoders that wrap a `torch.nn.Module`.

    Attributes:
        model: the model.
        precision: precision it computes in: "float32" (as the weights) or "bfloat16"; see [`computing_in`].
    """

    model: Any
    precision: str = field(default="float32", kw_only=True)

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray: ...

    @cached_property
    def dim(self) -> int:
        return self.encode_texts(["a"]).shape[1]

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)

    def in_precision(self, precision: str) -> Any:
        return replace(self, precision=choose_precision(precision, self.model.device))


@dataclass(frozen=True)
class DualEncoder(ModelEncoder):
    """A dual encoder of transformers, such as COTS or CLIP, and its processor."""

    processor: ProcessorMixin
    name: str = "model"

    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray:
        return encode_images(self.model, self.processor, images, batch_size, total, self.precision)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        return encode_texts(self.model, self.processor, texts, batch_size, self.precision)

    def encode_videos(
        self, clips: Iterable[VideoFrames], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray:
        """Return the (n, dim) embeddings of clips, which are read lazily; see [`encode_clips`]."""
        return encode_clips(self, clips, batch_size, total)

    def encode_frames(self, clip: VideoFrames, batch_size: int = 64) -> np.ndarray:
        """Return the (images, dim) image embeddings of the distinct frames of a clip."""
        return self.encode_images(clip.images, batch_size)

    @property
    def num_frames(self) -> int:
        return self.model.config.num_frames if pools_frames(self.model) else NUM_FRAMES

    def embed_clips(self, clips: Sequence[PreparedClip]) -> tuple[np.ndarray, np.ndarray] | None:
        return embed_clips(self.model, clips, self.precision) if pools_frames(self.model) else None

    def steps(self, batch_size: int) -> EncodingSteps:
        return partial(prepare_image, self.processor), lambda each: embed_images(self.model, each, self.precision)

    def describe(self) -> dict[str, str]:
        return {"config": hash_config(self.model)} | describe_processor(self.processor)

    def text_limit(self) -> TextLimit:
        return self.processor.tokenizer, text_options(self.model, self.processor.tokenizer)["max_length"]


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
    ) -> np.ndarray:
        raise ValueError(f"{self.name} ({type(self.model).__name__}) has no image tower: it can only encode texts")

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        texts = as_texts(texts)
        if not texts:
            return np.empty((0, self.dim), np.float32)
        options = text_options(self.model, self.tokenizer)

        def embed(batch: list[str]) -> np.ndarray:
            inputs = self.tokenizer(batch, return_tensors="pt", **options).to(self.model.device)
            with computing_in(self.precision, self.model.device):
                states = self.model(**inputs).last_hidden_state.float()  # (b, length, D)
            mask = inputs["attention_mask"][..., None]
            return to_numpy(l2_normalize((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)))

        return embed_by_length(texts, embed, batch_size)

    def describe(self) -> dict[str, str]:
        return {"config": hash_config(self.model), "tokenizer": hash_tokenizer(self.tokenizer)}

    def text_limit(self) -> TextLimit:
        return self.tokenizer, text_options(self.model, self.tokenizer)["max_length"]


@dataclass(frozen=True)
class SentenceEncoder(ModelEncoder):
    """A `sentence_transformers.SentenceTransformer`, with the pooling and projection of its own modules."""

    name: str = "model"

    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray:
        if not self.model.supports("image"):
            raise ValueError(
                f"{self.name} has no image tower: it only encodes {', '.join(map(str, self.model.modalities))}"
            )
        embeddings = []
        with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
            for batch in batches(as_images(images), batch_size):
                embeddings.append(self._encode(batch, batch_size))
                bar.update(len(batch))
        return np.concatenate(embeddings) if embeddings else np.empty((0, self.dim), np.float32)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        check_batch_size(batch_size)
        texts = as_texts(texts)
        return self._encode(texts, batch_size) if texts else np.empty((0, self.dim), np.float32)

    def _encode(self, items: list, batch_size: int) -> np.ndarray:
        with computing_in(self.precision, self.model.device):
            embeds = self.model.encode(items, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        return to_numpy(l2_normalize(embeds))

    def describe(self) -> dict[str, str]:
        return {"config": hex_digest([repr(self.model).encode()])}

    def text_limit(self) -> TextLimit:
        tokenizer = self.model.tokenizer
        known = isinstance(tokenizer, PreTrainedTokenizerBase)
        return (tokenizer, self.model.max_seq_length) if known else (None, None)


class BlipRetrieval(BlipForImageTextRetrieval):
    """BLIP for retrieval with the interface of the other dual encoders: the two towers without the matching head.

    `AutoModel` would load such a checkpoint as a `BlipModel`, whose projections have other names and would be random.
    """

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.vision_model(pixel_values=pixel_values, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.vision_proj(states[:, 0]))

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.text_encoder(input_ids=input_ids, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.text_proj(states[:, 0]))
