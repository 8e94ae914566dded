"""Measure how well an image tokenizer reconstructs unseen images, and how much of its codebook it uses."""

import torch
import torch.nn.functional as F
from PIL import Image

from ...data.augmentation import RandomCropFlip
from ...data.collator import ImageCollator
from ...data.sources import PairDataset
from ...models import COTSImageTokenizer
from ...search.encoding import batches
from ..rendering.panels import contact_sheet


COLLAPSED = 0.1


class CodeUsage:
    """Counts how often each code is used.

    Args:
        codebook_size: number of codes.
        counts: (codebook_size,) int64, the counts to start from; zeros if None.
    """

    def __init__(self, codebook_size: int, counts: torch.Tensor | None = None):
        self.counts = torch.zeros(codebook_size, dtype=torch.long) if counts is None else counts

    def add(self, codes: torch.Tensor) -> None:
        """Count codes, int64 of any shape."""
        self.counts = self.counts.to(codes.device) + codes.flatten().bincount(minlength=len(self.counts))

    @property
    def used(self) -> int:
        """The number of distinct codes that occurred."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the codes' frequencies: the number of equally frequent codes with the same entropy."""
        frequencies = self.counts.double() / self.counts.sum().clamp(min=1)
        return float(torch.special.entr(frequencies).sum().exp())

    @property
    def collapsed(self) -> bool:
        """Whether fewer codes are used than a tenth of the codebook, or of the patches if there are fewer."""
        return self.used < COLLAPSED * min(len(self.counts), int(self.counts.sum()))

    def __str__(self) -> str:
        return f"{self.used} of {len(self.counts)} codes are in use, with a perplexity of {self.perplexity:.1f}"


@torch.no_grad()
def evaluate_image_tokenizer(
    model: COTSImageTokenizer, pairs: PairDataset, batch_size: int = 64, shown: int = 12
) -> tuple[dict[str, float], Image.Image]:
    """Encode uncropped images to hard codes, decode them, and compare.

    Args:
        model: in evaluation mode, on any device.
        pairs: the images; captions are not used.
        batch_size: images per forward pass.
        shown: columns of the contact sheet.

    Returns:
        `{"mse", "mae", "psnr", "perplexity", "used_codes", "used_share", "collapsed", "pictures"}`, with errors of
        pixels in [0, 1] and the PSNR of the mean squared error in decibels; and a contact sheet of some images above
        their reconstructions.

    Raises:
        ValueError: if the model has no decoder.
    """
    collate = ImageCollator(RandomCropFlip(model.config.image_size, min_scale=1.0, flip=0.0, min_aspect=1.0))
    usage, squared, absolute = CodeUsage(model.config.codebook_size), 0.0, 0.0
    chosen = set(torch.linspace(0, len(pairs) - 1, min(shown, len(pairs))).long().tolist())
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for indices in batches(range(len(pairs)), batch_size):
        pixels = collate([pairs[(0, index)] for index in indices])["pixel_values"].to(model.device)
        codes = model.get_codebook_indices(pixels)
        decoded = model.decode(codes).float()
        usage.add(codes)
        squared += float(F.mse_loss(decoded, pixels, reduction="none").double().mean(dim=(1, 2, 3)).sum())
        absolute += float(F.l1_loss(decoded, pixels, reduction="none").double().mean(dim=(1, 2, 3)).sum())
        for row, images in zip(rows, (pixels, decoded)):
            row += [image.cpu() for index, image in zip(indices, images) if index in chosen]
    mse = squared / len(pairs)
    metrics = {
        "mse": mse,
        "mae": absolute / len(pairs),
        "psnr": float(-10 * torch.tensor(mse).log10()),
        "perplexity": usage.perplexity,
        "used_codes": usage.used,
        "used_share": usage.used / len(usage.counts),
        "collapsed": float(usage.collapsed),
        "pictures": len(pairs),
    }
    return metrics, contact_sheet([torch.stack(row) for row in rows])
