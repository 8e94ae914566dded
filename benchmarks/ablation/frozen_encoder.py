"""An encoder with frozen towers whose features are computed once for all runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hf_cots.data.frozen_features import TowerFeatures
from hf_cots.models.losses import l2_normalize
from hf_cots.search.encoding import batches
from hf_cots.search.torch_encoders import ModelEncoder, to_numpy


@dataclass(frozen=True)
class FrozenEncoder(ModelEncoder):
    """A COTS that reads stored tower features: no `DualEncoder`, whose images go through the model.

    Args:
        features: of the model's two towers.
    """

    features: TowerFeatures
    name: str = "model"

    @torch.no_grad()
    def encode_images(
        self, images: Iterable[Image.Image], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray:
        rows = [row for batch in batches(images, batch_size) for row in self.features.get_image_rows(batch)]
        return to_numpy(l2_normalize(self.model.visual_projection(self.features.images.features()[rows])))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        rows = [row for batch in batches(texts, batch_size) for row in self.features.get_text_rows(batch)]
        return to_numpy(l2_normalize(self.model.text_projection(self.features.texts.features()[rows])))
