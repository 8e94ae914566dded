"""Features of frozen towers, computed once for all epochs and all runs.

Where neither tower is trained, a step needs no more of them than two vectors a pair, and epochs cost next to nothing.
The price: pictures are taken whole, without crops and flips, and nothing can be masked.

The features lie in a folder, each under a hash of what it was made of: `<stream>-<settings>/<shard>.safetensors` with
`keys` (n,) int64, hashes of pictures or texts, and `features` (n, width) float32; `<settings>` is a hash of the
tower's weights and of all else that a feature depends on, `<shard>` one of the keys. Whoever exchanges a picture, a
caption or a tower gets new features, never wrong ones.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..models import COTSModel, COTSProcessor
from .hashes import weights_fingerprint
from .shards import open_shard, replace_file
from .sources import PairDataset, identity


SHARD_ROWS = 1024  # what a killed run loses at most


def picture_key(picture: Image.Image) -> int:
    """63 bits of a hash of an RGB picture's size and pixels."""
    digest = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


class FeatureStore:
    """Features of one stream by key, in a folder.

    Args:
        folder: of all stores.
        stream: "image" or "text".
        settings: all that a feature depends on beside the picture or text; JSON.

    Raises:
        ValueError: naming the file that is damaged.
    """

    def __init__(self, folder: Path | str, stream: str, settings: dict[str, Any]):
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = Path(folder) / f"{stream}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[int, int] = {}
        self._keys: list[int] = []
        self._parts: list[torch.Tensor] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            shard = open_shard(path, "the next run", framework="pt")
            self._take(shard.get_tensor("keys").tolist(), shard.get_tensor("features"))
        self._written = len(self._parts)

    def _take(self, keys: list[int], features: torch.Tensor) -> None:
        # Two processes that share a folder may have written a thing each.
        self.rows |= {key: row for row, key in enumerate(keys, start=len(self._keys))}
        self._keys += keys
        self._parts.append(features)

    def rows_of(self, keys: list[int], things: list, encode: Callable[[list], torch.Tensor]) -> list[int]:
        """The rows of things in [`features`], after those that were not there are computed in one pass.

        Args:
            keys: one for each of `things`.
            things: pictures or texts.
            encode: gives the features (n, width) of a list of them.
        """
        new = {key: thing for key, thing in zip(keys, things) if key not in self.rows}
        if new:
            self._take(list(new), encode(list(new.values())).float().cpu())
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
        digest = hashlib.blake2b(shard["keys"].numpy().tobytes(), digest_size=8).hexdigest()
        replace_file(self.folder / f"{digest}.safetensors", partial(save_file, shard))
        self._written = len(self._parts)

    def features(self) -> torch.Tensor:
        """(rows, width) float32 of all there is, after what was new is written."""
        self.flush()
        self._parts = [torch.cat(self._parts)]
        self._written = 1
        return self._parts[0]


class TowerFeatures:
    """Features of pictures and texts by the two towers of a model, each computed once.

    Args:
        model: in evaluation mode, on any device.
        processor: the model's; pictures are resized whole.
        folder: of the features; may be shared by data sets, models and runs.

    Raises:
        ValueError: naming the file of the folder that is damaged.
    """

    def __init__(self, model: COTSModel, processor: COTSProcessor, folder: Path | str):
        self.model, self.processor = model, processor
        config, tokenizer = model.config, processor.tokenizer
        seen = {"pooling": config.image_pooling, "processor": processor.image_processor.to_dict()}
        read = {"pooling": config.text_pooling, "max_length": tokenizer.model_max_length}
        read |= {"special_tokens": tokenizer.all_special_tokens, "vocabulary": len(tokenizer)}
        self.images = FeatureStore(folder, "image", seen | {"tower": weights_fingerprint(model.vision_model)})
        self.texts = FeatureStore(folder, "text", read | {"tower": weights_fingerprint(model.text_model)})

    def picture_rows(self, pictures: list[Image.Image]) -> list[int]:
        """Each picture's row in `images.features()`."""
        return self.images.rows_of([picture_key(picture) for picture in pictures], pictures, self._encode_pictures)

    def text_rows(self, texts: list[str]) -> list[int]:
        """Each text's row in `texts.features()`."""
        return self.texts.rows_of([identity(text) for text in texts], texts, self._encode_texts)

    @torch.no_grad()
    def _encode_pictures(self, pictures: list) -> torch.Tensor:
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return self.model.encode_image(pixels.to(self.model.device, self.model.dtype)).pooler_output

    @torch.no_grad()
    def _encode_texts(self, texts: list) -> torch.Tensor:
        inputs = self.processor(text=texts, return_tensors="pt").to(self.model.device)
        return self.model.encode_text(inputs["input_ids"], inputs["attention_mask"]).pooler_output


