"""One picture that shows whether the token level has learned anything: masked patches, predicted and decoded."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoConfig

from ...models import COTSForPreTraining, COTSProcessor
from ...models.masking import PATCH_STREAM, block_mask, generator, mix
from ...search.loading import load_for_pretraining
from ..rendering.panels import draw_panels


GOLDEN = 0.618033988749895  # multiples of it, modulo 1, spread hues evenly
GREY = 0.6


@dataclass(frozen=True)
class Prediction:
    """What was predicted at the masked patches.

    Args:
        accuracy: share of the masked patches whose code is the most likely one.
        loss: mean cross-entropy in nats; log of the codebook's size for a model that knows nothing.
        pixels: (3, side, side) in [0, 1], decoded from the predicted codes and, outside the mask, the true ones.
    """

    accuracy: float
    loss: float
    pixels: torch.Tensor


@dataclass(frozen=True)
class Inspection:
    """One picture through the token level.

    Args:
        image: (3, image_size, image_size) pixels in [0, 1], as the image stream sees them.
        codes: (grid, grid) int64.
        reconstruction: (3, side, side), decoded from all codes.
        mask: (grid, grid) bool, true where a patch is masked.
        predictions: by caption; the empty one always comes first.
    """

    image: torch.Tensor
    codes: torch.Tensor
    reconstruction: torch.Tensor
    mask: torch.Tensor
    predictions: dict[str, Prediction]


def load_pretrained_with_heads(model: str) -> tuple[COTSForPreTraining, COTSProcessor]:
    """A checkpoint of pre-training in evaluation mode, and its processor.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is another kind of model, a deployable one, or was trained without masked vision modelling
            or with an image tokenizer that cannot decode.
    """
    config = AutoConfig.from_pretrained(model)
    if config.model_type != "cots":
        raise ValueError(f"{model} is no COTS model but '{config.model_type}'")
    if config.mvm_weight == 0:
        raise ValueError(f"{model} was trained with mvm_weight 0: it never learned to predict masked patches")
    loaded, processor = load_for_pretraining(model)
    if not config.image_tokenizer_config.has_decoder:
        raise ValueError(f"{model} has an image tokenizer without a decoder: nothing can be shown of its codes")
    return loaded, processor


@torch.inference_mode()
def inspect_image(
    model: COTSForPreTraining, processor: COTSProcessor, image: Image.Image, caption: str | None = None, seed: int = 0
) -> Inspection:
    """Tokenize a picture, mask it as in training, and predict what is masked, with and without a caption.

    Without one the text stream gets the empty text: its global feature says nothing of the picture, and the head sees
    a feature as always.

    Args:
        model, processor: of [`load_pretrained_with_heads`].
        image: an RGB picture.
        caption: what the other stream is told.
        seed: of the mask.
    """
    grid = model.config.patch_grid
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    codes = model.image_codes(pixels)
    drawn = block_mask(generator(mix(seed), PATCH_STREAM), grid, model.config.num_masked_patches)
    mask = torch.from_numpy(drawn).to(model.device)[None]
    hidden = model.cots.encode_image(pixels, bool_masked_pos=mask).last_hidden_state
    predictions = {}
    for text in [""] if caption is None else ["", caption]:
        inputs = processor(text=[text], return_tensors="pt").to(model.device)
        features = model.cots.encode_text(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        logits = model.predict_codes(hidden, mask, features).float()
        filled = codes.clone()
        filled[mask] = logits.argmax(dim=1)
        predictions[text] = Prediction(
            accuracy=float((logits.argmax(dim=1) == codes[mask]).float().mean()),
            loss=float(F.cross_entropy(logits, codes[mask])),
            pixels=_decode(model, filled),
        )
    config = model.config
    mean, std = (pixels.new_tensor(numbers).view(3, 1, 1) for numbers in (config.image_mean, config.image_std))
    return Inspection(
        image=(pixels[0] * std + mean).clamp(0, 1).cpu(),
        codes=codes.view(grid, grid).cpu(),
        reconstruction=_decode(model, codes),
        mask=mask.view(grid, grid).cpu(),
        predictions=predictions,
    )


def _decode(model: COTSForPreTraining, codes: torch.Tensor) -> torch.Tensor:
    """Pixels (3, side, side) of one picture's codes (1, patches)."""
    grid = model.config.patch_grid
    return model.image_tokenizer.decode(codes.view(1, grid, grid))[0].float().cpu()


def code_colours(codes: torch.Tensor) -> torch.Tensor:
    """(3, grid, grid) colours in [0, 1], one to a code: equal codes are equally coloured, in all pictures."""
    hue = (codes.double() * GOLDEN % 1)[None]
    light = 0.55 + 0.45 * (codes.double() * GOLDEN**2 * 7 % 1)[None]
    wheel = (hue * 6 + torch.tensor([0.0, 4.0, 2.0], dtype=torch.double).view(3, 1, 1)) % 6
    return light * ((wheel - 3).abs() - 1).clamp(0, 1)


def draw_inspection(found: Inspection) -> Image.Image:
    """The panels of an [`Inspection`] side by side, with their names below."""
    mask = F.interpolate(found.mask[None, None].float(), found.image.shape[-2:], mode="nearest")[0]
    panels = [
        ("image", found.image),
        (f"{len(found.codes.unique())} different codes", code_colours(found.codes)),
        ("decoded from its codes", found.reconstruction),
        (f"{int(found.mask.sum())} of {found.mask.numel()} masked", found.image * (1 - mask) + GREY * mask),
    ]
    for caption, predicted in found.predictions.items():
        panels.append(
            (f"{_told(caption)}\n{predicted.accuracy:.0%} right, {predicted.loss:.2f} nats", predicted.pixels)
        )
    return draw_panels(panels)


def describe(found: Inspection) -> list[str]:
    """What an [`Inspection`] found, one line per caption."""
    return [
        f"{_told(caption)}: {predicted.accuracy:.1%} of the masked codes right, {predicted.loss:.3f} nats"
        for caption, predicted in found.predictions.items()
    ]


def _told(caption: str) -> str:
    return f'told "{caption}"' if caption else "told nothing"


def inspect_model(
    model: str, image: Image.Image, caption: str | None = None, seed: int = 0
) -> tuple[Image.Image, list[str]]:
    """All that `hf-cots inspect` shows of a model: a row of panels, and lines of text. Arguments as for
    [`inspect_image`], errors as for [`load_pretrained_with_heads`]."""
    found = inspect_image(*load_pretrained_with_heads(model), image, caption, seed)
    return draw_inspection(found), describe(found)
