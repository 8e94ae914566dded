"""Codes computed once: the image tokenizer's codes of every crop that a training run will see.

Encoding a crop costs more than the image stream's forward, and a crop is a pure function of (seed, epoch, sample id).
So the codes of some epochs can be written beforehand, and training reads them.

A cache is a folder of `codes-NNNNN.safetensors`, each with `crops` (n,) int64, the item's own seed, which is a hash of
(seed, epoch, sample id); `contents` (n,) int64, a hash of the crop's pixels; and `codes` (n, patches) uint16. Both
keys must agree: an exchanged picture, or a library that resizes otherwise, is not found, and never gives wrong codes.
`cache.json` tells what the codes were made with.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..models import COTSImageProcessor, COTSImageTokenizer
from ..models.token_level import codebook_pixels
from .augmentation import RandomCropFlip, cropped
from .hashes import weights_fingerprint
from .shards import open_shard, replace_file
from .sources import PairDataset


logger = logging.getLogger(__name__)

MANIFEST = "cache.json"
SHARD = "codes-{:05d}.safetensors"
FORMAT = 1
MAKER = "`hf-cots tokenize`"


@dataclass(frozen=True)
class CodeSettings:
    """All that codes depend on beside the picture, the epoch and the sample id: a cache's fingerprint.

    Args:
        tokenizer: [`weights_fingerprint`] of the image tokenizer's encoder.
        tokenizer_size: side of its input in pixels.
        image_size, min_scale, flip, min_aspect: of the crop, see [`RandomCropFlip`].
        image_mean, image_std: normalisation of the image stream's pixels, from which the tokenizer's are made.
        seed: of the data.
    """

    tokenizer: str
    tokenizer_size: int
    image_size: int
    min_scale: float
    flip: float
    min_aspect: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    seed: int

    @classmethod
    def of(
        cls,
        tokenizer: COTSImageTokenizer,
        tokenizer_size: int,
        augmentation: RandomCropFlip,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        seed: int,
    ) -> "CodeSettings":
        """The settings of a run with these parts.

        Raises:
            ValueError: if mean or deviation are not three numbers.
        """
        crop = asdict(augmentation)
        size = crop.pop("size")
        mean, std = (tuple(float(x) for x in numbers) for numbers in (image_mean, image_std))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean and deviation are three numbers each, one a channel; got {mean} and {std}")
        numbers = {name: float(value) for name, value in crop.items()}
        weights = weights_fingerprint(tokenizer.encoder)
        return cls(weights, tokenizer_size, size, **numbers, image_mean=mean, image_std=std, seed=seed)

    def check(self, folder: Path) -> None:
        """That the cache in `folder` was made with these settings.

        Raises:
            ValueError: naming the first one that differs.
        """
        try:
            written = json.loads((folder / MANIFEST).read_text())["settings"]
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} is no code cache: {MANIFEST} cannot be read ({error})") from None
        if not isinstance(written, dict):
            raise ValueError(f"{folder} is no code cache: {MANIFEST} holds no settings")
        for name, wanted in self.manifest()["settings"].items():
            if written.get(name) != wanted:
                raise ValueError(
                    f"the code cache {folder} was made with {name} {written.get(name)}, not {wanted}: make another "
                    "with `hf-cots tokenize`"
                )

    def manifest(self) -> dict[str, Any]:
        """What [`MANIFEST`] holds."""
        return {"settings": {"format": FORMAT} | json.loads(json.dumps(asdict(self)))}


def content_hash(crop: Image.Image) -> int:
    """63 bits of a hash of a crop's pixels."""
    return int.from_bytes(hashlib.blake2b(crop.tobytes(), digest_size=8).digest(), "big") >> 1


class CodeCache:
    """Reads a folder of codes. Copies in worker processes open the shards by themselves.

    Args:
        folder: of [`write_codes`].
        settings: of the run; they must be the cache's.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no cache, was made with other settings, has no shard, or has a damaged one.
    """

    def __init__(self, folder: Path | str, settings: CodeSettings):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no such code cache: {folder}")
        settings.check(self.folder)
        self.shards = sorted(self.folder.glob(SHARD.format(0).replace("00000", "*")))
        if not self.shards:
            raise ValueError(f"the code cache {folder} has no shard yet")
        keys = [open_shard(path, MAKER) for path in self.shards]
        self._files: dict[int, Any] = {}
        crops = [file.get_tensor("crops") for file in keys]
        places = [
            np.stack([np.full(len(rows), shard), np.arange(len(rows))], axis=1) for shard, rows in enumerate(crops)
        ]
        order = np.argsort(np.concatenate(crops), kind="stable")
        self.crops = np.concatenate(crops)[order]
        self.contents = np.concatenate([file.get_tensor("contents") for file in keys])[order]
        self.places = np.concatenate(places)[order].astype(np.int32)
        self._missed = False

    def __len__(self) -> int:
        return len(self.crops)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def find(self, seed: int, crop: Image.Image) -> np.ndarray | None:
        """(patches,) uint16 codes of an item's crop, or None."""
        index = int(np.searchsorted(self.crops, seed))
        if index == len(self) or self.crops[index] != seed or self.contents[index] != content_hash(crop):
            return None
        shard, row = self.places[index].tolist()
        if shard not in self._files:
            self._files[shard] = open_shard(self.shards[shard], MAKER).get_slice("codes")
        return self._files[shard][row : row + 1][0]

    def codes(self, seeds: list[int], crops: list[Image.Image]) -> np.ndarray | None:
        """(n, patches) int64 codes of a batch, or None if not all of them are held: then the model computes them."""
        found = [self.find(seed, crop) for seed, crop in zip(seeds, crops)]
        held = [codes for codes in found if codes is not None]
        if len(held) == len(seeds):
            return np.stack(held).astype(np.int64)
        if not self._missed:
            missing = len(seeds) - len(held)
            logger.warning(
                "the code cache %s lacks %d of %d crops of a batch: such batches are tokenized in training (an epoch "
                "that was not written, or another picture)",
                *(self.folder, missing, len(seeds)),
            )
            self._missed = True
        return None