class FrozenPairs(Dataset):
    """The pairs of a [`PairDataset`] as two frozen towers see them.

    A batch is looked up at once, and needs no collator.

    Args:
        pairs: where they come from; a picture that cannot be read is replaced as it says.
        image_features, text_features: (n, width) float32, of unlike pictures and texts.
        image_rows, text_rows: (len(pairs),) int64, the rows that are each pair's.
        image_ids: (len(pairs),) int64, as in [`PairDataset`].
    """

    def __init__(
        self,
        pairs: PairDataset,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        image_rows: torch.Tensor,
        text_rows: torch.Tensor,
        image_ids: torch.Tensor,
    ):
        self.pairs, self.report = pairs, pairs.report
        self.image_features, self.text_features = image_features, text_features
        self.image_rows, self.text_rows, self.image_ids = image_rows, text_rows, image_ids

    def whole(self) -> dict[str, torch.Tensor]:
        """All pairs in their order, as one batch."""
        return self.__getitems__([(0, index) for index in range(len(self))])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """One pair, without the dimension of the batch; every epoch's is the same."""
        index = key[1] if isinstance(key, tuple) else key
        return {name: rows[0] for name, rows in self.__getitems__([(0, index)]).items()}

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """`image_features` (n, width), `text_features` (n, width) and `image_ids` (n,) of n keys `(epoch, index)`."""
        index = torch.tensor([index for _, index in keys], dtype=torch.long)
        return {
            "image_features": self.image_features[self.image_rows[index]],
            "text_features": self.text_features[self.text_rows[index]],
            "image_ids": self.image_ids[index],
        }

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The input of [`COTSForPreTraining`]: `features`, which holds both kinds, and `image_ids`."""
        features = {name: rows for name, rows in batch.items() if name != "image_ids"}
        return {"features": features, "image_ids": batch["image_ids"]}


def frozen_pairs(
    model: COTSModel,
    processor: COTSProcessor,
    pairs: PairDataset,
    folder: Path | str,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> FrozenPairs:
    """The features of all pairs: read from the folder where it has them, else computed and written there.

    A killed call loses the work on 1,024 pictures at most.

    Args:
        model, processor, folder: as for [`TowerFeatures`].
        pairs: the training data.
        batch_size: pairs in a forward pass.
        workers: processes that read and decode.
        progress: show a progress bar.

    Raises:
        ValueError: naming the file of the folder that is damaged.
    """
    was_training = model.training
    model.eval()
    towers = TowerFeatures(model, processor, folder)
    image_rows: list[int] = []
    text_rows: list[int] = []
    image_ids: list[int] = []
    loader = DataLoader(pairs, batch_size, collate_fn=list, num_workers=workers)
    for items in tqdm(loader, desc="features", disable=not progress):
        image_rows += towers.picture_rows([item["image"] for item in items])
        text_rows += towers.text_rows([item["caption"] for item in items])
        image_ids += [item["image_id"] for item in items]
    model.train(was_training)
    rows = [torch.tensor(numbers) for numbers in (image_rows, text_rows, image_ids)]
    return FrozenPairs(pairs, towers.images.features(), towers.texts.features(), *rows)
