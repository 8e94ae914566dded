"""Configuration of SIMLA (Khan et al., ECCV 2022, arXiv 2203.14395)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_dvae import COTSImageTokenizerConfig


@strict
class SimlaConfig(PreTrainedConfig):
    """Everything that [`SimlaModel`] and [`SimlaForPreTraining`] need to know. The defaults are the authors' model.

    Each line says where its default comes from: [C] the authors' code and checkpoints, [P] their paper, [D] decided by
    us.

    Stream
        vision_config (`PreTrainedConfig` or `dict`, defaults to ViT-B/16 at 256 pixels, epsilon 1e-6 [C]).
        text_config (`PreTrainedConfig` or `dict`, defaults to BERT-base [C]): sizes of the stack that reads text alone
            (`get_text_features`) or text and image (`match`). It has no token types, whatever the config says.
        image_tokenizer_config (`COTSImageTokenizerConfig` or `dict`, defaults to DALL-E's at 128 pixels): one code for
            each of 16 x 16 patches.
        projection_dim (`int`, defaults to 256 [C]): width of the joint space.
        image_mean, image_std (`list[float]`, default CLIP's [C]): normalisation of `pixel_values`.
        special_token_ids (`list[int]`, defaults to BERT's): token ids that are never masked and never keywords.
        mask_token_id (`int`, defaults to 103, BERT's): the token that stands for a masked word.

    Momentum distillation
        momentum (`float`, defaults to 0.995 [C]): weight of the old value in the momentum update.
        distillation_weight (`float`, defaults to 0.4 [C]): share of the momentum twin's predictions in the targets.
        distillation_warmup_steps (`int`, defaults to 7,812 [C]): optimizer steps over which that share rises from 0;
            the default is one epoch of the paper's 4M pairs in batches of 512.
        temperature (`float`, defaults to 0.07 [C]): where the learned temperature begins.
        min_temperature, max_temperature (`float`, default 0.001 and 0.5 [C]): its bounds.
        queue_size (`int`, defaults to 65,536 [C]): slots of the queues.

    Matching
        hard_negative_warmup_steps (`int`, defaults to 0 [D]): optimizer steps over which ITM's negatives rise from any
            of the batch to those that ITC finds alike, which the authors draw from the start. Where ITC learns much
            faster than the judge, as in runs of a few thousand steps, the judge needs the easy ones first.

    Masked modelling and keywords
        num_masked_patches (`int`, defaults to 75 [C]) and min_block_patches (`int`, defaults to 16 [C]): of BEiT's
            block masks.
        word_mask_ratio (`float`, defaults to 0.15 [C]).
        num_keywords (`int`, defaults to 5 [C]): pseudo-labels of a pair; votes_per_head (`int`, defaults to 4 [C]):
            positions for which each attention head votes.

    Total
        mlm_weight, mim_weight, psl_weight (`float`, default 1 [C]): of the terms beside ITC and ITM, whose weight is
            1. A term of weight 0 is not computed, and its parameters do not exist: with all three 0 this is the
            authors' retrieval model.
        initializer_range (`float`, defaults to 0.02 [C]): standard deviation of new linear layers.
        match_original_code (`bool`, defaults to `False` [D]): do as the authors' code does where we mend a slip. Then
            captions of one picture are negatives of each other, the softmax of masked words' distillation runs over
            the text and not the vocabulary, codes of masked patches come from another crop than the patches, and
            special tokens and padding can become keywords.

    Raises:
        ValueError (or huggingface_hub's `StrictDataclass...Error` around it): if fields contradict one another.
    """

    model_type = "simla"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="vit", init_kwargs={"image_size": 256, "layer_norm_eps": 1e-6}
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "image_tokenizer_config": SubConfigSpec(
            config_class=COTSImageTokenizerConfig, init_kwargs={"image_size": 128}
        ),
    }
    keys_to_ignore_at_inference = ["image_embeds", "text_embeds"]
    # Which weight asks for an image tokenizer, and when the step's own keys enter the queue: after its losses.
    tokenizer_loss = "mim_weight"
    enqueue_before_loss = False
    contrast = "momentum"
    # Each pair takes the masked passes.
    masked_fraction = 1.0

    vision_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    image_tokenizer_config: COTSImageTokenizerConfig | dict | None = None
    projection_dim: int = 256
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    special_token_ids: list[int] | tuple[int, ...] = (0, 100, 101, 102, 103)
    mask_token_id: int = 103

    momentum: float | int = 0.995
    distillation_weight: float | int = 0.4
    distillation_warmup_steps: int = 7_812
    temperature: float | int = 0.07
    min_temperature: float | int = 0.001
    max_temperature: float | int = 0.5
    queue_size: int = 65_536

    hard_negative_warmup_steps: int = 0

    num_masked_patches: int = 75
    min_block_patches: int = 16
    word_mask_ratio: float | int = 0.15
    num_keywords: int = 5
    votes_per_head: int = 4

    mlm_weight: float | int = 1.0
    mim_weight: float | int = 1.0
    psl_weight: float | int = 1.0
    initializer_range: float = 0.02
    match_original_code: bool = False

    @property
    def patch_grid(self) -> int:
        """Patches along one side of the image encoder's input."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def uses_masks(self) -> bool:
        """Whether a step masks patches and words."""
        return self.mim_weight > 0 or self.mlm_weight > 0

    @property
    def masks_patches(self) -> bool:
        """Whether it masks patches: their number need not fit the image where it does not."""
        return self.mim_weight > 0

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return {"itc": 1.0, "itm": 1.0, "mlm": self.mlm_weight, "mim": self.mim_weight, "psl": self.psl_weight}

    def validate_image_grid(self):
        """Part of the strict validation: patches tile the image, and masked modelling has its codes and positions."""
        image_size, patch_size = self.vision_config.image_size, self.vision_config.patch_size
        for name, size in (("image_size", image_size), ("patch_size", patch_size)):
            if not isinstance(size, int):
                raise ValueError(f"vision_config.{name} must be one whole number (square images), got {size}")
        if image_size % patch_size:
            raise ValueError(f"vision_config.image_size={image_size} is not divisible by patch_size={patch_size}")
        if self.mim_weight == 0:
            return
        patches, codes = self.patch_grid**2, self.image_tokenizer_config.grid_size
        if codes != self.patch_grid:
            raise ValueError(
                f"the image tokenizer gives a grid of {codes} x {codes} codes but the image encoder has "
                f"{self.patch_grid} x {self.patch_grid} patches; set image_tokenizer_config.image_size to "
                f"{self.patch_grid * self.image_tokenizer_config.downsampling}"
            )
        if not 1 <= self.min_block_patches <= self.num_masked_patches <= patches:
            raise ValueError(
                f"of {patches} patches num_masked_patches={self.num_masked_patches} cannot be masked in blocks of at "
                f"least min_block_patches={self.min_block_patches}"
            )
        if patches >= self.text_config.max_position_embeddings:
            raise ValueError(
                f"masked image modelling puts {patches} patches and a first token on text_config."
                f"max_position_embeddings={self.text_config.max_position_embeddings} positions; set mim_weight=0"
            )

    def validate_widths(self):
        """Part of the strict validation: one stream has one width, and heads that divide it."""
        vision, text = self.vision_config.hidden_size, self.text_config.hidden_size
        if vision != text:
            raise ValueError(f"a single stream has one width: vision_config has {vision}, text_config {text}")
        if text % self.text_config.num_attention_heads:
            raise ValueError(f"width {text} is not divisible by {self.text_config.num_attention_heads} heads")

    def validate_ranges(self):
        """Part of the strict validation: each number within the range in which its formula means something."""
        for name in ("projection_dim", "queue_size", "num_keywords", "votes_per_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "mlm_weight",
            "mim_weight",
            "psl_weight",
            "distillation_warmup_steps",
            "hard_negative_warmup_steps",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.word_mask_ratio <= 1:
            raise ValueError(f"word_mask_ratio must lie in (0, 1], got {self.word_mask_ratio}")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight must lie in [0, 1], got {self.distillation_weight}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 < self.min_temperature <= self.temperature <= self.max_temperature:
            raise ValueError(
                f"temperature={self.temperature} must lie within the bounds min_temperature={self.min_temperature} "
                f"and max_temperature={self.max_temperature}, all positive"
            )
        if not len(self.image_mean) == len(self.image_std) == 3 or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean and image_std need three entries each, image_std positive; got "
                f"{self.image_mean}, {self.image_std}"
            )


__all__ = ["SimlaConfig"]
