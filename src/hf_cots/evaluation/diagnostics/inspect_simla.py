"""What SIMLA sees in a picture: the keywords that it predicts, and where each word of a caption looks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from ...models import COTSProcessor, SimlaModel
from ..rendering.panels import draw_panels


HEAT = (1.0, 0.25, 0.0)  # where a word looks


@dataclass(frozen=True)
class SimlaInspection:
    """One picture, and one caption if there is one, through SIMLA.

    Args:
        image: (3, image_size, image_size) pixels in [0, 1], as the image encoder sees them.
        keywords: word and probability of the most likely keywords, best first; none without a head for them.
        words: tokens of the caption without special ones.
        attention: (words, grid, grid), where each of them looks: cross-attention of the last layer, mean over heads.
        match: probability that picture and caption belong together.
    """

    image: torch.Tensor
    keywords: list[tuple[str, float]]
    words: list[str]
    attention: torch.Tensor
    match: float | None

    def lines(self) -> list[str]:
        """Keywords and match, for the terminal."""
        lines = [f"{probability:6.1%}  {word}" for word, probability in self.keywords]
        return lines if self.match is None else [*lines, f"match: {self.match:.1%}"]


@torch.inference_mode()
def inspect_simla(
    model: SimlaModel, processor: COTSProcessor, image: Image.Image, caption: str | None = None, most: int = 10
) -> SimlaInspection:
    """Predict the keywords of a picture, and look where the words of a caption look.

    Args:
        model, processor: in evaluation mode.
        image: an RGB picture.
        caption: what it may show.
        most: keywords to show.
    """
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    tokenizer, grid = processor.tokenizer, model.config.patch_grid
    keywords: list[tuple[str, float]] = []
    if model.concept_head is not None:
        best = model.predict_keywords(pixels)[0].topk(most)
        keywords = list(zip(tokenizer.convert_ids_to_tokens(best.indices.tolist()), best.values.tolist()))
    words, attention, match = [], torch.zeros(0, grid, grid), None
    if caption is not None:
        inputs = processor(text=[caption], return_tensors="pt", truncation=True).to(model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        match = float(model.match(ids, mask, pixels).float().softmax(dim=1)[0, 1])
        shown = [place for place, word in enumerate(ids[0].tolist()) if word not in tokenizer.all_special_ids]
        words = tokenizer.convert_ids_to_tokens(ids[0, shown].tolist())
        attention = model.word_patch_attention(ids, mask, pixels)[0, shown].float().cpu()
    mean, std = (
        pixels.new_tensor(numbers).view(3, 1, 1) for numbers in (model.config.image_mean, model.config.image_std)
    )
    return SimlaInspection((pixels[0] * std + mean).clamp(0, 1).float().cpu(), keywords, words, attention, match)


def heat_map(image: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """(3, side, side) the picture, the redder the more a word looks there; its greatest attention is fully red.

    Args:
        image: (3, side, side); attention: (grid, grid).
    """
    strength = attention / attention.max().clamp(min=1e-12)
    strength = F.interpolate(strength[None, None], image.shape[-2:], mode="nearest")[0] * 0.7
    return image * (1 - strength) + torch.tensor(HEAT).view(3, 1, 1) * strength


def draw_simla_inspection(found: SimlaInspection) -> Image.Image:
    """The picture above its match and its best keywords, and a heat map for each word of the caption."""
    match = "" if found.match is None else f"match: {found.match:.1%}"
    known = ", ".join(word for word, _ in found.keywords) or "no head for keywords"
    maps = [(word, heat_map(found.image, looks)) for word, looks in zip(found.words, found.attention)]
    return draw_panels([(f"{match}\n{known}", found.image), *maps])


def inspect_simla_model(
    model: SimlaModel, processor: COTSProcessor, image: Image.Image, caption: str | None = None
) -> tuple[Image.Image, list[str]]:
    """All that `hf-cots inspect` shows of a SIMLA: a row of panels, and lines of text."""
    found = inspect_simla(model, processor, image, caption)
    return draw_simla_inspection(found), found.lines()
