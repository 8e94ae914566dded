"""Find test data in the training data: by pixels, by perceptual hash, and by normalized captions.

Metrics on images that the model was trained on say little, and web-scale training sets contain the usual test sets.
"""

import logging
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ...data.fingerprint import data_fingerprint
from ...data.folders import cache_folder
from ...data.hashes import hamming_distances, hash_image, perceptual_hash
from ...data.images import BrokenImage, skip_image
from ...data.shards import open_shard, replace_file
from ...data.sources import PairDataset


logger = logging.getLogger(__name__)

GRID, COLOR_RANGE = 4, 48


def color_grid(image: Image.Image) -> np.ndarray:
    """Average an image's colors in 4 x 4 cells: (48,) int16, 0 to 255.

    A perceptual hash ignores color and would confuse flags; the colors of copies differ by at most `COLOR_RANGE`.
    """
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.int16).ravel()


def normalize_caption(text: str) -> str:
    """Normalize a caption to NFKC, case-fold it, and replace everything but letters, digits and marks by spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split())


@dataclass(frozen=True)
class ImageMatch:
    """A test image and the training image most similar to it.

    Attributes:
        test, train: file names, or data set and row.
        distance: distance of their perceptual hashes in bits, 0 to 64.
        identical: whether their pixels are the same.
    """

    test: str
    train: str
    distance: int
    identical: bool


@dataclass(frozen=True)
class CaptionMatch:
    """A test caption that also occurs in the training data, as it is written in each."""

    test: str
    train: str


@dataclass(frozen=True)
class Overlap:
    """The overlap of test and training data.

    Attributes:
        pictures: the test images found in the training data, in the order of the test data.
        captions: the test captions found in the training data, in the order of the test data.
        test_pictures, train_pictures, test_captions, train_captions: numbers of compared images and captions.
        distance: maximum distance in bits of the perceptual hashes of near-duplicates.
        broken: images of either side that could not be read and were not compared.
    """

    pictures: list[ImageMatch]
    captions: list[CaptionMatch]
    test_pictures: int
    train_pictures: int
    test_captions: int
    train_captions: int
    distance: int
    broken: list[str]

    def summary(self) -> str:
        """Return one line for the terminal."""
        identical = sum(match.identical for match in self.pictures)
        return (
            f"of {self.test_pictures:,} test images {identical:,} are pixel for pixel among the "
            f"{self.train_pictures:,} training images and {len(self.pictures) - identical:,} more are nearly "
            f"(perceptual hashes within {self.distance} of 64 bits, similar colors); of {self.test_captions:,} "
            f"captions {len(self.captions):,} are among the {self.train_captions:,} training captions"
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return asdict(self)


def check_overlap(test: PairDataset, train: PairDataset, distance: int = 4, progress: bool = False) -> Overlap:
    """Look for the images and captions of a test set in a training set.

    Pixels are compared after decoding, so that copies in another format or with other metadata are found. Other
    near-duplicates are found by [`nearest_duplicates`], which compares all pairs of hashes block by block; a few
    hundred bytes are kept per image. For each test image the first training image with the same pixels is reported,
    or else the nearest near-duplicate.

    Args:
        test, train: the two sets.
        distance: number of bits, 0 to 64, in which the perceptual hashes of a near-duplicate may differ. The default
            finds scaled and recompressed copies; from about 10 on, images that only look similar are found too.
        progress: show a progress bar.

    Raises:
        ValueError: if the distance is out of range.
    """
    if not 0 <= distance <= 64:
        raise ValueError(f"the distance of perceptual hashes must be from 0 to 64 bits, got {distance}")
    broken: list[str] = []
    tests, trains = (Fingerprints.from_pairs(pairs, broken, progress) for pairs in (test, train))
    nearest, distances = nearest_duplicates(tests, trains, distance)
    first_with = dict(zip(trains.pixels[::-1].tolist(), reversed(range(len(trains.pixels)))))
    pictures = []
    for i, (row, pixels) in enumerate(zip(tests.rows.tolist(), tests.pixels.tolist())):
        identical = pixels in first_with
        other = first_with[pixels] if identical else int(nearest[i])
        if other >= 0:
            names = test.image_name(row), train.image_name(int(trains.rows[other]))
            pictures.append(ImageMatch(*names, 0 if identical else int(distances[i]), identical))
    train_captions = {normalize_caption(text): text for text in _captions(train)}
    matches = [(text, train_captions.get(normalize_caption(text))) for text in _captions(test)]
    return Overlap(
        pictures=pictures,
        captions=[CaptionMatch(text, other) for text, other in matches if other is not None],
        test_pictures=len(tests.rows),
        train_pictures=len(trains.rows),
        test_captions=len(test),
        train_captions=len(train),
        distance=distance,
        broken=broken,
    )


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of the distinct images of a data set.

    Attributes:
        rows: (n,) int64, rows of the images that could be read.
        pixels: (n,) int64, hashes of size and pixels.
        hashes: (n,) uint64, from [`perceptual_hash`].
        colors: (n, 48) int16, from [`color_grid`].
    """

    rows: np.ndarray
    pixels: np.ndarray
    hashes: np.ndarray
    colors: np.ndarray

    @classmethod
    def from_pairs(cls, pairs: PairDataset, broken: list[str], progress: bool = False) -> "Fingerprints":
        """Hash all images of a data set; the names of unreadable ones are added to `broken`.

        The hashes are cached under the data's fingerprint: the next evaluation against the same data loads them, and
        decodes only the images that could not be read before.
        """
        file = cache_folder("overlap", f"{data_fingerprint(pairs)}-pillow-{PIL.__version__}.safetensors")
        known = cls.load(file) if file.is_file() else cls.empty()
        missing = np.setdiff1d(np.unique(pairs.first_rows()), known.rows)
        read = cls.read(pairs, missing, broken, progress)
        if len(read.rows) == 0:
            return known
        both = cls(*(np.concatenate([getattr(part, name) for part in (known, read)]) for name in FIELDS))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, lambda draft: save_file({name: getattr(both, name) for name in FIELDS}, draft))
        except OSError as error:
            logger.info("cannot cache the hashes of %s: %s", pairs.name, error)
        return both

    @classmethod
    def empty(cls) -> "Fingerprints":
        """Return the fingerprints of no images."""
        rows, hashes = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
        return cls(rows, rows, hashes, np.empty((0, 3 * GRID**2), dtype=np.int16))

    @classmethod
    def load(cls, file: Path) -> "Fingerprints":
        """Load the hashes that [`from_pairs`] has cached.

        Raises:
            ValueError: if the file is damaged.
        """
        shard = open_shard(file, "an evaluation with --check-overlap")
        return cls(*(shard.get_tensor(name) for name in FIELDS))

    @classmethod
    def read(cls, pairs: PairDataset, rows: np.ndarray, broken: list[str], progress: bool) -> "Fingerprints":
        """Hash the images of some rows."""
        found = []
        for row in tqdm(rows.tolist(), desc=f"hashing {pairs.name}", disable=not progress or len(rows) == 0):
            try:
                image = pairs.read_row(row)
            except BrokenImage as error:
                skip_image(error)
                broken.append(str(error))
                continue
            found.append((row, hash_image(image), perceptual_hash(image), color_grid(image)))
        if not found:
            return cls.empty()
        numbers, pixels, hashes, colors = zip(*found)
        return cls(np.array(numbers), np.array(pixels), np.array(hashes, dtype=np.uint64), np.stack(colors))


