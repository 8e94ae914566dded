"""A cache of the image tokenizer's codes for every crop that a training run will see.

Encoding a crop costs more than the image tower's forward, and a crop is a pure function of (seed, epoch, sample id).
So the codes of some epochs can be written beforehand, and training reads them.

A cache is a folder of `codes-NNNNN.safetensors`, each with `crops` (n,) int64, the item's own seed, which is a hash of
(seed, epoch, sample id); `contents` (n,) int64, a hash of the crop's pixels; and `codes` (n, patches) uint16. Both
keys must agree: an exchanged image, or a library that resizes otherwise, is not found, and never gives wrong codes.
`cache.json` holds the settings that the codes were made with.
"""

import json
import logging
from collections.abc import Sequence
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
from .augmentation import RandomCropFlip, crop_image
from .hashes import hash_pixels, weights_fingerprint
from .shards import open_shard, replace_file
from .sources import PairDataset


logger = logging.getLogger(__name__)

MANIFEST = "cache.json"
SHARD = "codes-{:05d}.safetensors"
FORMAT = 1
WRITER = "`hf-cots tokenize`"


@dataclass(frozen=True)
class CodeSettings:
    """Everything that codes depend on besides image, epoch and sample id: the fingerprint of a cache.

    Args:
        tokenizer: [`weights_fingerprint`] of the image tokenizer's encoder.
        tokenizer_size: side of its input in pixels.
        image_size, min_scale, flip, min_aspect, recolor: of the crop, see [`RandomCropFlip`].
        image_mean, image_std: normalization of the image tower's pixels, from which the tokenizer's are made.
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
    recolor: float = 0.0

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: COTSImageTokenizer,
        tokenizer_size: int,
        augmentation: RandomCropFlip,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        seed: int,
    ) -> "CodeSettings":
        """Get the settings of a run with this image tokenizer, crop, normalization and seed.

        Raises:
            ValueError: if mean or deviation are not three numbers.
        """
        crop = asdict(augmentation)
        size = crop.pop("size")
        mean, std = (tuple(float(x) for x in numbers) for numbers in (image_mean, image_std))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(
                f"image mean and standard deviation need three numbers each, one per channel; got {mean} and {std}"
            )
        numbers = {name: float(value) for name, value in crop.items()}
        weights = weights_fingerprint(tokenizer.encoder)
        return cls(weights, tokenizer_size, size, **numbers, image_mean=mean, image_std=std, seed=seed)

    def check(self, folder: Path) -> None:
        """Check that the cache in `folder` was made with these settings.

        Raises:
            ValueError: naming the first one that differs.
        """
        wanted = self.manifest()["settings"]
        try:
            written = json.loads((folder / MANIFEST).read_text())["settings"]
            name = next((name for name in written | wanted if written.get(name) != wanted.get(name)), None)
        except (AttributeError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} is not a code cache: cannot read {MANIFEST} ({error!r})") from None
        if name is not None:
            raise ValueError(
                f"the code cache {folder} was made with {name} {written.get(name)}, not {wanted.get(name)}: create "
                f"another with {WRITER}"
            )

    def manifest(self) -> dict[str, Any]:
        """What [`MANIFEST`] holds."""
        settings = json.loads(json.dumps(asdict(self)))
        if not self.recolor:  # which older caches do not have
            del settings["recolor"]
        return {"settings": {"format": FORMAT} | settings}


class CodeCache:
    """A folder of codes, opened for reading. Copies in worker processes open the shards by themselves.

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
            raise ValueError(f"the code cache {folder} is empty")
        files = [open_shard(path, WRITER) for path in self.shards]
        crops = [file.get_tensor("crops") for file in files]
        shards = np.repeat(np.arange(len(crops)), [len(rows) for rows in crops])
        rows = np.concatenate([np.arange(len(rows)) for rows in crops])
        order = np.argsort(np.concatenate(crops), kind="stable")
        self.crops = np.concatenate(crops)[order]  # (n,) int64, ascending
        self.contents = np.concatenate([file.get_tensor("contents") for file in files])[order]  # (n,) int64
        self.locations = np.stack([shards, rows], axis=1)[order].astype(np.int32)  # (n, 2) shard and row in it
        self._files: dict[int, Any] = {}
        self._missed = False

    def __len__(self) -> int:
        return len(self.crops)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def find(self, seed: int, crop: Image.Image) -> np.ndarray | None:
        """(patches,) uint16 codes of an item's crop, or None."""
        index = int(np.searchsorted(self.crops, seed))
        if index == len(self) or self.crops[index] != seed or self.contents[index] != hash_pixels(crop):
            return None
        shard, row = self.locations[index].tolist()
        if shard not in self._files:
            self._files[shard] = open_shard(self.shards[shard], WRITER).get_slice("codes")
        return self._files[shard][row : row + 1][0]

    def codes(self, seeds: list[int], crops: list[Image.Image]) -> np.ndarray | None:
        """(n, patches) int64 codes of a batch, or None if not all of them are there: then the model computes them."""
        found = [self.find(seed, crop) for seed, crop in zip(seeds, crops)]
        missing = sum(codes is None for codes in found)
        if missing == 0:
            return np.stack(found).astype(np.int64)  # type: ignore[arg-type]  # none is None
        if not self._missed:
            logger.warning(
                "the code cache %s is missing %d of %d crops of a batch: such batches are tokenized during training "
                "(an epoch was not written, or an image has changed)",
                *(self.folder, missing, len(seeds)),
            )
            self._missed = True
        return None


