"""SIMLA as the second stage of a search: re-rank the candidates of a dual encoder.

The text encoder cross-attends to the image in every layer. The keys and values are computed once per image and cached;
a pair then costs one forward pass of a short text. Pairs of different queries share batches.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

from ..models import CrossAttentionCache, SimlaModel, as_texts
from .encoding import batches, check_batch_size
from .torch_encoders import text_options


@dataclass
class Cost:
    """The cost of scoring so far.

    Args:
        pairs, pair_seconds: pairs scored, and the wall-clock seconds of their forward passes.
        images, image_seconds: images encoded, and the wall-clock seconds to compute their keys and values.
    """

    pairs: int = 0
    pair_seconds: float = 0.0
    images: int = 0
    image_seconds: float = 0.0


def cache_shape(model: SimlaModel) -> tuple[int, int, int]:
    """Return the shape (heads, tokens, head size) of one image's keys, or values, in one layer."""
    text, tokens = model.config.text_config, 1 + model.config.patch_grid**2
    return text.num_attention_heads, tokens, text.hidden_size // text.num_attention_heads


def image_bytes(model: SimlaModel) -> int:
    """Return the bytes of one image's keys and values in all layers: 42.5 MB for the base model at 384 pixels in
    float32."""
    both = 2 * len(model.text_model.layers)
    return both * math.prod(cache_shape(model)) * torch.empty(0, dtype=model.dtype).element_size()


class Reranker:
    """Scores pairs of texts and gallery images with a SIMLA model.

    Args:
        model, processor: SIMLA in evaluation mode, and its processor; see [`load_reranker`].
        read_image: returns the RGB image at an index of the gallery.
        cache_bytes: memory for cached keys and values; the least recently used are evicted. One image always fits.
        batch_size: pairs per forward pass of the text encoder.
        image_batch: images per forward pass of the image encoder.
    """

    def __init__(
        self,
        model: SimlaModel,
        processor: ProcessorMixin,
        read_image: Callable[[int], Image.Image],
        cache_bytes: int = 2 << 30,
        batch_size: int = 64,
        image_batch: int = 16,
    ):
        check_batch_size(batch_size)
        check_batch_size(image_batch)
        self.model, self.processor, self.read_image = model, processor, read_image
        self.batch_size, self.image_batch = batch_size, image_batch
        self.cost = Cost()
        slots = max(1, cache_bytes // image_bytes(model))
        shape, options = (slots, *cache_shape(model)), {"device": model.device, "dtype": model.dtype}
        layers = range(len(model.text_model.layers))
        self._cache = CrossAttentionCache(
            *([torch.empty(shape, **options) for _ in layers] for _ in ("keys", "values"))
        )
        self._slots: OrderedDict[int, int] = OrderedDict()  # cache slot by image, the least recently used first

    @property
    def cached(self) -> list[int]:
        """The cached images, least recently used first."""
        return list(self._slots)

    @torch.no_grad()
    def score(self, texts: str | Sequence[str], text_rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Compute the image-text matching logit of each pair, by which the authors rank: (pairs,) float32.

        Each image is encoded at most once per call, however small the cache is.

        Args:
            texts: one or more texts, which `text_rows` refers to.
            text_rows: (pairs,) int64, index of each pair's text.
            images: (pairs,) int64, gallery index of each pair's image.

        Raises:
            ValueError: if `text_rows` and `images` differ in length, or a text index is out of range.
        """
        texts = as_texts(texts)
        text_of, image_of = np.asarray(text_rows), np.asarray(images)
        if len(text_of) != len(image_of):
            raise ValueError(f"text_rows and images must have the same length, got {len(text_of)} and {len(image_of)}")
        if len(image_of) == 0:
            return np.empty(0, np.float32)
        if not 0 <= text_of.min() <= text_of.max() < len(texts):
            raise ValueError(
                f"text_rows from {text_of.min()} to {text_of.max()} are out of range for {len(texts)} texts"
            )
        options = text_options(self.model, self.processor.tokenizer) | {"padding": False}
        tokens = self.processor.tokenizer(texts, **options)["input_ids"]
        lengths = np.array([len(ids) for ids in tokens])
        order = np.argsort(image_of, kind="stable")
        distinct, first = np.unique(image_of[order], return_index=True)
        ends = np.append(first, len(order))
        scores, capacity = np.empty(len(image_of), np.float32), len(self._cache)
        for start in range(0, len(distinct), capacity):
            group = distinct[start : start + capacity]
            slots = self._encode(group.tolist())
            clock = self._now()
            pairs = order[ends[start] : ends[start + len(group)]]
            pairs = pairs[np.argsort(lengths[text_of[pairs]], kind="stable")]  # similar lengths need little padding
            for part in batches(pairs.tolist(), self.batch_size):
                ids = [tokens[text] for text in text_of[part].tolist()]
                scores[part] = self._match(ids, [slots[image] for image in image_of[part].tolist()])
            self.cost.pair_seconds += self._now() - clock
        self.cost.pairs += len(image_of)
        return scores

    def _match(self, input_ids: list[list[int]], slots: list[int]) -> np.ndarray:
        """Compute the (b,) matching logits of tokenized texts with cached images."""
        padded = self.processor.tokenizer.pad({"input_ids": input_ids}, return_tensors="pt").to(self.model.device)
        memory = self._cache.rows(self._on_device(slots))
        return (
            self.model.match(padded["input_ids"], padded["attention_mask"], image_cache=memory)[:, 1]
            .float()
            .cpu()
            .numpy()
        )

    def _pixels(self, images: list[int]) -> torch.Tensor:
        inputs = self.processor(images=[self.read_image(image) for image in images], return_tensors="pt")
        return inputs["pixel_values"].to(self.model.device, self.model.dtype)

    def _on_device(self, indices: list[int]) -> torch.Tensor:
        return torch.tensor(indices, device=self.model.device)

    def _now(self) -> float:
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _encode(self, group: list[int]) -> dict[int, int]:
        """Encode the images of a group that are not cached yet; returns the cache slots of all."""
        clock = self._now()
        for image in group:  # so that they do not evict one another
            if image in self._slots:
                self._slots.move_to_end(image)
        missing = [image for image in group if image not in self._slots]
        for part in batches(missing, self.image_batch):
            computed = self.model.cache_image(self._pixels(part))
            slots = [self._free_slot(image) for image in part]
            for cached, fresh in ((self._cache.keys, computed.keys), (self._cache.values, computed.values)):
                for layer, rows in zip(cached, fresh):
                    layer[self._on_device(slots)] = rows
        self.cost.images += len(missing)
        self.cost.image_seconds += self._now() - clock
        return {image: self._slots[image] for image in group}

    def _free_slot(self, image: int) -> int:
        full = len(self._slots) == len(self._cache)
        self._slots[image] = self._slots.popitem(last=False)[1] if full else len(self._slots)
        return self._slots[image]