FIELDS = ("rows", "pixels", "hashes", "colors")


def nearest_duplicates(
    queries: Fingerprints, gallery: Fingerprints, distance: int, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Find each image's nearest near-duplicate in a gallery.

    Near-duplicates are images whose hashes differ in at most `distance` bits and whose colors differ by at most
    `COLOR_RANGE` in each cell.

    Args:
        queries, gallery: n and m images.
        distance: maximum distance in bits.
        block: images of either side compared at a time; memory is at most about 100 x block^2 bytes.

    Returns:
        (n,) int64 indices into the gallery, the first of equally near ones, or -1 if there is none; and (n,) int64
        distances of the hashes, 65 if there is none.
    """
    nearest = np.full(len(queries.hashes), -1, dtype=np.int64)
    distances = np.full(len(queries.hashes), 65, dtype=np.int64)
    for start in range(0, len(queries.hashes), block):
        rows = slice(start, start + block)
        for offset in range(0, len(gallery.hashes), block):
            columns = slice(offset, offset + block)
            bits = hamming_distances(queries.hashes[rows, None], gallery.hashes[None, columns])
            near = np.nonzero(bits <= distance)
            gap = np.abs(queries.colors[rows][near[0]] - gallery.colors[columns][near[1]]).max(axis=1, initial=0)
            candidates = np.full(bits.shape, 65, dtype=np.int64)
            candidates[near] = np.where(gap <= COLOR_RANGE, bits[near], 65)
            best = candidates.argmin(axis=1)
            found = candidates[np.arange(len(best)), best]
            nearer = found < distances[rows]
            nearest[rows] = np.where(nearer, best + offset, nearest[rows])
            distances[rows] = np.where(nearer, found, distances[rows])
    return nearest, distances


def _captions(pairs: PairDataset) -> list[str]:
    return [pairs.caption(index) for index in range(len(pairs))]
