"""Configuration of the image tokenizer, a discrete VAE in DALL-E's shape (Ramesh et al. 2021, appendix A)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class COTSImageTokenizerConfig(PreTrainedConfig):
    """Configuration of [`COTSImageTokenizer`]. The defaults are DALL-E's published encoder and decoder.

    Args:
        image_size (`int`, defaults to 192): side of the square input in pixels; a multiple of `downsampling`.
        num_channels (`int`, defaults to 3): color channels.
        codebook_size (`int`, defaults to 8192): number of discrete codes.
        hidden_size (`int`, defaults to 256): width of the first encoder group; group g is 2^g times as wide.
        decoder_input_size (`int`, defaults to 128): width to which the codes are embedded before decoding.
        num_groups (`int`, defaults to 4): groups of residual blocks; the resolution halves between groups.
        blocks_per_group (`int`, defaults to 2): residual blocks in a group.
        has_decoder (`bool`, defaults to `True`): whether the model has a decoder; without it, it can only tokenize.
        reconstruction (`"l2"` or `"logit_laplace"`, default `"l2"`): reconstruction loss: the squared error of pixels,
            or DALL-E's logit-Laplace likelihood in nats (appendix A.3), which also trains the decoder's log scales.
        gumbel_temperature (`float`, defaults to 1.0): temperature of the Gumbel-softmax relaxation in training.
        kl_weight (`float`, defaults to 0.01): weight of the KL divergence from the code distribution to the uniform
            one, in nats per code position, beside a reconstruction loss per pixel and channel. The default is our own
            choice for `"l2"`; DALL-E's, for its likelihood, is 6.6 / 192 = 0.034375.
    """

    model_type = "cots_image_tokenizer"
    base_config_key = "image_tokenizer_config"

    image_size: int = 192
    num_channels: int = 3
    codebook_size: int = 8192
    hidden_size: int = 256
    decoder_input_size: int = 128
    num_groups: int = 4
    blocks_per_group: int = 2
    has_decoder: bool = True
    reconstruction: Literal["l2", "logit_laplace"] = "l2"
    gumbel_temperature: float | int = 1.0
    kl_weight: float | int = 0.01

    @property
    def downsampling(self) -> int:
        """Pixels per code along one side, 2^(num_groups - 1)."""
        return 2 ** (self.num_groups - 1)

    @property
    def grid_size(self) -> int:
        """Codes along one side of an `image_size` input."""
        return self.image_size // self.downsampling

    def check_same_sizes(self, given: "COTSImageTokenizerConfig") -> None:
        """Whether weights of a model of the `given` config fit one of this config.

        Raises:
            ValueError: naming the size that differs.
        """
        sizes = ("codebook_size", "hidden_size", "num_groups", "blocks_per_group", "decoder_input_size", "has_decoder")
        for name in sizes:
            if getattr(self, name) != getattr(given, name):
                raise ValueError(
                    f"the image tokenizer has {name}={getattr(given, name)}, but the config has {getattr(self, name)}"
                )

    def validate_sizes(self):
        """Part of the strict validation: sizes that cannot be built are refused by name."""
        for name in ("num_channels", "codebook_size", "decoder_input_size", "num_groups", "blocks_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size < 4:
            raise ValueError(
                f"hidden_size must be at least 4, the width of a residual bottleneck; got {self.hidden_size}"
            )
        if self.image_size < 1 or self.image_size % self.downsampling:
            raise ValueError(
                f"image_size={self.image_size} of the image tokenizer is not a positive multiple of "
                f"{self.downsampling}, the downsampling of its num_groups={self.num_groups}"
            )
