"""An encoder with given embeddings."""

import numpy as np
import torch
import torch.nn.functional as F


class KnownEncoder:
    """Looks images up by the color of their central pixel, texts by themselves.

    Args:
        vectors: `{color or text: values}`; they are normalized.
    """

    name = "known"

    def __init__(self, vectors):
        tensors = {key: torch.tensor(values, dtype=torch.float32) for key, values in vectors.items()}
        self.vectors = {key: F.normalize(tensor, dim=0).numpy() for key, tensor in tensors.items()}
        self.dim = len(next(iter(self.vectors.values())))
        self.texts = []

    def encode_images(self, images, batch_size=64, total=None):
        found = [self.vectors[image.getpixel((image.width // 2, image.height // 2))] for image in images]
        return np.stack(found) if found else np.empty((0, self.dim), np.float32)

    def encode_texts(self, texts, batch_size=256):
        self.texts += texts
        return np.stack([self.vectors[text] for text in texts])

    def fingerprint(self):
        return "0" * 32
