"""Hashes of pictures, which differ in few bits where pictures look alike, and of weights, which agree if all do."""

import hashlib

import numpy as np
import torch
from PIL import Image


SIDE, LOW = 32, 8
_COSINES = np.cos(np.pi * np.arange(LOW)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))  # DCT-II without its scale


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits that survive scaling, recompression and small changes of colour (pHash; Zauner, 2010, chapter 3.2.1).

    The picture becomes 32 x 32 grey pixels; of their cosine transform the 8 x 8 lowest frequencies are compared with
    their median, one bit each, row by row, the first the most significant. Ours, because the packages that offer it
    ask for scipy and wavelets to do these few lines.

    Args:
        picture: RGB. Pictures without any structure (one colour) all share one hash.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = (_COSINES @ grey @ _COSINES.T).round(6)  # without noise, so that no structure is exactly zero
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def hamming_distances(hashes: np.ndarray | np.uint64, others: np.ndarray) -> np.ndarray:
    """Numbers of bits in which uint64 hashes differ from others, broadcast as numpy does."""
    return np.bitwise_count(hashes ^ others)


def weights_fingerprint(module: torch.nn.Module) -> str:
    """32 hexadecimal digits: blake2b over the state dict in the order of its names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
