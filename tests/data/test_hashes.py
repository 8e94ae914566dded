"""Hashes: the digests that caches, splits and reports hold stay what they are."""

import numpy as np
import torch
from PIL import Image

from hf_cots.data import hashes
from tests.support.worlds import noise


def test_digests_are_unchanged():
    image, layer = Image.new("RGB", (3, 2), (1, 2, 3)), torch.nn.Linear(2, 1)
    torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
    assert hashes.stable_id("a/b.png") == 4562848063837811370
    assert hashes.hash_pixels(image) == 2172851126976252038
    assert hashes.hash_image(image) == 6860339287450882143
    assert hashes.hex_digest([b"a", b"b"], digest_size=8) == "0e52b5f187de1088"
    assert hashes.hex_digest([b"ab"]) == "3dc9ae220222e2e156b2a5abb60d01c7"
    assert hashes.weights_fingerprint(layer) == "466cf4a844f776acb532fd34d7e8d534"
    assert [letter for letter in "abcdefghijklmnop" if hashes.is_in_fraction(letter, 0.3, 5)] == [
        "b",
        "f",
        "g",
        "k",
        "l",
        "p",
    ]


def test_perceptual_hashes_and_distances_equal_slow_ones():
    values = np.random.default_rng(1).integers(0, 2**63, 20, dtype=np.uint64)
    slow = [bin(int(values[3]) ^ int(h)).count("1") for h in values]
    assert hashes.hamming_distances(values[3], values).tolist() == slow
    image = noise(40, 40, 2)
    gray = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    cosines = [[np.cos(np.pi * u * (2 * x + 1) / 64) for x in range(32)] for u in range(8)]
    low = [np.sum(gray * np.outer(cosines[u], cosines[v])) for u in range(8) for v in range(8)]
    bits = "".join("1" if value > np.median(low) else "0" for value in low)
    assert hashes.perceptual_hash(image) == int(bits, 2)
