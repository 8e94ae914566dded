"""Stored features of frozen towers, computed once for all epochs and all runs.

If neither tower is trained, a step only needs two vectors per pair, and epochs cost almost nothing.
The price: images are resized as they are, without crops and flips, and nothing can be masked. Where the text tower
alone is not trained, its features are stored, and images are read and augmented as usual: that has no price.

The features lie in a folder, each under a hash of what it was made of: `<modality>-<settings>/<shard>.safetensors`
with `keys` (n,) int64, hashes of images or texts, and `features` (n, width) float32; `<settings>` is a hash of the
tower's weights and of all else that a feature depends on, `<shard>` one of the keys. If an image, a caption or a tower
is exchanged, its features are computed again. `pairs/<fingerprint>.safetensors` has the keys of a data set's pairs, so
that its images are decoded once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..models import COTSModel, COTSProcessor
from .fingerprint import data_fingerprint
from .hashes import hash_image, hex_digest, stable_id, weights_fingerprint
from .images import BrokenImageReport
from .shards import open_shard, replace_file
from .sources import PairDataset


SHARD_ROWS = 1024  # what a killed run loses at most


class FeatureStore:
    """Stored features of one tower by key, in a folder.

    Args:
        folder: of all stores.
        modality: "image" or "text".
        settings: all that a feature depends on beside the image or text; JSON.

    Raises:
        ValueError: naming the file that is damaged.
    """

    def __init__(self, folder: Path | str, modality: str, settings: dict[str, Any]):
        digest = hex_digest([json.dumps(settings, sort_keys=True).encode()], digest_size=8)
        self.folder = Path(folder) / f"{modality}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[int, int] = {}
        self._keys: list[int] = []
        self._parts: list[torch.Tensor] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            shard = open_shard(path, "the next run", framework="pt")
            self._add(shard.get_tensor("keys").tolist(), shard.get_tensor("features"))
        self._written = len(self._parts)

    def _add(self, keys: list[int], features: torch.Tensor) -> None:
        # Two processes that share a folder may both have written the same key.
        self.rows |= {key: row for row, key in enumerate(keys, start=len(self._keys))}
        self._keys += keys
        self._parts.append(features)

    def get_or_compute(self, keys: list[int], inputs: list, encode: Callable[[list], torch.Tensor]) -> list[int]:
        """Get the rows of inputs in [`features`]; those that are not stored yet are computed in one pass.

        Args:
            keys: one for each of `inputs`.
            inputs: images or texts.
            encode: gives the features (n, width) of a list of them.
        """
        new = {key: each for key, each in zip(keys, inputs) if key not in self.rows}
        if new:
            self._add(list(new), encode(list(new.values())).float().cpu())
        if sum(map(len, self._parts[self._written :])) >= SHARD_ROWS:
            self.flush()
        return [self.rows[key] for key in keys]

    def flush(self) -> None:
        """Write what is not in a file yet."""
        unwritten = self._parts[self._written :]
        if not unwritten:
            return
        features = torch.cat(unwritten)
        shard = {"keys": torch.tensor(self._keys[-len(features) :]), "features": features}
        digest = hex_digest([shard["keys"].numpy().tobytes()], digest_size=8)
        replace_file(self.folder / f"{digest}.safetensors", partial(save_file, shard))
        self._written = len(self._parts)

    def features(self) -> torch.Tensor:
        """All stored features, (rows, width) float32; new ones are written first."""
        self.flush()
        self._parts = [torch.cat(self._parts)]
        self._written = 1
        return self._parts[0]


class TowerFeatures:
    """Stored features of images and texts by the two towers of a model, each computed once.

    Args:
        model: in evaluation mode, on any device.
        processor: the model's; images are resized without a crop.
        folder: of the features; may be shared by data sets, models and runs.
        precision: "float32", or "bfloat16": the towers compute in it by autocast.

    Raises:
        ValueError: naming the file of the folder that is damaged.
    """

    def __init__(self, model: COTSModel, processor: COTSProcessor, folder: Path | str, precision: str = "float32"):
        self.model, self.processor, self.folder, self.precision = model, processor, folder, precision

    def _open(self, modality: str, settings: dict[str, Any]) -> FeatureStore:
        if self.precision != "float32":  # which older files do not have
            settings["precision"] = self.precision
        return FeatureStore(self.folder, modality, settings)

    @cached_property
    def images(self) -> FeatureStore:
        """Stored features of the image tower."""
        settings = {"pooling": self.model.config.image_pooling, "processor": self.processor.image_processor.to_dict()}
        settings["tower"] = weights_fingerprint(self.model.vision_model)
        return self._open("image", settings)

    @cached_property
    def texts(self) -> FeatureStore:
        """Stored features of the text tower."""
        tokenizer = self.processor.tokenizer
        settings = {"pooling": self.model.config.text_pooling, "max_length": tokenizer.model_max_length}
        if self.processor.padding != "longest":  # which older files do not have
            settings["padding"] = self.processor.padding
        settings |= {"special_tokens": tokenizer.all_special_tokens, "vocabulary": len(tokenizer)}
        if self.model.config.text_padding == "attended":  # features of other models are as they were
            settings["padding"] = "attended"
        settings["tower"] = weights_fingerprint(self.model.text_model)
        return self._open("text", settings)

    def get_image_rows(self, images: list[Image.Image]) -> list[int]:
        """Each image's row in `images.features()`."""
        return self.images.get_or_compute([hash_image(image) for image in images], images, self.encode_images)

    def get_text_rows(self, texts: list[str]) -> list[int]:
        """Each text's row in `texts.features()`."""
        return self.texts.get_or_compute([stable_id(text) for text in texts], texts, self.encode_texts)

    @torch.no_grad()
    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Features (n, width) of images by the tower, stored or not."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        with self._computing():
            return self.model.encode_image(pixels.to(self.model.device, self.model.dtype)).pooler_output

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Features (n, width) of texts by the tower, stored or not."""
        inputs = self.processor(text=texts, return_tensors="pt").to(self.model.device)
        with self._computing():
            return self.model.encode_text(inputs["input_ids"], inputs.get("attention_mask")).pooler_output

    def _computing(self) -> torch.autocast:
        device = self.model.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


@dataclass(frozen=True, eq=False)
class StoredFeaturePairs(Dataset):
    """The stored features of the pairs of a [`PairDataset`].

    A batch is looked up at once, and needs no collator.

    Args:
        pairs: where they come from; an image that cannot be read is replaced as it says.
        image_features, text_features: (n, width) float32, of distinct images and texts.
        image_rows, text_rows: (len(pairs),) int64, each pair's row in them; of clips (len(pairs), frames), those of
            their frames.
        image_ids: (len(pairs),) int64, as in [`PairDataset`].
    """

    pairs: PairDataset
    image_features: torch.Tensor
    text_features: torch.Tensor
    image_rows: torch.Tensor
    text_rows: torch.Tensor
    image_ids: torch.Tensor

    @property
    def report(self) -> BrokenImageReport | None:
        return self.pairs.report

    def all_features(self) -> dict[str, torch.Tensor]:
        """All pairs in their order, as one batch."""
        return self.__getitems__([(0, index) for index in range(len(self))])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """One pair, without a batch dimension; it is the same in every epoch."""
        index = key[1] if isinstance(key, tuple) else key
        return {name: rows[0] for name, rows in self.__getitems__([(0, index)]).items()}

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """`image_features` (n, width), `text_features` (n, width) and `image_ids` (n,) of n keys `(epoch, index)`; of
        clips `frame_features` (n, frames, width) in place of the first."""
        index = torch.tensor([index for _, index in keys], dtype=torch.long)
        name = "image_features" if self.image_rows.ndim == 1 else "frame_features"
        return {
            name: self.image_features[self.image_rows[index]],
            "text_features": self.text_features[self.text_rows[index]],
            "image_ids": self.image_ids[index],
        }

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The input of [`COTSForPreTraining`]: `features`, which holds both kinds, and `image_ids`."""
        features = {name: rows for name, rows in batch.items() if name != "image_ids"}
        return {"features": features, "image_ids": batch["image_ids"]}


