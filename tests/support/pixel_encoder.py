"""A fast encoder of tiny images, and folders of them, for tests of indexes."""

import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tests.support.worlds import noise


DIM = 12


class PixelEncoder:
    """The 2 x 2 mean colors of an image, normalized; a text is a direction by its hash. `encoded` counts images.

    Args:
        weights: stands for them in the fingerprint.
    """

    name, dim = "pixels", DIM

    def __init__(self, weights="0"):
        self.weights, self.encoded = weights, 0

    def encode_images(self, images, batch_size=64, total=None):
        rows = [np.asarray(image.resize((2, 2), Image.Resampling.BOX), dtype=np.float32).ravel() for image in images]
        self.encoded += len(rows)
        embeds = torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), DIM)) - 127.5
        broken = torch.tensor([bool((row == 7).all()) for row in rows], dtype=torch.bool)
        embeds[broken] = torch.nan  # of an image of this one color
        return F.normalize(embeds, dim=1).numpy()

    def encode_texts(self, texts, batch_size=256):
        seeds = [torch.Generator().manual_seed(sum(text.encode())) for text in texts]
        return F.normalize(torch.stack([torch.randn(DIM, generator=seed) for seed in seeds]), dim=1).numpy()

    def fingerprint(self):
        return self.weights


def write_image(path, seed, age=3600):
    """A PNG of random pixels, written `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(6, 6, seed).save(path, "PNG")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def write_folder(folder, count):
    """A folder of `count` different images, 000.png and so on."""
    for i in range(count):
        write_image(folder / f"{i:03d}.png", i)
    return folder


def change_folder(folder):
    """Rename, remove, change, copy and add images of [`write_folder`], and add one that cannot be read."""
    (folder / "000.png").unlink()
    (folder / "001.png").rename(folder / "moved.png")
    write_image(folder / "002.png", 200, age=1800)
    (folder / "copy.png").write_bytes((folder / "003.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    for i in range(300, 309):
        write_image(folder / f"{i}.png", i)
