"""The image tokenizer: a discrete VAE in DALL-E's shape (Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation").

The encoder turns an image into a grid of codes, one per 8 x 8 pixels; the decoder turns codes back into pixels. COTS
predicts the codes of masked patches (masked vision modelling); only the encoder's argmax is needed for that.
"""

import itertools
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .cards import WithCard
from .configuration_dvae import COTSImageTokenizerConfig
from .model_files import give_default_mode, named_damage


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
        # As in DALL-E's public code, the logits are whole even where autocast halves the rest: of thousands of them,
        # several would round to the same greatest number.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(F.relu(hidden).to(self.head.weight.dtype))


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
        reconstruction_loss (`torch.FloatTensor`, scalar): mean over pixels and channels of the squared error of the
            mapped pixels, or of their negative log likelihood in nats: see `config.reconstruction`.
        kl (`torch.FloatTensor`, scalar): KL(q(code | image) || uniform), mean over code positions, in nats.
        reconstruction (`torch.FloatTensor` of shape `(batch, channels, side, side)`): pixels in [0, 1].
        logits (`torch.FloatTensor` of shape `(batch, codebook_size, grid, grid)`): the encoder's code logits.
    """

    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


def logit_laplace_nll(location: torch.Tensor, log_scale: torch.Tensor, mapped: torch.Tensor) -> torch.Tensor:
    """Negative log density in nats of pixels in (0, 1) whose logits are Laplace distributed (Ramesh et al. 2021, A.3).

    `|logit(x) - mu| / b + ln(2 b x (1 - x))`, element by element.

    Args:
        location, log_scale: mu and ln b, of any one shape.
        mapped: pixels x of [`map_pixels`], of the same shape.
    """
    return (mapped.logit() - location).abs() * (-log_scale).exp() + (2 * mapped * (1 - mapped)).log() + log_scale


class COTSImageTokenizer(WithCard, PreTrainedModel):
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
        self.decoder = DVAEDecoder(config) if config.has_decoder else None
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
        for defined in (type(self), type(self.config), WithCard, give_default_mode):
            shutil.copy(sys.modules[defined.__module__].__file__, save_directory)
        give_default_mode(*Path(save_directory).glob("model*.safetensors"))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers.

        Raises:
            OSError: naming the file, if one is damaged or a git-lfs pointer.
        """
        with named_damage(args[0] if args else ""):
            return super().from_pretrained(*args, **kwargs)

    def get_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Code logits (batch, codebook_size, grid, grid) of pixels (batch, channels, side, side) in [0, 1].

        Raises:
            ValueError: if the side is no multiple of the downsampling or the channels are wrong.
        """
        channels, height, width = pixel_values.shape[1:]
        factor = self.config.downsampling
        if channels != self.config.num_channels or height % factor or width % factor:
            raise ValueError(
                f"the image tokenizer needs {self.config.num_channels} channels and sides that are multiples of "
                f"{factor}; got pixel_values of shape {tuple(pixel_values.shape)}"
            )
        return self.encoder(map_pixels(pixel_values).to(self.encoder.stem.weight.dtype))

    def get_codebook_indices(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Codes (batch, grid, grid), int64 below codebook_size, of pixels (batch, channels, side, side) in [0, 1]."""
        return self.get_logits(pixel_values).argmax(dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels (batch, channels, side, side) in [0, 1] of codes (batch, grid, grid).

        Raises:
            ValueError: if the model has no decoder.
        """
        location, _log_scale = self._decode(F.one_hot(codes, self.config.codebook_size).movedim(-1, 1))
        return unmap_pixels(location.sigmoid())

    def _decode(self, code_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Location and log scale (batch, channels, side, side) of the mapped pixels' logits."""
        if self.decoder is None:
            raise ValueError("this image tokenizer has no decoder: it can encode images, but not decode codes")
        location, log_scale = self.decoder(code_weights.to(self.decoder.stem.weight.dtype)).chunk(2, dim=1)
        return location, log_scale

    def forward(
        self, pixel_values: torch.Tensor, temperature: float | None = None, kl_weight: float | None = None
    ) -> COTSImageTokenizerOutput:
        """Encode, relax with Gumbel-softmax (hard codes outside training), decode, and compare.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, side, side)`): in [0, 1].
            temperature, kl_weight (`float`): where a schedule has brought them; by default
                `config.gumbel_temperature` and `config.kl_weight`.

        Raises:
            ValueError: if shapes do not fit, or the model has no decoder.
        """
        temperature = self.config.gumbel_temperature if temperature is None else temperature
        kl_weight = self.config.kl_weight if kl_weight is None else kl_weight
        logits = self.get_logits(pixel_values)
        if self.training:
            codes = F.gumbel_softmax(logits.float(), tau=temperature, dim=1).to(logits.dtype)
        else:
            codes = F.one_hot(logits.argmax(dim=1), self.config.codebook_size).movedim(-1, 1)
        location, log_scale = self._decode(codes)
        mapped, wanted = location.sigmoid(), map_pixels(pixel_values).float()
        if self.config.reconstruction == "l2":
            reconstruction_loss = F.mse_loss(mapped.float(), wanted)
        else:
            reconstruction_loss = logit_laplace_nll(location.float(), log_scale.float(), wanted).mean()
        log_q = logits.float().log_softmax(dim=1)
        kl = (log_q.exp() * (log_q + math.log(self.config.codebook_size))).sum(dim=1).mean()
        return COTSImageTokenizerOutput(
            loss=reconstruction_loss + kl_weight * kl,
            reconstruction_loss=reconstruction_loss,
            kl=kl,
            reconstruction=unmap_pixels(mapped),
            logits=logits,
        )
