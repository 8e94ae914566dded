"""Encoders of every make behind one interface, so that models are compared on equal terms.

[`load_encoder`] takes the name of a COTS, of any dual encoder of transformers (CLIP, SigLIP, ALIGN, Chinese-CLIP, BLIP
retrieval, ...), of any sentence-transformers model, or of a plain text model. What comes back turns pictures and texts
into normalised float32 vectors; whatever evaluates them needs to know no more.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BlipForImageTextRetrieval,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.hub import cached_file

from ..data.hashes import weights_fingerprint
from ..data.images import BrokenImage
from ..data.sources import PairDataset
from ..models.losses import l2_normalize
from .encoding import batches, encode_images, encode_texts, text_options


logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """What evaluation asks of a model. Embeddings are float32, on the CPU, and of length 1."""

    @property
    def name(self) -> str:
        """What reports call the model."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        """(n, dim) for RGB pictures, taken one batch at a time; a progress bar if `total` is given.

        Raises:
            ValueError: if the model has no image tower.
        """

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """(n, dim)."""

    def fingerprint(self) -> str:
        """Hash of the weights' names, shapes, types and values: equal for equal weights, wherever they were loaded."""


@runtime_checkable
class DualTower(Protocol):
    """The interface of dual encoders in transformers; `pooler_output` of either is the projected vector."""

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling: ...

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling: ...


@dataclass(frozen=True)
class DualEncoder:
    """A dual encoder of transformers, a COTS included, and its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str = "model"

    @cached_property
    def dim(self) -> int:
        return self.encode_texts([]).shape[1]

    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        return encode_images(self.model, self.processor, images, batch_size, total)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        return encode_texts(self.model, self.processor, texts, batch_size)

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)


@dataclass(frozen=True)
class TextEncoder:
    """A plain text model of transformers: the mean of its last hidden states over the text's tokens.

    The mean, and not the first token, because that is what sentence-transformers makes of a model which does not say
    how it pools, and it is the better of the two for a model that was trained on words only (Reimers and Gurevych,
    2019, table 6).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "model"

    @cached_property
    def dim(self) -> int:
        return self.encode_texts(["a"]).shape[1]

    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        raise ValueError(f"{self.name} ({type(self.model).__name__}) has no image tower: it can only encode texts")

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        if not texts:
            return torch.empty(0, self.dim)
        options = text_options(self.model, self.tokenizer)
        embeddings = []
        for batch in batches(texts, batch_size):
            inputs = self.tokenizer(batch, return_tensors="pt", **options).to(self.model.device)
            states = self.model(**inputs).last_hidden_state.float()  # (b, length, D)
            mask = inputs["attention_mask"][..., None]
            embeddings.append(l2_normalize((states * mask).sum(dim=1) / mask.sum(dim=1)).cpu())
        return torch.cat(embeddings)

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)


@dataclass(frozen=True)
class SentenceEncoder:
    """A `sentence_transformers.SentenceTransformer`: it pools and projects as its own files say."""

    model: Any
    name: str = "model"

    @cached_property
    def dim(self) -> int:
        return self.encode_texts(["a"]).shape[1]

    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> torch.Tensor:
        if not self.model.supports("image"):
            raise ValueError(
                f"{self.name} has no image tower: it encodes {', '.join(map(str, self.model.modalities))}"
            )
        embeddings = []
        with tqdm(total=total, desc="images", disable=total is None, leave=False) as bar:
            for batch in batches(images, batch_size):
                embeddings.append(self._encode(batch, batch_size))
                bar.update(len(batch))
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.dim)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        return self._encode(list(texts), batch_size) if texts else torch.empty(0, self.dim)

    def _encode(self, items: list, batch_size: int) -> torch.Tensor:
        embeds = self.model.encode(items, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        return l2_normalize(embeds).float().cpu()

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)


class BlipRetrieval(BlipForImageTextRetrieval):
    """BLIP for retrieval with the interface of the other dual encoders: the two streams without the matching head.

    `AutoModel` would make a `BlipModel` of such a file, whose projections have other names and would be random.
    """

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.vision_model(pixel_values=pixel_values, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.vision_proj(states[:, 0]))

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.text_encoder(input_ids=input_ids, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.text_proj(states[:, 0]))


