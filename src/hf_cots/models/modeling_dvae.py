"""The image tokenizer: a discrete VAE in DALL-E's shape (Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation").

The encoder turns an image into a grid of codes, one per 8 x 8 pixels; the decoder turns codes back into pixels. COTS
predicts the codes of masked patches (masked vision modelling); only the encoder's argmax is needed for that.
"""

import itertools
import math
import shutil
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_dvae import COTSImageTokenizerConfig


LOGIT_LAPLACE_EPS = 0.1


def map_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Map pixels in [0, 1] into [0.1, 0.9], the range that the tokenizer reads and writes: x -> 0.8 x + 0.1."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * pixels + LOGIT_LAPLACE_EPS


def unmap_pixels(mapped: torch.Tensor) -> torch.Tensor:
    """The inverse of [`map_pixels`], clamped to [0, 1]."""
    return ((mapped - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)).clamp(0, 1)


class ResidualBlock(nn.Module):
    """`x + gain * f(x)` with a bottleneck of a quarter of the output width; `gain` is 1 / (number of blocks)^2.

    Args:
        in_size, out_size: channels in and out.
        gain: weight of the residual path.
        kernel_sizes: of its four convolutions; (3, 3, 3, 1) in the encoder, (1, 3, 3, 3) in the decoder.
    """

    def __init__(self, in_size: int, out_size: int, gain: float, kernel_sizes: tuple[int, int, int, int]):
        super().__init__()
        bottleneck = out_size // 4
        widths = [in_size, bottleneck, bottleneck, bottleneck, out_size]
        self.gain = gain
        self.shortcut = nn.Conv2d(in_size, out_size, 1) if in_size != out_size else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2) for i, kernel in enumerate(kernel_sizes)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = hidden
        for conv in self.convs:
            residual = conv(F.relu(residual))
        return self.shortcut(hidden) + self.gain * residual