class PairKeys:
    """The keys of the features of a data set's pairs, in a file under all that they depend on.

    Args:
        pairs: the data set.
        folder: of all stored features.
    """

    NAMES = ("images", "texts", "image_ids")

    def __init__(self, pairs: PairDataset, folder: Path | str):
        kept = pairs.pair_rows.tobytes() + pairs.caption_positions.tobytes()
        parts = [data_fingerprint(pairs).encode(), PIL.__version__.encode(), kept]
        if pairs.num_frames is not None:  # which older files do not have
            parts.append(f"{pairs.num_frames} frames".encode())
        self.file = Path(folder) / "pairs" / f"{hex_digest(parts)}.safetensors"
        self.columns: dict[str, list[Any]] = {name: [] for name in self.NAMES}

    def load(self, towers: TowerFeatures) -> bool:
        """Read the file; tells whether it is there and the towers' features of all its keys too.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.file.is_file():
            return False
        shard = open_shard(self.file, "the next run")
        columns = {name: shard.get_tensor(name).tolist() for name in self.NAMES}
        stores = (("images", towers.images), ("texts", towers.texts))
        if not all(store.rows.keys() >= set(shard.get_tensor(name).flatten().tolist()) for name, store in stores):
            return False
        self.columns = columns
        return True

    def add(self, items: list[dict[str, Any]], towers: TowerFeatures) -> None:
        """Take in a batch of pairs, computing the features that are not stored yet."""
        texts = [item["caption"] for item in items]
        keys: dict[str, list[Any]] = {"images": [], "texts": [stable_id(text) for text in texts]}
        if "video" in items[0]:
            for clip in (item["video"] for item in items):
                own = [hash_image(image) for image in clip.images]
                towers.images.get_or_compute(own, clip.images, towers.encode_images)
                keys["images"].append([own[i] for i in clip.frame_index])
        else:
            images = [item["image"] for item in items]
            keys["images"] = [hash_image(image) for image in images]
            towers.images.get_or_compute(keys["images"], images, towers.encode_images)
        towers.texts.get_or_compute(keys["texts"], texts, towers.encode_texts)
        for name, column in (keys | {"image_ids": [item["image_id"] for item in items]}).items():
            self.columns[name] += column

    def save(self) -> None:
        """Write the file for the next run."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        columns = {name: torch.tensor(column) for name, column in self.columns.items()}
        replace_file(self.file, partial(save_file, columns))


