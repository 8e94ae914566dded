"""Configuration of SIMLA (Khan et al., ECCV 2022, arXiv 2203.14395)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_dvae import COTSImageTokenizerConfig
from .configuration_two_tower import TwoTowerConfig
from .tower_properties import TowerProperties, describe_tower


@strict
class SimlaConfig(TwoTowerConfig):
    """Configuration of [`SimlaModel`] and [`SimlaForPreTraining`]. The defaults are the authors' model.

    Each line says where its default comes from: [C] the authors' code and checkpoints, [P] their paper, [D] decided by
    us.

    Stream
        vision_config (`PreTrainedConfig` or `dict`, defaults to ViT-B/16 at 256 pixels, epsilon 1e-6 [C]).
        text_config (`PreTrainedConfig` or `dict`, defaults to BERT-base [C]): sizes of the stack that reads text alone
            (`get_text_features`) or text and image (`match`). It has no token types, whatever the config says.
        image_tokenizer_config (`COTSImageTokenizerConfig` or `dict`, defaults to DALL-E's at 128 pixels): one code for
            each of 16 x 16 patches.
        projection_dim (`int`, defaults to 256 [C]): width of the joint space.
        image_mean, image_std (`list[float]`, default CLIP's [C]): normalization of `pixel_values`.
        special_token_ids (`list[int]`, defaults to BERT's): token ids that are never masked and never keywords.
        mask_token_id (`int`, defaults to 103, BERT's): the token that replaces a masked word.

    Momentum distillation
        momentum (`float`, defaults to 0.995 [C]): weight of the old value in the momentum update.
        distillation_weight (`float`, defaults to 0.4 [C]): weight of the momentum
            encoder's predictions in the targets.
        distillation_warmup_steps (`int`, defaults to 7,812 [C]): optimizer steps over which that weight rises from 0;
            the default is one epoch of the paper's 4M pairs in batches of 512.
        temperature (`float`, defaults to 0.07 [C]): initial value of the learned temperature.
        min_temperature, max_temperature (`float`, default 0.001 and 0.5 [C]): its bounds.
        queue_size (`int`, defaults to 65,536 [C]): slots of the queues.

    Matching
        hard_negative_warmup_steps (`int`, defaults to 0 [D]): optimizer steps over which ITM's negatives change from
            random ones of the batch to those that ITC finds similar, which the authors use from the start. If ITC
            learns much faster than ITM, as in runs of a few thousand steps, ITM needs easy negatives first.

    Masked modelling and keywords
        num_masked_patches (`int`, defaults to 75 [C]) and min_block_patches (`int`, defaults to 16 [C]): of BEiT's
            block masks.
        word_mask_ratio (`float`, defaults to 0.15 [C]).
        num_keywords (`int`, defaults to 5 [C]): pseudo-labels per pair; votes_per_head (`int`, defaults to 4 [C]):
            positions that each attention head votes for.

    Total
        mlm_weight, mim_weight, psl_weight (`float`, default 1 [C]): weights of the other terms; ITC and ITM have
            weight 1. A term with weight 0 is not computed and has no parameters: with all three 0 this is the authors'
            retrieval model.
        initializer_range (`float`, defaults to 0.02 [C]): standard deviation of new linear layers.
        match_original_code (`bool`, defaults to `False` [D]): reproduce the authors' code where this one corrects it.
            Captions of one image are then negatives of each other, the softmax in the distillation of masked words
            runs over the text instead of the vocabulary, codes of masked patches come from another crop than the
            patches, and special tokens and padding can become keywords.

    Raises:
        ValueError (or huggingface_hub's `StrictDataclass...Error` around it): if fields contradict each other.
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
    image_pooling = "cls"
    contrast = "momentum"
    enqueue_before_loss = False  # the step's own keys enter the queue after its losses
    tokenizer_loss = "mim_weight"
    masked_fraction = 1.0  # each pair takes the masked passes
    masks_every_pair = True

    image_tokenizer_config: COTSImageTokenizerConfig | dict | None = None
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    momentum: float | int = 0.995
    distillation_weight: float | int = 0.4
    distillation_warmup_steps: int = 7_812
    min_temperature: float | int = 0.001
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
    match_original_code: bool = False

    @property
    def tower_properties(self) -> dict[str, TowerProperties]:
        """What the image tower offers; the text stack is SIMLA's own."""
        return {"image_pooling": describe_tower(self.vision_config, "image")}

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
        super().validate_image_grid()
        if self.mim_weight == 0:
            return
        self.check_code_grid()
        patches = self.patch_grid**2
        if not 1 <= self.min_block_patches <= self.num_masked_patches <= patches:
            raise ValueError(
                f"num_masked_patches={self.num_masked_patches} of {patches} patches cannot be masked in blocks of at "
                f"least min_block_patches={self.min_block_patches}"
            )
        if patches >= self.text_config.max_position_embeddings:
            raise ValueError(
                f"masked image modeling needs positions for {patches} patches and a first token, but text_config."
                f"max_position_embeddings={self.text_config.max_position_embeddings}; set mim_weight=0"
            )

    def validate_widths(self):
        """Part of the strict validation: one stream has one width, and heads that divide it."""
        vision, text = self.vision_config.hidden_size, self.text_config.hidden_size
        if vision != text:
            raise ValueError(f"vision_config and text_config must have the same hidden_size, got {vision} and {text}")
        if text % self.text_config.num_attention_heads:
            raise ValueError(
                f"hidden_size={text} is not divisible by num_attention_heads={self.text_config.num_attention_heads}"
            )

    def validate_ranges(self):
        """Part of the strict validation: each number within the range in which its formula means something."""
        self.check_at_least(1, "projection_dim", "queue_size", "num_keywords", "votes_per_head")
        self.check_at_least(0, "mlm_weight", "mim_weight", "psl_weight")
        self.check_at_least(0, "distillation_warmup_steps", "hard_negative_warmup_steps")
        self.check_interval("(0, 1]", "word_mask_ratio")
        self.check_interval("[0, 1]", "distillation_weight")
        self.check_interval("[0, 1)", "momentum")