class DVAEEncoder(nn.Module):
    """Pixels (batch, channels, side, side) to code logits (batch, codebook_size, grid, grid)."""

    def __init__(self, config: COTSImageTokenizerConfig):
        super().__init__()
        gain = 1 / (config.num_groups * config.blocks_per_group) ** 2
        self.stem = nn.Conv2d(config.num_channels, config.hidden_size, 7, padding=3)
        self.groups = nn.ModuleList()
        width = config.hidden_size
        for group in range(config.num_groups):
            out_size = config.hidden_size * 2**group
            sizes = [width] + [out_size] * config.blocks_per_group
            self.groups.append(
                nn.Sequential(*(ResidualBlock(a, b, gain, (3, 3, 3, 1)) for a, b in itertools.pairwise(sizes)))
            )
            width = out_size
        self.head = nn.Conv2d(width, config.codebook_size, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(pixel_values)
        for index, group in enumerate(self.groups):
            hidden = group(F.max_pool2d(hidden, 2) if index else hidden)
        return self.head(F.relu(hidden))


class DVAEDecoder(nn.Module):
    """Code weights (batch, codebook_size, grid, grid) to (batch, 2 * channels, side, side): DALL-E's decoder gives a
    location and a log scale per channel; the location's sigmoid is the mapped pixel."""

    def __init__(self, config: COTSImageTokenizerConfig):
        super().__init__()
        gain = 1 / (config.num_groups * config.blocks_per_group) ** 2
        self.stem = nn.Conv2d(config.codebook_size, config.decoder_input_size, 1)
        self.groups = nn.ModuleList()
        width = config.decoder_input_size
        for group in reversed(range(config.num_groups)):
            out_size = config.hidden_size * 2**group
            sizes = [width] + [out_size] * config.blocks_per_group
            self.groups.append(
                nn.Sequential(*(ResidualBlock(a, b, gain, (1, 3, 3, 3)) for a, b in itertools.pairwise(sizes)))
            )
            width = out_size
        self.head = nn.Conv2d(width, 2 * config.num_channels, 1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(codes)
        for index, group in enumerate(self.groups):
            hidden = group(F.interpolate(hidden, scale_factor=2, mode="nearest") if index else hidden)
        return self.head(F.relu(hidden))


@dataclass
class COTSImageTokenizerOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, scalar): `reconstruction_loss + kl_weight * kl`.
        reconstruction_loss (`torch.FloatTensor`, scalar): mean squared error of the mapped pixels.
        kl (`torch.FloatTensor`, scalar): KL(q(code | image) || uniform), mean over code positions, in nats.
        reconstruction (`torch.FloatTensor` of shape `(batch, channels, side, side)`): pixels in [0, 1].
        logits (`torch.FloatTensor` of shape `(batch, codebook_size, grid, grid)`): the encoder's code logits.
    """

    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class COTSImageTokenizer(PreTrainedModel):
    """A discrete VAE: `get_codebook_indices` to tokenize, `decode` to see what the codes keep, `forward` to train.

    All pixels in and out lie in [0, 1]; the mapping to [0.1, 0.9] is done inside.
    """

    config: COTSImageTokenizerConfig
    config_class = COTSImageTokenizerConfig
    base_model_prefix = "image_tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    # It has no attention: whichever implementation is asked of a model that holds it suits it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: COTSImageTokenizerConfig):
        super().__init__(config)
        self.encoder = DVAEEncoder(config)
        self.decoder = DVAEDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Normal weights of standard deviation 1/sqrt(fan in), zero biases, as in DALL-E's public code."""
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            init.normal_(module.weight, mean=0.0, std=1 / math.sqrt(fan_in))
            init.zeros_(module.bias)

    def save_pretrained(self, save_directory, **kwargs):
        """Save weights, config and this class's code, so that `AutoModel` loads it without the package.

        `register_for_auto_class` cannot be used here: it takes any class with "Tokenizer" in its name for a text
        tokenizer and writes a pair of names, which `AutoModel` does not read.
        """
        self.config.auto_map = {
            "AutoConfig": "configuration_dvae.COTSImageTokenizerConfig",
            "AutoModel": "modeling_dvae.COTSImageTokenizer",
        }
        super().save_pretrained(save_directory, **kwargs)
        for defined in (type(self), type(self.config)):
            shutil.copy(sys.modules[defined.__module__].__file__, save_directory)

    def get_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Code logits (batch, codebook_size, grid, grid) of pixels (batch, channels, side, side) in [0, 1].

        Raises:
            ValueError: if the side is no multiple of the downsampling or the channels are wrong.
        """
        channels, height, width = pixel_values.shape[1:]
        factor = self.config.downsampling
        if channels != self.config.num_channels or height % factor or width % factor:
            raise ValueError(
                f"the image tokenizer takes {self.config.num_channels} channels and sides that are multiples of "
                f"{factor}; got pixel_values of shape {tuple(pixel_values.shape)}"
            )
        return self.encoder(map_pixels(pixel_values).to(self.encoder.stem.weight.dtype))

    def get_codebook_indices(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Codes (batch, grid, grid), int64 below codebook_size, of pixels (batch, channels, side, side) in [0, 1]."""
        return self.get_logits(pixel_values).argmax(dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels (batch, channels, side, side) in [0, 1] of codes (batch, grid, grid)."""
        one_hot = F.one_hot(codes, self.config.codebook_size).movedim(-1, 1).to(self.decoder.stem.weight.dtype)
        return unmap_pixels(self._decode_mapped(one_hot))

    def _decode_mapped(self, code_weights: torch.Tensor) -> torch.Tensor:
        location, _log_scale = self.decoder(code_weights).chunk(2, dim=1)
        return location.sigmoid()

    def forward(self, pixel_values: torch.Tensor) -> COTSImageTokenizerOutput:
        """Encode, relax with Gumbel-softmax (hard codes outside training), decode, and compare.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, side, side)`): in [0, 1].
        """
        logits = self.get_logits(pixel_values)
        codes = F.gumbel_softmax(logits.float(), tau=self.config.gumbel_temperature, dim=1) if self.training else None
        if codes is None:
            codes = F.one_hot(logits.argmax(dim=1), self.config.codebook_size).movedim(-1, 1)
        mapped = self._decode_mapped(codes.to(logits.dtype))
        reconstruction_loss = F.mse_loss(mapped.float(), map_pixels(pixel_values).float())
        log_q = logits.float().log_softmax(dim=1)
        kl = (log_q.exp() * (log_q + math.log(self.config.codebook_size))).sum(dim=1).mean()
        return COTSImageTokenizerOutput(
            loss=reconstruction_loss + self.config.kl_weight * kl,
            reconstruction_loss=reconstruction_loss,
            kl=kl,
            reconstruction=unmap_pixels(mapped),
            logits=logits,
        )


__all__ = ["COTSImageTokenizer", "COTSImageTokenizerOutput", "map_pixels", "unmap_pixels"]