def load_encoder(name: str, device: str | torch.device | None = None) -> Encoder:
    """Load an encoder by Hub id or folder. No code that comes with a model is run.

    A folder or repository with a `modules.json` is opened by sentence-transformers. All else is opened by
    transformers: a dual encoder with its processor, or a text-only model with mean pooling ([`TextEncoder`]).

    Args:
        name: Hub id or folder.
        device: where it computes; the machine's accelerator, or else the CPU, by default.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is neither a dual encoder nor a text model, or if the file lacks weights of it.
        ModuleNotFoundError: for a sentence-transformers model without that package; names the extra to install.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"no such model folder: {name}")
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        return _load_sentence_encoder(name, device) if _has_file(name, "modules.json") else _load(name, device)
    except OSError as error:
        raise OSError(f"cannot load the model '{name}': {str(error).splitlines()[0]}") from error


def _load(name: str, device: str | torch.device) -> DualEncoder | TextEncoder:
    config = AutoConfig.from_pretrained(name)
    is_blip_retrieval = "BlipForImageTextRetrieval" in (config.architectures or ())
    loader = BlipRetrieval if is_blip_retrieval else AutoModel
    try:
        model, loading = loader.from_pretrained(name, output_loading_info=True)
    except RuntimeError as error:  # transformers has just logged which weights have another shape
        raise ValueError(f"{name}: the weights do not fit the config: {str(error).splitlines()[0]}") from error
    model = model.eval().to(device)
    text_only = model.input_modalities in ("text", ("text",))
    # A text model's own pooler is not used. Any other weight that the file lacks would be random, and so the figures.
    missing = sorted(key for key in loading["missing_keys"] if not (text_only and key.startswith("pooler.")))
    if missing:
        raise ValueError(f"{name}: {type(model).__name__} needs weights that the file lacks: {', '.join(missing[:3])}")
    if text_only:
        return TextEncoder(model, AutoTokenizer.from_pretrained(name), name)
    if not isinstance(model, DualTower):
        raise ValueError(
            f"{name}: {type(model).__name__} has no separate embeddings for pictures and texts (get_image_features, "
            f"get_text_features); name a dual encoder or a text model"
        )
    return DualEncoder(model, AutoProcessor.from_pretrained(name), name)


def _load_sentence_encoder(name: str, device: str | torch.device) -> SentenceEncoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is a sentence-transformers model; to use it: pip install 'hf-cots[sentence-transformers]'"
        ) from None
    return SentenceEncoder(SentenceTransformer(name, device=str(device)).eval(), name)


def _has_file(name: str, file: str) -> bool:
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    try:
        return cached_file(name, file) is not None
    except OSError:
        return False  # an unknown name is an error of the loading proper


@dataclass(frozen=True)
class EncodedPairs:
    """A data set after M + N forward passes.

    Attributes:
        image_embeds: (images, D) float32, normalised, on the CPU.
        text_embeds: (texts, D), the same.
        image_ids: (images,) int64. Equal ids belong together.
        text_ids: (texts,) int64: the id of the picture that a text describes.
        rows: row of the data set of each picture.
        captions: index into the data set of the pair of each text.
        broken: pictures that could not be read; their captions are left out with them.
    """

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_ids: torch.Tensor
    text_ids: torch.Tensor
    rows: list[int]
    captions: list[int]
    broken: list[BrokenImage]


def encode_rows(
    encoder: Encoder, pairs: PairDataset, rows: Sequence[int], batch_size: int = 64, progress: bool = False
) -> tuple[torch.Tensor, list[int], list[BrokenImage]]:
    """Encode the pictures of some rows. Those that cannot be read are named in a warning and left out.

    Returns:
        (n, D) embeddings as [`Encoder`] says, the n rows that could be read, and the others.
    """
    read: list[int] = []
    unreadable: list[BrokenImage] = []

    def readable():
        for row in rows:
            try:
                image = pairs.read_row(row)
            except BrokenImage as broken:
                logger.warning("left out: %s", broken)
                unreadable.append(broken)
                continue
            read.append(row)
            yield image

    return encoder.encode_images(readable(), batch_size, len(rows) if progress else None), read, unreadable


def encode_pairs(encoder: Encoder, pairs: PairDataset, batch_size: int = 64, progress: bool = False) -> EncodedPairs:
    """Encode all pictures and all captions of a data set, each once.

    A file that several rows name, one caption each, is one picture. Pictures that cannot be read are left out with
    their captions.

    Args:
        encoder: what encodes.
        pairs: the data. A caption's correct answers are the pictures with the same image id, and vice versa.
        batch_size: pictures in a forward pass.
        progress: show a progress bar.
    """
    first_rows = pairs.first_rows()
    distinct = np.unique(first_rows).tolist()
    image_embeds, rows, broken = encode_rows(encoder, pairs, distinct, batch_size, progress)
    present = set(rows)
    captions = [i for i, row in enumerate(first_rows[pairs.row_of_pair].tolist()) if row in present]
    return EncodedPairs(
        image_embeds=image_embeds,
        text_embeds=encoder.encode_texts([pairs.caption(index) for index in captions]),
        image_ids=torch.from_numpy(pairs.image_ids[rows]),
        text_ids=torch.from_numpy(pairs.image_ids[pairs.row_of_pair[captions]]),
        rows=rows,
        captions=captions,
        broken=broken,
    )
