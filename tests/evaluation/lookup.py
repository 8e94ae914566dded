"""An encoder that looks its vectors up: a text by its words, a picture of one colour by that colour."""

import torch


class Lookup:
    """An `Encoder` of known vectors.

    Args:
        vectors: by text, and by (red, green, blue); they are normalised, as the embeddings of any encoder.

    Attributes:
        texts: all that was encoded so far.
    """

    name = "lookup"

    def __init__(self, vectors):
        self.vectors, self.texts = vectors, []
        self.dim = len(next(iter(vectors.values())))

    def _embeds(self, keys):
        vectors = torch.tensor([self.vectors[key] for key in keys], dtype=torch.float32).reshape(-1, self.dim)
        return torch.nn.functional.normalize(vectors, dim=1)

    def encode_images(self, images, batch_size=64, total=None):
        return self._embeds([image.getpixel((0, 0)) for image in images])

    def encode_texts(self, texts, batch_size=256):
        self.texts += texts
        return self._embeds(texts)

    def fingerprint(self):
        return "0" * 32
