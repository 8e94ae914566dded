"""Does the test data occur in the training data? By pixels, by perceptual hash, and by words.

A figure on pictures that the model has seen says little, and web-scale training sets do hold the usual test sets.
"""

import hashlib
import logging
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ...data.hashes import hamming_distances, perceptual_hash
from ...data.images import BrokenImage
from ...data.sources import PairDataset, image_name


logger = logging.getLogger(__name__)

GRID, COLOUR_RANGE = 4, 48


def colour_grid(picture: Image.Image) -> np.ndarray:
    """(48,) int16: the mean colours of 4 x 4 fields, 0 to 255. A perceptual hash sees no colour, and would take one
    flag for another; copies keep within `COLOUR_RANGE` of these numbers."""
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.int16).ravel()


def normalised_caption(text: str) -> str:
    """Words only: Unicode's compatible form, case folded, everything but letters, digits and marks a space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split())


@dataclass(frozen=True)
class ImageMatch:
    """A test picture and the training picture that is most like it.

    Attributes:
        test, train: file names, or data set and row.
        distance: of their perceptual hashes in bits, 0 to 64.
        identical: whether they have the same pixels.
    """

    test: str
    train: str
    distance: int
    identical: bool


@dataclass(frozen=True)
class CaptionMatch:
    """A test caption that also stands in the training data, as both write it."""

    test: str
    train: str


@dataclass(frozen=True)
class Overlap:
    """What test and training data have in common.

    Attributes:
        pictures: the test pictures found in the training data, in the order of the test data.
        captions: the test captions found there, likewise.
        test_pictures, train_pictures, test_captions, train_captions: how many were compared.
        distance: largest distance of perceptual hashes that counted as alike, in bits.
        broken: pictures of either side that could not be read, and so were not compared.
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
        """One line for the terminal."""
        identical = sum(match.identical for match in self.pictures)
        return (
            f"of {self.test_pictures:,} test pictures {identical:,} are pixel for pixel among the "
            f"{self.train_pictures:,} training pictures and {len(self.pictures) - identical:,} more are nearly "
            f"(perceptual hashes within {self.distance} of 64 bits, like colours); of {self.test_captions:,} captions "
            f"{len(self.captions):,} are among the {self.train_captions:,} training captions"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_overlap(test: PairDataset, train: PairDataset, distance: int = 4, progress: bool = False) -> Overlap:
    """Look for the pictures and captions of a test set in a training set.

    Equal pixels are found after decoding, so that a copy in another container or with other metadata counts, and a
    file that is equal byte for byte all the more. Pictures that are alike are found by [`nearest_alike`]; all pairs of
    hashes are compared, but a block at a time, and of each picture some hundred bytes are kept. For each test picture
    the first training picture with the same pixels is reported, or else the nearest one that is alike.

    Args:
        test, train: the two sets.
        distance: bits in which the perceptual hashes of a near-duplicate may differ, 0 to 64. The default finds scaled
            and recompressed copies; from about 10 on, pictures that only look alike are found too.
        progress: show a progress bar.

    Raises:
        ValueError: if the distance is out of range.
    """
    if not 0 <= distance <= 64:
        raise ValueError(f"a distance of perceptual hashes is 0 to 64 bits, got {distance}")
    broken: list[str] = []
    tests, trains = (Fingerprints.of(pairs, broken, progress) for pairs in (test, train))
    nearest, distances = nearest_alike(tests, trains, distance)
    first_with = dict(zip(reversed(trains.pixels), reversed(range(len(trains.pixels)))))
    pictures = []
    for number, (row, pixels) in enumerate(zip(tests.rows, tests.pixels)):
        identical = pixels in first_with
        other = first_with[pixels] if identical else int(nearest[number])
        if other >= 0:
            names = image_name(test, row), image_name(train, trains.rows[other])
            pictures.append(ImageMatch(*names, 0 if identical else int(distances[number]), identical))
    said = {normalised_caption(text): text for text in _captions(train)}
    matches = [(text, said.get(normalised_caption(text))) for text in _captions(test)]
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
    """What is kept of the distinct pictures of a data set.

    Attributes:
        rows: (n) rows of the pictures that could be read.
        pixels: (n) digests of size and pixels.
        hashes: (n,) uint64, of [`perceptual_hash`].
        colours: (n, 48) int16, of [`colour_grid`].
    """

    rows: list[int]
    pixels: list[bytes]
    hashes: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, pairs: PairDataset, broken: list[str], progress: bool = False) -> "Fingerprints":
        """Read all pictures of a data set; those that cannot be read are added to `broken`."""
        rows, pixels, hashes, colours = [], [], [], []
        for row in tqdm(np.unique(pairs.first_rows()).tolist(), desc=f"hashing {pairs.name}", disable=not progress):
            try:
                picture = pairs.read_row(row)
            except BrokenImage as error:
                logger.warning("left out: %s", error)
                broken.append(str(error))
                continue
            rows.append(row)
            digest = hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16)
            pixels.append(digest.digest())
            hashes.append(perceptual_hash(picture))
            colours.append(colour_grid(picture))
        grids = np.stack(colours) if colours else np.empty((0, 3 * GRID**2), dtype=np.int16)
        return cls(rows, pixels, np.asarray(hashes, dtype=np.uint64), grids)


def nearest_alike(
    queries: Fingerprints, gallery: Fingerprints, distance: int, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the one of a gallery with the nearest hash among those that are alike.

    Alike are pictures whose hashes differ in at most `distance` bits and whose colours in no field by more than
    `COLOUR_RANGE`.

    Args:
        queries, gallery: n and m pictures.
        distance: in bits.
        block: pictures of either side compared at a time; memory is about 100 x block^2 bytes at the very most.

    Returns:
        (n,) int64 places in the gallery, the first of equally near ones, -1 if none is alike; and (n,) int64 distances
        of the hashes, 65 then.
    """
    places = np.full(len(queries.hashes), -1, dtype=np.int64)
    distances = np.full(len(queries.hashes), 65, dtype=np.int64)
    for start in range(0, len(queries.hashes), block):
        rows = slice(start, start + block)
        for offset in range(0, len(gallery.hashes), block):
            columns = slice(offset, offset + block)
            bits = hamming_distances(queries.hashes[rows, None], gallery.hashes[None, columns])
            near = np.nonzero(bits <= distance)
            gap = np.abs(queries.colours[rows][near[0]] - gallery.colours[columns][near[1]]).max(axis=1, initial=0)
            alike = np.full(bits.shape, 65, dtype=np.int64)
            alike[near] = np.where(gap <= COLOUR_RANGE, bits[near], 65)
            best = alike.argmin(axis=1)
            found = alike[np.arange(len(best)), best]
            nearer = found < distances[rows]
            places[rows] = np.where(nearer, best + offset, places[rows])
            distances[rows] = np.where(nearer, found, distances[rows])
    return places, distances


def _captions(pairs: PairDataset) -> list[str]:
    return [pairs.caption(index) for index in range(len(pairs))]
