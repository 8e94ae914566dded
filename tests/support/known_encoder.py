"""An encoder of which every embedding is known beforehand."""

import torch
import torch.nn.functional as F


class KnownEncoder:
    """Pictures are known by the colour of their middle, texts by themselves.

    Args:
        vectors: `{colour or text: numbers}`; they are normalised.
    """

    name = "known"

    def __init__(self, vectors):
        tensors = {key: torch.tensor(values, dtype=torch.float32) for key, values in vectors.items()}
        self.vectors = {key: F.normalize(tensor, dim=0) for key, tensor in tensors.items()}
        self.dim = len(next(iter(self.vectors.values())))
        self.texts = []

    def encode_images(self, images, batch_size=64, total=None):
        found = [self.vectors[image.getpixel((image.width // 2, image.height // 2))] for image in images]
        return torch.stack(found) if found else torch.empty(0, self.dim)

    def encode_texts(self, texts, batch_size=256):
        self.texts += texts
        return torch.stack([self.vectors[text] for text in texts])

    def fingerprint(self):
        return "0" * 32
