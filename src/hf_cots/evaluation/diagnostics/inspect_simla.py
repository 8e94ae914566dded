"""Show what a SIMLA model sees in an image: its predicted keywords, and where each token of a caption attends."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from ...models import COTSProcessor, SimlaModel
from ...models.token_level import unnormalize_pixels


HEAT = (1.0, 0.25, 0.0)  # color of full attention


@dataclass(frozen=True)
class SimlaInspection:
    """SIMLA's predictions for one image and, if given, one caption.

    Args:
        image: (3, image_size, image_size) pixels in [0, 1], as the image encoder sees them.
        keywords: the most likely keywords with their probabilities, best first; empty if the model has no keyword
            head.
        tokens: tokens of the caption without special tokens.
        attention: (tokens, grid, grid), cross-attention of the last layer to the patches, mean over heads.
        match: probability that image and caption match; None without a caption.
    """

    image: torch.Tensor
    keywords: list[tuple[str, float]]
    tokens: list[str]
    attention: torch.Tensor
    match: float | None

    def panels(self) -> list[tuple[str, torch.Tensor]]:
        """Return titles and pixels for [`draw_panels`]: the image, and a heat map per token."""
        match = "" if self.match is None else f"match: {self.match:.1%}"
        keywords = ", ".join(word for word, _ in self.keywords) or "no head for keywords"
        maps = [(token, heat_map(self.image, attention)) for token, attention in zip(self.tokens, self.attention)]
        return [(f"{match}\n{keywords}", self.image), *maps]

    def lines(self) -> list[str]:
        """Return keywords and match as lines for the terminal."""
        lines = [f"{probability:6.1%}  {word}" for word, probability in self.keywords]
        return lines if self.match is None else [*lines, f"match: {self.match:.1%}"]


@torch.no_grad()
def inspect_simla(
    model: SimlaModel,
    processor: COTSProcessor,
    image: Image.Image,
    caption: str | None = None,
    num_keywords: int = 10,
) -> SimlaInspection:
    """Predict the keywords of an image, and the patches that each token of a caption attends to.

    Args:
        model, processor: SIMLA in evaluation mode, and its processor.
        image: an RGB image.
        caption: a text to match with the image.
        num_keywords: number of keywords to return.
    """
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    tokenizer, config, grid = processor.tokenizer, model.config, model.config.patch_grid
    keywords: list[tuple[str, float]] = []
    if model.concept_head is not None:
        best = model.predict_keywords(pixels)[0].topk(num_keywords)
        keywords = list(zip(tokenizer.convert_ids_to_tokens(best.indices.tolist()), best.values.tolist()))
    tokens, attention, match = [], torch.zeros(0, grid, grid), None
    if caption is not None:
        inputs = processor(text=[caption], return_tensors="pt", truncation=True).to(model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        match = float(model.match(ids, mask, pixels).float().softmax(dim=1)[0, 1])
        shown = [index for index, token in enumerate(ids[0].tolist()) if token not in tokenizer.all_special_ids]
        tokens = tokenizer.convert_ids_to_tokens(ids[0, shown].tolist())
        attention = model.word_patch_attention(ids, mask, pixels)[0, shown].float().cpu()
    image_pixels = unnormalize_pixels(pixels, config.image_mean, config.image_std)[0].cpu()
    return SimlaInspection(image_pixels, keywords, tokens, attention, match)


def heat_map(image: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Overlay an image with the attention to its patches; the strongest attention gets the full color.

    Args:
        image: (3, side, side) pixels in [0, 1].
        attention: (grid, grid).
    """
    strength = attention / attention.max().clamp(min=1e-12)
    strength = F.interpolate(strength[None, None], image.shape[-2:], mode="nearest")[0] * 0.7
    return image * (1 - strength) + torch.tensor(HEAT).view(3, 1, 1) * strength
