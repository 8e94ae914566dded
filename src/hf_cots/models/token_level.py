"""The token level: masked patches and words, predicted with the help of the other stream's global feature.

Masked vision-language modelling (MVLM, Lu et al. 2022) has no cross-stream network:
`p(. | h_j, g) = softmax(head(h_j + A g))`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_two_tower import TwoTowerConfig
from .losses import masked_token_loss, true_positions
from .masking import draw_masks, mix
from .step import Step
from .tower_properties import describe_tower


class TokenHead(nn.Module):
    """`head(h_j + A g)`: a hidden state of one stream, informed by the global feature of the other.

    Dense, activation and LayerNorm; the classifier over codes or words is applied by the caller.

    Args:
        config (`PreTrainedConfig`): of this stream's tower, with its width, activation and epsilon, or else BERT's.
        global_size: width of the other stream's global feature.
    """

    def __init__(self, config: PreTrainedConfig, global_size: int):
        super().__init__()
        fields, width = config.to_dict(), describe_tower(config).hidden_size
        self.inject = nn.Linear(global_size, width, bias=False)
        self.dense = nn.Linear(width, width)
        self.activation = ACT2FN[fields.get("hidden_act", fields.get("activation", "gelu"))]
        self.layer_norm = nn.LayerNorm(width, eps=fields.get("layer_norm_eps", 1e-12))

    def forward(self, hidden: torch.Tensor, global_features: torch.Tensor) -> torch.Tensor:
        """(masked, hidden_size) states and the (masked, global_size) feature that belongs to each."""
        return self.layer_norm(self.activation(self.dense(hidden + self.inject(global_features))))


def token_term(
    logits: torch.Tensor,
    targets: torch.Tensor,
    masked: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    step: Step,
    masked_fraction: float,
) -> torch.Tensor:
    """`L_MVM` or `L_MLM` of a micro-batch, scalar.

    Args:
        logits: (total masked, classes), row by row.
        targets: (rows, positions) int64 codes or token ids.
        masked: (rows, positions) bool; positions: where it is true.
        rows: (rows,) int64, which pairs of the micro-batch take the masked passes, of [`masked_rows`].
        masked_fraction: how many pairs of all do, by which the sum is scaled up.
    """
    weights = step.weights / masked_fraction
    return (weights[rows] * masked_token_loss(logits, targets.flatten()[positions], masked, positions)).sum()


def masked_rows(bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Indices of the pairs that take the masked passes: those with a masked patch. If there are none, the first pair
    goes through with a loss of 0, because every parameter must take part in each rank's backward pass.

    Args:
        bool_masked_pos: (n, patches).
    """
    rows = true_positions(bool_masked_pos.any(dim=1))
    return rows if len(rows) else rows.new_zeros(min(1, len(bool_masked_pos)))


def find_masked(config: TwoTowerConfig, masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Where the masks of a batch are true. Found on the CPU, before they are moved to a GPU, it lets a training step
    use them without waiting for the GPU to count them.

    Args:
        masks: `bool_masked_pos` (n, patches) and `bool_masked_words` (n, length).

    Returns:
        `rows` (rows,) int64, the pairs that take the masked passes; `patches` and `words`, the [`true_positions`] of
        those rows' masks.
    """
    patches, words = masks["bool_masked_pos"], masks["bool_masked_words"]
    rows = torch.arange(len(patches), device=patches.device) if config.masks_every_pair else masked_rows(patches)
    return {"rows": rows, "patches": true_positions(patches[rows]), "words": true_positions(words[rows])}


def take_masked(states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states (total masked, ...) at masked positions, and the row (total masked,) int64 of each.

    Args:
        states: (n, positions, ...).
        positions: (total masked,) int64, indices of the flattened (n, positions).
    """
    rows, columns = positions // states.shape[1], positions % states.shape[1]
    return states[rows, columns], rows


def unnormalize_pixels(
    pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
) -> torch.Tensor:
    """Pixels (n, 3, height, width) in [0, 1], float32, of pixels normalized with these three means and
    deviations."""
    # Filled one by one: a tensor of a list would be copied to the device, and waited for.
    mean, std = (
        torch.stack([pixel_values.new_full((1, 1), value) for value in values]) for values in (image_mean, image_std)
    )
    return (pixel_values * std + mean).float().clamp(0, 1)


def codebook_pixels(
    pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float], side: int
) -> torch.Tensor:
    """The image tokenizer's view (n, 3, side, side) in [0, 1] of normalized pixels.

    Made from the image stream's own input, so that crop, flip and code grid are those of its patches.

    Args:
        pixel_values: (n, 3, image_size, image_size), normalized.
        image_mean, image_std: three numbers each, that they were normalized with.
        side: of the image tokenizer's input in pixels.
    """
    pixels = unnormalize_pixels(pixel_values, image_mean, image_std)
    if pixels.shape[-1] != side:
        pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    return pixels


def mask_settings(config: Any) -> dict:
    """The arguments of [`masking.draw_masks`] that a config fixes."""
    return {
        "patch_grid": config.patch_grid,
        "num_masked_patches": config.num_masked_patches if config.masks_patches else 0,
        "word_mask_ratio": config.word_mask_ratio,
        "masked_fraction": config.masked_fraction,
        "special_token_ids": config.special_token_ids,
        "mask_token_id": config.mask_token_id,
        "vocab_size": config.text_config.vocab_size,
        "min_block": config.min_block_patches,
    }


def draw_masks_by_index(
    config: TwoTowerConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pair_index: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Masks for a batch that brought none, from each pair's index in the run: a resumed run draws the same."""
    words = None if attention_mask is None else attention_mask.cpu().numpy()
    seeds = [mix(index) for index in pair_index.tolist()]
    masks = draw_masks(seeds, input_ids.cpu().numpy(), words, **mask_settings(config))
    return {name: torch.from_numpy(mask).to(input_ids.device) for name, mask in masks.items()}
