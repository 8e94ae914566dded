"""SIMLA as the second step of a search: it judges the pairs that a dual encoder proposes.

What the text stack looks at, the keys and values of a picture in every layer, is made once per picture and kept; a
pair then costs one pass of a short text. Pairs of different queries share batches.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, ProcessorMixin

from ..evaluation.retrieval.ranking import slices
from ..models import COTSProcessor, CrossAttentionCache, SimlaConfig, SimlaModel
from .encoding import batches, text_options


@dataclass
class Cost:
    """What judging has cost so far, on the clock of this machine.

    Args:
        pairs, pair_seconds: pairs judged, and the time of their passes.
        images, image_seconds: pictures encoded, and the time until their keys and values were there.
    """

    pairs: int = 0
    pair_seconds: float = 0.0
    images: int = 0
    image_seconds: float = 0.0


def load_reranker(name: str, device: str | torch.device | None = None) -> tuple[SimlaModel, COTSProcessor]:
    """SIMLA and its processor by Hub id or folder, in evaluation mode. No code that comes with a model is run.

    Args:
        name: Hub id or folder.
        device: the machine's accelerator, or else the CPU, by default.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is a model of another kind, or lacks weights.
    """
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, SimlaConfig):
        raise ValueError(f"{name} is '{config.model_type}' and cannot judge pairs: name a SIMLA")
    model, loading = AutoModel.from_pretrained(name, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(f"{name} lacks weights: {', '.join(sorted(loading['missing_keys'])[:3])}")
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.eval().to(device), AutoProcessor.from_pretrained(name)


def memory_shape(model: SimlaModel) -> tuple[int, int, int]:
    """(heads, tokens, size) of one picture's keys, or values, in one layer."""
    text, tokens = model.config.text_config, 1 + model.config.patch_grid**2
    return text.num_attention_heads, tokens, text.hidden_size // text.num_attention_heads


def image_bytes(model: SimlaModel) -> int:
    """Bytes of one picture's keys and values in all layers: 42.5 MB for the base model at 384 pixels in float32."""
    both = 2 * len(model.text_model.layers)
    return both * math.prod(memory_shape(model)) * torch.empty(0, dtype=model.dtype).element_size()


class Reranker:
    """Judges pairs of texts and pictures of one gallery.

    Args:
        model, processor: SIMLA in evaluation mode, and its processor.
        read_image: gives the RGB picture of a gallery number.
        cache_bytes: memory for keys and values; those unused for longest give way. One picture always fits.
        batch_size: pairs in a pass of the text stack.
        image_batch: pictures in a pass of the image encoder.
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
        self.model, self.processor, self.read_image = model, processor, read_image
        self.cache_bytes, self.batch_size, self.image_batch = cache_bytes, batch_size, image_batch
        self.cost = Cost()
        slots = max(1, cache_bytes // image_bytes(model))
        shape, options = (slots, *memory_shape(model)), {"device": model.device, "dtype": model.dtype}
        layers = range(len(model.text_model.layers))
        self._memory = CrossAttentionCache(
            *([torch.empty(shape, **options) for _ in layers] for _ in ("keys", "values"))
        )
        self._slots: OrderedDict[int, int] = OrderedDict()  # of each kept picture, the least recently used first

    @property
    def kept(self) -> list[int]:
        """The pictures whose keys and values are in memory, the least recently used first."""
        return list(self._slots)

    @torch.inference_mode()
    def score(self, texts: Sequence[str], text_rows: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The logit for "these belong together" of each pair, as the authors rank with: (pairs,) float32, on the CPU.

        However little memory there is, each picture is encoded at most once in a call.

        Args:
            texts: of which pairs are made.
            text_rows: (pairs,) int64, the text of each pair.
            images: (pairs,) int64, its picture's gallery number.

        Raises:
            ValueError: if there are not as many of one as of the other.
        """
        if len(text_rows) != len(images):
            raise ValueError(f"{len(text_rows)} texts and {len(images)} pictures are no pairs")
        if len(images) == 0:
            return torch.empty(0)
        options = text_options(self.model, self.processor.tokenizer) | {"padding": False}
        tokens = self.processor.tokenizer(list(texts), **options)["input_ids"]
        lengths = np.array([len(words) for words in tokens])
        text_of, image_of = text_rows.numpy(), images.numpy()
        order = np.argsort(image_of, kind="stable")
        distinct, first = np.unique(image_of[order], return_index=True)
        ends = np.append(first, len(order))
        scores = torch.empty(len(images))
        for group in slices(len(distinct), len(self._memory)):
            slot_of = self._encode(distinct[group].tolist())
            clock = self._now()
            pairs = order[ends[group.start] : ends[group.stop]]
            pairs = pairs[np.argsort(lengths[text_of[pairs]], kind="stable")]  # texts of like length need no padding
            for part in batches(pairs.tolist(), self.batch_size):
                memory = self._memory.rows(self._on_device([slot_of[image] for image in image_of[part].tolist()]))
                padded = self.processor.tokenizer.pad(
                    {"input_ids": [tokens[text] for text in text_of[part].tolist()]}, return_tensors="pt"
                ).to(self.model.device)
                logits = self.model.match(padded["input_ids"], padded["attention_mask"], memory=memory)
                scores[part] = logits[:, 1].float().cpu()
            self.cost.pair_seconds += self._now() - clock
        self.cost.pairs += len(images)
        return scores

    def _pixels(self, images: list[int]) -> torch.Tensor:
        pictures = [self.read_image(image) for image in images]
        inputs = self.processor(images=pictures, return_tensors="pt")
        return inputs["pixel_values"].to(self.model.device, self.model.dtype)

    def _on_device(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.model.device)

    def _now(self) -> float:
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _encode(self, group: list[int]) -> dict[int, int]:
        """Slots of a group of pictures, of which those that are not kept yet are encoded."""
        clock = self._now()
        for image in group:  # these must not give way to one another
            if image in self._slots:
                self._slots.move_to_end(image)
        missing = [image for image in group if image not in self._slots]
        for part in batches(missing, self.image_batch):
            made = self.model.remember(self._pixels(part))
            slots = [self._free_slot(image) for image in part]
            for side, fresh in ((self._memory.keys, made.keys), (self._memory.values, made.values)):
                for layer, rows in zip(side, fresh):
                    layer[self._on_device(slots)] = rows
        self.cost.images += len(missing)
        self.cost.image_seconds += self._now() - clock
        return {image: self._slots[image] for image in group}

    def _free_slot(self, image: int) -> int:
        full = len(self._slots) == len(self._memory)
        self._slots[image] = self._slots.popitem(last=False)[1] if full else len(self._slots)
        return self._slots[image]