def _crops(items: list[dict[str, Any]], augmentation: RandomCropFlip, processor: COTSImageProcessor):
    """Seeds, content hashes and normalised pixels of items: what a worker makes."""
    crops = [cropped(item, augmentation) for item in items]
    pixels = processor(crops, return_tensors="pt", do_resize=False)["pixel_values"]
    return [item["seed"] for item in items], [content_hash(crop) for crop in crops], pixels


def _parts(length: int, epochs: int, shard_size: int) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, index) of each shard, in order."""
    for start in range(0, length * epochs, shard_size):
        yield [divmod(number, length) for number in range(start, min(start + shard_size, length * epochs))]


@torch.inference_mode()
def write_codes(
    pairs: PairDataset,
    tokenizer: COTSImageTokenizer,
    folder: Path | str,
    augmentation: RandomCropFlip,
    epochs: int = 1,
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
    batch_size: int = 32,
    shard_size: int = 16_384,
    workers: int = 0,
    progress: bool = False,
) -> int:
    """Write the codes of all pairs' crops in the first `epochs` epochs. Whole shards of an earlier run are kept.

    Args:
        pairs: the training data, with the seed of the training run.
        tokenizer: in evaluation mode, float32, on any device; its `config.image_size` is used.
        folder: the cache.
        augmentation: the training run's.
        epochs: how many passes will be read.
        image_mean, image_std: as in the model's config.
        batch_size: crops in a forward pass.
        shard_size: crops in a file, which are written together or not at all.
        workers: processes that decode and crop.
        progress: show a progress bar.

    Returns:
        The number of crops that were tokenized now.

    Raises:
        ValueError: if the folder holds a cache of other settings, another number of pairs or other shards; if there
            are more than 65,536 codes; or if sizes are not positive.
    """
    folder, side = Path(folder), tokenizer.config.image_size
    if tokenizer.config.codebook_size > 1 << 16:
        raise ValueError(f"{tokenizer.config.codebook_size} codes do not fit into 16 bits")
    if min(epochs, batch_size, shard_size) < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size} and shard_size={shard_size} must be at least 1")
    settings = CodeSettings.of(tokenizer, side, augmentation, image_mean, image_std, pairs.seed)
    layout = {"pairs": len(pairs), "shard_size": shard_size}
    if (folder / MANIFEST).is_file():
        settings.check(folder)
        written = json.loads((folder / MANIFEST).read_text())
        for name, value in layout.items():
            if written.get(name) != value:
                raise ValueError(f"the code cache {folder} was begun with {name} {written.get(name)}, not {value}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(
            folder / MANIFEST, lambda draft: draft.write_text(json.dumps(settings.manifest() | layout, indent=1))
        )
    square = {"height": augmentation.size, "width": augmentation.size}
    processor = COTSImageProcessor(size=square, image_mean=list(image_mean), image_std=list(image_std))
    collate = partial(_crops, augmentation=augmentation, processor=processor)
    done = 0
    with tqdm(total=len(pairs) * epochs, desc="crops", disable=not progress) as bar:
        for number, part in enumerate(_parts(len(pairs), epochs, shard_size)):
            path = folder / SHARD.format(number)
            if path.is_file() and _length(path) == len(part):
                bar.update(len(part))
                continue
            batches = [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
            shard: dict[str, list[np.ndarray]] = {"crops": [], "contents": [], "codes": []}
            for seeds, contents, pixels in DataLoader(
                pairs, batch_sampler=batches, collate_fn=collate, num_workers=workers
            ):
                view = codebook_pixels(pixels.to(tokenizer.device), image_mean, image_std, side)
                codes = tokenizer.get_codebook_indices(view).flatten(1).cpu().numpy().astype(np.uint16)
                for name, rows in (("crops", np.asarray(seeds)), ("contents", np.asarray(contents)), ("codes", codes)):
                    shard[name].append(rows)
                bar.update(len(seeds))
            joined = {name: np.concatenate(rows) for name, rows in shard.items()}
            replace_file(path, partial(save_file, joined))
            done += len(part)
    return done


def _length(path: Path) -> int:
    """Crops in a shard; the last one grows when more epochs are written."""
    return open_shard(path, MAKER).get_slice("crops").get_shape()[0]