def _make_crops(items: list[dict[str, Any]], augmentation: RandomCropFlip, processor: COTSImageProcessor):
    """Seeds, content hashes and normalized pixels of items: what a worker makes."""
    crops = [crop_image(item, augmentation) for item in items]
    pixels = processor(crops, return_tensors="pt", do_resize=False)["pixel_values"]
    return [item["seed"] for item in items], [hash_pixels(crop) for crop in crops], pixels


def _open_folder(folder: Path, settings: CodeSettings, layout: dict[str, int]) -> None:
    """Begin a cache, or check that the one in the folder has these settings and this layout."""
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings.manifest() | layout, indent=1)
        replace_file(folder / MANIFEST, lambda draft: draft.write_text(text))
        return
    settings.check(folder)
    written = json.loads((folder / MANIFEST).read_text())
    for name, value in layout.items():
        if written.get(name) != value:
            raise ValueError(
                f"the code cache {folder} was started with {name} {written.get(name)}, not {value}: use another folder"
            )


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
    """Write the codes of all pairs' crops in the first `epochs` epochs. Complete shards of an earlier run are kept.

    Args:
        pairs: the training data, with the seed of the training run.
        tokenizer: in evaluation mode, float32, on any device; its `config.image_size` is used.
        folder: the cache.
        augmentation: the training run's.
        epochs: number of epochs to write.
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
        raise ValueError(f"a codebook of {tokenizer.config.codebook_size} codes does not fit into 16 bits")
    if min(epochs, batch_size, shard_size) < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size} and shard_size={shard_size} must be at least 1")
    settings = CodeSettings.from_tokenizer(tokenizer, side, augmentation, image_mean, image_std, pairs.seed)
    _open_folder(folder, settings, {"pairs": len(pairs), "shard_size": shard_size})
    square = {"height": augmentation.size, "width": augmentation.size}
    processor = COTSImageProcessor(size=square, image_mean=list(image_mean), image_std=list(image_std))
    collate = partial(_make_crops, augmentation=augmentation, processor=processor)
    total, done = len(pairs) * epochs, 0
    with tqdm(total=total, desc="crops", disable=not progress) as bar:
        for shard, start in enumerate(range(0, total, shard_size)):
            part = [divmod(crop, len(pairs)) for crop in range(start, min(start + shard_size, total))]
            path = folder / SHARD.format(shard)
            if path.is_file() and _count_crops(path) == len(part):
                bar.update(len(part))
                continue
            batches = [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
            rows: dict[str, list[np.ndarray]] = {"crops": [], "contents": [], "codes": []}
            for seeds, contents, pixels in DataLoader(
                pairs, batch_sampler=batches, collate_fn=collate, num_workers=workers
            ):
                view = codebook_pixels(pixels.to(tokenizer.device), image_mean, image_std, side)
                rows["crops"].append(np.asarray(seeds))
                rows["contents"].append(np.asarray(contents))
                rows["codes"].append(tokenizer.get_codebook_indices(view).flatten(1).cpu().numpy().astype(np.uint16))
                bar.update(len(seeds))
            replace_file(path, partial(save_file, {name: np.concatenate(parts) for name, parts in rows.items()}))
            done += len(part)
    return done


def _count_crops(path: Path) -> int:
    """Crops in a shard; the last one grows when more epochs are written."""
    return open_shard(path, WRITER).get_slice("crops").get_shape()[0]
