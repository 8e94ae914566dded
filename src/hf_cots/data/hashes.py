"""Hashes: of images that look alike, of data, of names and of weights.

Caches, splits and reports hold these digests, so none of them may ever change.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    import torch

SIDE, LOW = 32, 8
_COSINES = np.cos(np.pi * np.arange(LOW)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))  # DCT-II without its scale


def hex_digest(chunks: Iterable[bytes], digest_size: int = 16) -> str:
    """Hexadecimal blake2b digest of chunks one after another; two digits per byte of `digest_size`."""
    digest = hashlib.blake2b(digest_size=digest_size)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def hash_bytes(data: bytes) -> int:
    """Hash bytes to a non-negative int64."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def stable_id(text: str) -> int:
    """Hash a text, such as the path of an image, to a non-negative int64 that is equal on every machine."""
    return hash_bytes(text.encode())


def hash_pixels(image: Image.Image) -> int:
    """Hash the pixels of an image whose size is known to a non-negative int64."""
    return hash_bytes(image.tobytes())


def hash_image(image: Image.Image) -> int:
    """Hash size and pixels of an image to a non-negative int64."""
    return hash_bytes(repr(image.size).encode() + image.tobytes())


def is_in_fraction(text: str, fraction: float, seed: int) -> bool:
    """Tell whether a text is in a random subset with this fraction of all texts: a pure function of text and seed."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def perceptual_hash(image: Image.Image) -> int:
    """Hash an image to 64 bits that survive scaling, recompression and small changes of color.

    pHash (Zauner, 2010, chapter 3.2.1): the image becomes 32 x 32 gray pixels; of their cosine transform the 8 x 8
    lowest frequencies are compared with their median, one bit each, row by row, the first the most significant. The
    packages that offer it ask for scipy and wavelets to do these few lines.

    Args:
        image: RGB. Images without any structure (one color) all share one hash.
    """
    gray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = (_COSINES @ gray @ _COSINES.T).round(6)  # without noise, so that no structure is exactly zero
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def hamming_distances(hashes: np.ndarray | np.uint64, others: np.ndarray) -> np.ndarray:
    """Count the bits in which uint64 hashes differ from others, broadcast as numpy does."""
    return np.bitwise_count(hashes ^ others)


def weights_fingerprint(module: "torch.nn.Module") -> str:
    """32 hexadecimal digits: blake2b over the state dict in the order of its names."""
    import torch

    def chunks() -> Iterable[bytes]:
        for name, tensor in sorted(module.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

    return hex_digest(chunks())
