"""From the features of a clip's frames to one of the clip, and which frames need to be encoded at all."""

import math

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from .losses import full_precision


WAVES = 8  # cosines that tell the positions of frames apart: all of up to 8 frames, and of more in rough


def mean_of_frames(features: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """The mean (n, width) of the features (n, frames, width) of frames that there are.

    Args:
        frame_mask: (n, frames) bool, false where there is none.
    """
    weights = frame_mask.unsqueeze(-1).to(features.dtype)
    return (features * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def frame_waves(frame_mask: torch.Tensor) -> torch.Tensor:
    """`cos(pi k t)` for k = 1, ..., [`WAVES`] of each frame's position t in its clip, from 0 to 1; (n, frames, WAVES)
    float32. Positions are relative: a clip of 12 frames is read as one of 8."""
    mask = full_precision(frame_mask.to(torch.float32))
    position = (mask.cumsum(dim=1) - 0.5) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    waves = torch.arange(1, WAVES + 1, device=mask.device)
    return torch.cos(math.pi * waves * position.unsqueeze(-1))


class FrameAttention(nn.Module):
    """The mean of a clip's frames, plus what a learned query finds in them:

        g = mean_i x_i + W_o softmax_i(q . W_k z_i / sqrt(d)) W_v z_i,    z_i = LayerNorm(x_i) + W_p cos(pi k t_i)

    in 8 heads (or as many as divide the width) [D]. W_o is 0 at first, so that training begins with exactly the mean.
    Neither a mean nor attention by content alone can see the order of frames, which tells opening from closing;
    so positions t_i of the frames, from 0 to 1, are added. W_p is 0 at first too: order counts where it helps.

    Args:
        width: of the features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.heads = math.gcd(width, 8)
        self.norm = nn.LayerNorm(width)
        self.position = nn.Linear(WAVES, width, bias=False)
        self.query = nn.Parameter(torch.zeros(width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, features: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """(n, width) of features (n, frames, width), where `frame_mask` (n, frames) is true."""
        waves = frame_waves(frame_mask).to(features.dtype)
        placed = self.norm(features) + self.position(waves)
        keys, values = (
            layer(placed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, frames, width / heads)
            for layer in (self.key, self.value)
        )
        query = self.query.view(1, self.heads, 1, -1).expand(len(features), -1, -1, -1)
        found = scaled_dot_product_attention(query, keys, values, attn_mask=frame_mask[:, None, None])
        return mean_of_frames(features, frame_mask) + self.output(found.flatten(1))


def find_distinct(pixel_values_videos: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frames must be encoded, if one that equals the one before it need not be.

    Args:
        pixel_values_videos: (n, frames, ...).
        frame_mask: (n, frames) bool.

    Returns:
        (n, frames) bool, true for those; and (n * frames,) int64, for each frame its number among those.
    """
    distinct = frame_mask.clone()
    same = (pixel_values_videos[:, 1:] == pixel_values_videos[:, :-1]).flatten(2).all(dim=2)
    distinct[:, 1:] &= ~(same & frame_mask[:, :-1])
    return distinct, (distinct.flatten().cumsum(dim=0) - 1).clamp(min=0)


__all__ = ["FrameAttention", "find_distinct", "mean_of_frames"]
