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

from ..data.images import BrokenImage
from ..data.sources import PairDataset


logger = logging.getLogger(__name__)

SIDE, LOW = 32, 8


def _cosines() -> np.ndarray:
    """(LOW, SIDE): the lowest rows of the orthogonal cosine transform (DCT-II) without its scale."""
    return np.cos(np.pi * np.arange(LOW)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits that survive scaling, recompression and small changes of colour (pHash; Zauner, 2010, chapter 3.2.1).

    The picture becomes 32 x 32 grey pixels; of their cosine transform the 8 x 8 lowest frequencies are compared with
    their median, one bit each, row by row, the first the most significant. Ours, because the packages that offer it
    ask for scipy and wavelets to do these five lines.

    Args:
        picture: RGB. Pictures without any structure (one colour) all share one hash.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = (_cosines() @ grey @ _cosines().T).round(6)  # without noise, so that no structure is exactly zero
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def normalised_caption(text: str) -> str:
    """Words only: Unicode's compatible form, case folded, everything but letters, digits and marks a space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split())


@dataclass(frozen=True)
class PictureMatch:
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

    pictures: list[PictureMatch]
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
            f"(perceptual hashes within {self.distance} of 64 bits); of {self.test_captions:,} captions "
            f"{len(self.captions):,} are among the {self.train_captions:,} training captions"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_overlap(test: PairDataset, train: PairDataset, distance: int = 4, progress: bool = False) -> Overlap:
    """Look for the pictures and captions of a test set in a training set.

    Equal pixels are found after decoding, so that a copy in another container or with other metadata counts, and a
    file that is equal byte for byte all the more. Pictures that are alike are found by [`perceptual_hash`]; all pairs
    of hashes are compared, but a block at a time, and of each picture only two hashes are kept. For each test picture
    the first training picture with the same pixels is reported, or else the nearest one.

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
    test_rows, test_pixels, test_hashes = _hash_pictures(test, broken, progress)
    train_rows, train_pixels, train_hashes = _hash_pictures(train, broken, progress)
    nearest, distances = nearest_hashes(test_hashes, train_hashes)
    first_with = dict(zip(reversed(train_pixels), reversed(range(len(train_pixels)))))
    pictures = []
    for number, (row, pixels) in enumerate(zip(test_rows, test_pixels)):
        same = first_with.get(pixels)
        if same is None and distances[number] > distance:
            continue
        other = int(nearest[number]) if same is None else same
        name = picture_name(train, train_rows[other])
        bits = int(distances[number]) if same is None else 0
        pictures.append(PictureMatch(picture_name(test, row), name, bits, same is not None))
    said = {normalised_caption(text): text for text in _captions(train)}
    matches = [(text, said.get(normalised_caption(text))) for text in _captions(test)]
    return Overlap(
        pictures=pictures,
        captions=[CaptionMatch(text, other) for text, other in matches if other is not None],
        test_pictures=len(test_rows),
        train_pictures=len(train_rows),
        test_captions=len(test),
        train_captions=len(train),
        distance=distance,
        broken=broken,
    )


def nearest_hashes(queries: np.ndarray, gallery: np.ndarray, block: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """For each hash the nearest one of a gallery, the first of equally near ones, and how many bits lie between.

    Args:
        queries, gallery: (n,) and (m,) uint64.
        block: hashes of either side compared at a time; memory is 8 x block^2 bytes.

    Returns:
        (n,) int64 places in the gallery (-1 if it is empty) and (n,) int64 distances (65 then).
    """
    places = np.full(len(queries), -1, dtype=np.int64)
    distances = np.full(len(queries), 65, dtype=np.int64)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        for offset in range(0, len(gallery), block):
            bits = np.bitwise_count(queries[rows, None] ^ gallery[None, offset : offset + block])
            best = bits.argmin(axis=1)
            found = bits[np.arange(len(best)), best].astype(np.int64)
            nearer = found < distances[rows]
            places[rows] = np.where(nearer, best + offset, places[rows])
            distances[rows] = np.where(nearer, found, distances[rows])
    return places, distances


def _hash_pictures(pairs: PairDataset, broken: list[str], progress: bool) -> tuple[list[int], list[bytes], np.ndarray]:
    """Rows of the distinct pictures that can be read, digests of their pixels, and their perceptual hashes."""
    rows, pixels, hashes = [], [], []
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
    return rows, pixels, np.asarray(hashes, dtype=np.uint64)


def picture_name(pairs: PairDataset, row: int) -> str:
    """The file of a row's picture as the data names it, or else data set and row."""
    cell = pairs.table[row][pairs.image_column]
    path = cell.get("path") if isinstance(cell, dict) else cell
    return path if isinstance(path, str) else f"{pairs.name}, row {row}"


def _captions(pairs: PairDataset) -> list[str]:
    return [pairs.caption(index) for index in range(len(pairs))]