def store_features(
    model: COTSModel,
    processor: COTSProcessor,
    pairs: PairDataset,
    folder: Path | str,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    precision: str = "float32",
) -> StoredFeaturePairs:
    """Read the features of all pairs from a folder, computing and storing those that it lacks.

    A killed call loses the work on 1,024 images at most.

    Args:
        model, processor, folder, precision: as for [`TowerFeatures`].
        pairs: the training data.
        batch_size: pairs in a forward pass.
        workers: processes that read and decode.
        progress: show a progress bar.

    Raises:
        ValueError: naming the file of the folder that is damaged.
    """
    was_training = model.training
    model.eval()
    towers, keys = TowerFeatures(model, processor, folder, precision), PairKeys(pairs, folder)
    if not keys.load(towers):
        loader = DataLoader(pairs, batch_size, collate_fn=list, num_workers=workers)
        for items in tqdm(loader, desc="features", disable=not progress):
            keys.add(items, towers)
        if pairs.report is None or not pairs.report.skipped():  # each run reports broken images anew
            keys.save()
    model.train(was_training)
    images, texts = towers.images.features(), towers.texts.features()
    image_keys = torch.tensor(keys.columns["images"])  # (pairs,), or (pairs, frames)
    image_rows = torch.tensor([towers.images.rows[key] for key in image_keys.flatten().tolist()]).view_as(image_keys)
    text_rows = torch.tensor([towers.texts.rows[key] for key in keys.columns["texts"]])
    return StoredFeaturePairs(pairs, images, texts, image_rows, text_rows, torch.tensor(keys.columns["image_ids"]))


@dataclass(frozen=True, eq=False)
class StoredTexts:
    """The stored features of the distinct texts of a [`PairDataset`].

    Args:
        features: (n, width) float32.
        rows: each text's row in them, by its hash.
    """

    features: torch.Tensor
    rows: dict[int, int]

    def lookup(self, texts: list[str]) -> torch.Tensor:
        """The features (n, width) of n texts."""
        return self.features[torch.tensor([self.rows[stable_id(text)] for text in texts], dtype=torch.long)]


def store_texts(
    model: COTSModel,
    processor: COTSProcessor,
    pairs: PairDataset,
    folder: Path | str,
    batch_size: int = 64,
    precision: str = "float32",
) -> StoredTexts:
    """Read the features of all captions from a folder, computing and storing those that it lacks; no image is read.

    Args:
        model, processor, folder, batch_size, precision: as for [`store_features`].
        pairs: the training data.

    Raises:
        ValueError: naming the file of the folder that is damaged.
    """
    was_training = model.training
    model.eval()
    towers = TowerFeatures(model, processor, folder, precision)
    texts = pairs.captions(np.arange(len(pairs)))
    for start in range(0, len(texts), batch_size):
        towers.get_text_rows(texts[start : start + batch_size])
    model.train(was_training)
    return StoredTexts(towers.texts.features(), towers.texts.rows)
