"""Show what the token level of a COTS model has learned: predict the masked patches of an image and decode them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoConfig

from ...models import COTSForPreTraining, COTSProcessor
from ...models.masking import RandomStream, block_mask, generator, mix
from ...models.token_level import unnormalize_pixels
from ...search.loading import NO_REMOTE_CODE, hub_options, load_for_pretraining, named_errors


GOLDEN = 0.618033988749895  # multiples of it, modulo 1, spread hues evenly
GRAY = 0.6


@dataclass(frozen=True)
class Prediction:
    """The prediction for the masked patches.

    Args:
        accuracy: fraction of the masked patches whose most likely code is the true one.
        loss: mean cross-entropy in nats; the log of the codebook size for uniform predictions.
        pixels: (3, side, side) in [0, 1], decoded from the predicted codes and, outside the mask, the true ones.
    """

    accuracy: float
    loss: float
    pixels: torch.Tensor


@dataclass(frozen=True)
class COTSInspection:
    """The codes, mask and predictions of one image.

    Args:
        image: (3, image_size, image_size) pixels in [0, 1], as the image tower sees them.
        codes: (grid, grid) int64.
        reconstruction: (3, side, side), decoded from all codes.
        mask: (grid, grid) bool, true where a patch is masked.
        predictions: predictions by caption; the empty one always comes first.
    """

    image: torch.Tensor
    codes: torch.Tensor
    reconstruction: torch.Tensor
    mask: torch.Tensor
    predictions: dict[str, Prediction]

    def panels(self) -> list[tuple[str, torch.Tensor]]:
        """Return titles and pixels for [`draw_panels`]."""
        mask = F.interpolate(self.mask[None, None].float(), self.image.shape[-2:], mode="nearest")[0]
        return [
            ("image", self.image),
            (f"{len(self.codes.unique())} different codes", color_codes(self.codes)),
            ("decoded from its codes", self.reconstruction),
            (f"{int(self.mask.sum())} of {self.mask.numel()} masked", self.image * (1 - mask) + GRAY * mask),
            *(
                (f"{_title(caption)}\n{predicted.accuracy:.0%} right, {predicted.loss:.2f} nats", predicted.pixels)
                for caption, predicted in self.predictions.items()
            ),
        ]

    def lines(self) -> list[str]:
        """Return one line per caption, for the terminal."""
        return [
            f"{_title(caption)}: {predicted.accuracy:.1%} of the masked codes right, {predicted.loss:.3f} nats"
            for caption, predicted in self.predictions.items()
        ]


def _title(caption: str) -> str:
    return f'with caption "{caption}"' if caption else "without caption"


def color_codes(codes: torch.Tensor) -> torch.Tensor:
    """Assign each code a color, the same in all images; returns (3, grid, grid) in [0, 1]."""
    hue = (codes.double() * GOLDEN % 1)[None]
    light = 0.55 + 0.45 * (codes.double() * GOLDEN**2 * 7 % 1)[None]
    wheel = (hue * 6 + torch.tensor([0.0, 4.0, 2.0], dtype=torch.double).view(3, 1, 1)) % 6
    return light * ((wheel - 3).abs() - 1).clamp(0, 1)


def load_with_token_heads(model: str, revision: str | None = None) -> tuple[COTSForPreTraining, COTSProcessor]:
    """Load a checkpoint of pre-training in evaluation mode, and its processor, as [`load_for_pretraining`] does.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is another kind of model, a deployable one, or was trained without masked vision modeling
            or with an image tokenizer that cannot decode.
    """
    with named_errors(model):
        config = AutoConfig.from_pretrained(model, **NO_REMOTE_CODE, **hub_options(revision))
    if config.model_type != "cots":
        raise ValueError(f"{model} is not a COTS model: its model_type is '{config.model_type}'")
    if config.mvm_weight == 0:
        raise ValueError(f"{model} was trained with mvm_weight=0 and cannot predict masked patches")
    loaded, processor = load_for_pretraining(model, revision=revision)
    if not config.image_tokenizer_config.has_decoder:
        raise ValueError(f"the image tokenizer of {model} has no decoder, which is needed to show its codes")
    return loaded, processor


@torch.no_grad()
def inspect_image(
    model: COTSForPreTraining, processor: COTSProcessor, image: Image.Image, caption: str | None = None, seed: int = 0
) -> COTSInspection:
    """Tokenize an image, mask it as in training, and predict the masked patches with and without a caption.

    Without a caption the text tower gets the empty text, so that the head gets a global text feature as in training,
    but one without information about the image.

    Args:
        model, processor: from [`load_with_token_heads`].
        image: an RGB image.
        caption: input of the text tower.
        seed: random seed of the mask.
    """
    config, grid = model.config, model.config.patch_grid
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    codes = model.image_codes(pixels)  # (1, patches)
    drawn = block_mask(generator(mix(seed), RandomStream.PATCH_MASK), grid, config.num_masked_patches)
    mask = torch.from_numpy(drawn).to(model.device)[None]  # (1, patches)
    hidden = model.cots.encode_image(pixels, bool_masked_pos=mask).last_hidden_state
    predictions = {}
    for text in [""] if caption is None else ["", caption]:
        inputs = processor(text=[text], return_tensors="pt").to(model.device)
        features = model.cots.encode_text(inputs["input_ids"], inputs.get("attention_mask")).pooler_output
        logits = model.predict_codes(hidden, mask, features).float()  # (masked, codes)
        filled = codes.clone()
        filled[mask] = logits.argmax(dim=1)
        predictions[text] = Prediction(
            accuracy=float((logits.argmax(dim=1) == codes[mask]).float().mean()),
            loss=float(F.cross_entropy(logits, codes[mask])),
            pixels=_decode(model, filled),
        )
    return COTSInspection(
        image=unnormalize_pixels(pixels, config.image_mean, config.image_std)[0].cpu(),
        codes=codes.view(grid, grid).cpu(),
        reconstruction=_decode(model, codes),
        mask=mask.view(grid, grid).cpu(),
        predictions=predictions,
    )


def _decode(model: COTSForPreTraining, codes: torch.Tensor) -> torch.Tensor:
    """Decode the codes (1, patches) of one image to pixels (3, side, side)."""
    grid = model.config.patch_grid
    return model.image_tokenizer.decode(codes.view(1, grid, grid))[0].float().cpu()
