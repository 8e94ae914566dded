"""Masked patches in image towers that have no mask token of their own: the convolution that makes patch embeddings
puts one in their place, before positions are added, as ViT does.

Which patches are masked travels with the pixels, as one more channel. Nothing is kept from one call to the next: a
forward pass that is computed again (activation checkpointing) masks the same patches.
"""

from typing import Any

import torch
from torch import nn


class MaskablePatches(nn.Conv2d):
    """A convolution that makes patch embeddings, with a mask token that takes the place of those that are masked.

    Its input may have one channel more than it convolves: above 0.5 all over each patch that is masked.
    """

    mask_token: nn.Parameter  # (out_channels,)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) -> (n, out_channels, rows, columns)."""
        if input.shape[1] == self.in_channels:
            return super().forward(input)
        embeddings = super().forward(input[:, : self.in_channels])
        rows, columns = embeddings.shape[2:]
        masked = input[:, self.in_channels :, :: self.stride[0], :: self.stride[1]][:, :, :rows, :columns] > 0.5
        return torch.where(masked, self.mask_token.to(embeddings.dtype)[None, :, None, None], embeddings)


def add_mask_token(tower: nn.Module, convolution: str) -> None:
    """Give a tower a mask token, of zeros like ViT's, and let its forward take `bool_masked_pos` (n, patches).

    Args:
        convolution: the name of the module that makes its patch embeddings.
    """
    patches: Any = tower.get_submodule(convolution)
    patches.__class__ = MaskablePatches
    patches.mask_token = nn.Parameter(patches.weight.new_zeros(patches.out_channels))
    tower.register_forward_pre_hook(mark_masked_patches, with_kwargs=True)


def mark_masked_patches(tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Turn the argument `bool_masked_pos` of a tower's forward into the channel that [`MaskablePatches`] reads."""
    kwargs = dict(kwargs)
    masked = kwargs.pop("bool_masked_pos", None)
    if masked is not None:
        pixels = kwargs["pixel_values"]
        patches = next(module for module in tower.modules() if isinstance(module, MaskablePatches))
        rows, columns = (side // stride for side, stride in zip(pixels.shape[2:], patches.stride, strict=True))
        grid = masked.reshape(-1, 1, rows, columns).to(pixels.dtype)
        channel = nn.functional.interpolate(grid, pixels.shape[2:], mode="nearest")
        kwargs["pixel_values"] = torch.cat([pixels, channel], dim=1)
    return args, kwargs


__all__ = ["MaskablePatches", "add_mask_token", "mark_masked_patches"]
