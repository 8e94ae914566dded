"""Perceptual hashes: pictures that look alike have hashes that differ in few bits."""

import numpy as np
from PIL import Image


SIDE, LOW = 32, 8
_COSINES = np.cos(np.pi * np.arange(LOW)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))  # DCT-II without its scale


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits that survive scaling, recompression and small changes of colour (pHash; Zauner, 2010, chapter 3.2.1).

    The picture becomes 32 x 32 grey pixels; of their cosine transform the 8 x 8 lowest frequencies are compared with
    their median, one bit each, row by row, the first the most significant.

    Args:
        picture: RGB.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = (_COSINES @ grey @ _COSINES.T).round(6)  # without noise, so that no structure is exactly zero
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def hamming_distances(one: np.uint64, others: np.ndarray) -> np.ndarray:
    """(n,) numbers of bits in which (n,) uint64 hashes differ from one."""
    return np.unpackbits((one ^ others).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
