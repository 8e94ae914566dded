"""Configuration of COTS (Lu et al., CVPR 2022, arXiv 2204.07441)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_dvae import COTSImageTokenizerConfig
from .configuration_two_tower import TwoTowerConfig


@strict
class COTSConfig(TwoTowerConfig):
    """Configuration of [`COTSModel`] and [`COTSForPreTraining`]. The defaults are COTS-base.

    The paper's code was never released. Each line says where its default comes from: [P] stated by the paper's
    abstract, [M] recalled from the paper and not confirmed, [D] decided by us where the paper is silent.

    Streams
        vision_config (`PreTrainedConfig` or `dict`, defaults to ViT-B/16 at 384 pixels [M]): the image stream.
        text_config (`PreTrainedConfig` or `dict`, defaults to BERT-base-uncased [M]): the text stream.
        image_tokenizer_config (`COTSImageTokenizerConfig` or `dict`, defaults to DALL-E's at 192 pixels [M]).
        projection_dim (`int`, defaults to 256 [D]): width of the joint space.
        image_projection, text_projection (`"linear"`, `"mlp"` or `"none"`, default `"linear"` [M]): `"mlp"` has two
            layers with a GELU between them, which helps with frozen towers. With `"none"` a stream's global feature is
            its embedding, as for SigLIP and ALIGN's images; it must be `projection_dim` wide.
        projection_hidden_dim (`int`, defaults to 1,536 [D]): width between the layers of `"mlp"`.
        standardize_features (`bool`, defaults to `False` [D]): whether the projections subtract each feature's mean
            and divide by its deviation, which `--standardize_features` measures before training. If `False`, that flag
            only initializes the projections accordingly.
        projection_bias (`bool`, defaults to `True` [D]): whether the projections have a bias; CLIP's have none.
        image_pooling, text_pooling (`"cls"`, `"mean"`, `"cls+mean"` or `"tower"`; for texts also `"last"`):
            how a stream's global feature is pooled. `"cls"` is the first token; `"mean"` averages the patches, or the
            words without padding; `"cls+mean"` concatenates both and is twice as wide; `"tower"` is the tower's own
            pooled output (SigLIP's attention head, the state of CLIP's end token, BERT's pooler), for a text tower
            with the tower's own position ids; `"last"` is the last word before the padding of a causal tower. The
            default is `"cls"` [M]; `"mean"` for an image tower without a class token and for T5's encoder [D];
            `"last"` for a causal text tower [D].
        text_padding (`"ignored"` or `"attended"`, default `"ignored"` [D]): whether padding is masked by the attention
            mask. Towers such as SigLIP's attend to padding like words and pool its last position: with `"attended"` no
            mask is passed to the tower or the pooling, even if the tokenizer returns one, and all texts must be padded
            to the length of the tower's training (64 for SigLIP).
        pad_token_id (`int` or `None`, defaults to `None` [D]): with `text_padding="attended"`, the token that shorter
            texts, as from a pipeline that pads to the longest, are padded with; with `None` they are left as they are.
        image_mean, image_std (`list[float]`, default 0.5 [D]): normalization of `pixel_values`.
        frame_pooling (`"mean"` or `"attention"`, default `"mean"` [D]): how the features of a clip's frames are pooled
            before the projection: their mean, or the mean plus [`FrameAttention`], which can use their order.
        num_frames (`int`, defaults to 8 [D]): frames sampled per clip, the middle of each of this many equal segments.
        special_token_ids (`list[int]`, defaults to BERT's): token ids that are never masked.
        mask_token_id (`int`, defaults to 103, BERT's): the token that replaces a masked word.

        Instance level
        contrast (`"momentum"`, `"in_batch"` or `"sigmoid"`, default `"momentum"` [P]): momentum contrast with queues;
            symmetric InfoNCE over the batches of all ranks (CLIP); or the sigmoid loss over them (SigLIP).
        momentum (`float`, defaults to 0.99 [M]): weight of the old value in the momentum update. With 0 there is no
            momentum encoder, and the keys come from the online one.
        momentum_warmup_steps (`int`, defaults to 0 [D]): optimizer steps over which that weight rises from 0.
        temperature (`float`, defaults to 0.05 [M]); learn_temperature (`bool`, defaults to `False` [M]);
        min_temperature, max_temperature (`float`, default 0.01 and 0.5 [D]): bounds of a learned temperature.
        queue_size (`int`, defaults to 12,800 [M]): slots N_Q of the queues.
        center_keys (`bool`, defaults to `True` [D]): subtract the mean of the step's keys before they are queued.
        center_momentum (`float`, defaults to 0 [D]): 0 subtracts the step's own mean; a larger value subtracts a
            running mean, in which the old mean has this weight.
        enqueue_before_loss (`bool`, defaults to `True` [D]): also use the step's own keys as negatives.
        same_image (`"excluded"` or `"positive"`, default `"excluded"` [D]): how other pairs of the query's image are
            treated: excluded from its comparisons, or as further positives that share the target with its own pair.
        soft_target_alpha (`float`, defaults to 0 [D]): weight of the momentum encoder's own similarities in the
            targets of the momentum contrast. 0.4 with `center_keys=False` is ALBEF's image-text contrast, whose queue
            here counts the step's own keys; ALBEF takes the mean of the two directions where COTS takes their sum.
        soft_target_warmup_steps (`int`, defaults to 0 [D]): optimizer steps over which that weight rises from 0;
            ALBEF's take one epoch.
        nested_dims (`list[int]`, *optional* [D]): also compare embeddings truncated to these dimensions, and average
            the losses (Matryoshka, Kusupati et al. 2022), so that [`COTSModel.truncated`] loses little.
        initial_logit_bias (`float`, defaults to -10 [D], SigLIP's): initial value of the sigmoid loss's learned bias.
            SigLIP also learns the temperature, starting from 0.1.

    Token level
        patch_mask_ratio (`float`, defaults to 0.4 [M]), word_mask_ratio (`float`, defaults to 0.15 [M]).
        masked_fraction (`float`, defaults to 1.0 [D]): fraction of the pairs that are masked.
        token_every (`int`, defaults to 1 [D]): compute the token level only in every n-th optimizer step, with n times
            its weight. With `masked_fraction=1` and n = 4, as many pairs are masked as with 0.25 in every step, but in
            passes with four times as many rows, which cost less.
        single_pass (`bool`, defaults to `False` [D]): use the masked passes of a masked pair for the contrast too, so
            that the token level only costs its heads. The paper compares unmasked images and texts, which need passes
            of their own. Momentum keys always come from unmasked inputs, and so do the features of a frozen tower,
            whose masked pass is separate.

    Filter
        filter_lambda (`float` or `None`, defaults to 2.0 [D]): a pair is dropped if its momentum similarity lies more
            than this many standard deviations below the mean. `None` switches the filter off.
        filter_warmup_steps (`int`, defaults to 1,000 [D]): optimizer steps before the filter starts.
        similarity_queue_size (`int`, defaults to 12,800 [D]): number of scores for its mean and standard deviation.

    Total
        instance_weight, mvm_weight, mlm_weight, task_weight (`float`, default 1 [D]): weights of the loss terms. A
        level
            with weight 0 is not computed and has no parameters.
        initializer_range (`float`, defaults to 0.02 [D]): standard deviation of new linear layers.

    Raises:
        ValueError (or huggingface_hub's `StrictDataclass...Error` around it): if fields contradict each other.
    """

    model_type = "cots"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit", init_kwargs={"image_size": 384}),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "image_tokenizer_config": SubConfigSpec(config_class=COTSImageTokenizerConfig),
    }
    keys_to_ignore_at_inference = ["kept", "image_embeds", "text_embeds"]
    loss_terms = ("instance", "mvm", "mlm", "task")
    tokenizer_loss = "mvm_weight"
    masks_patches = True  # a pair takes the masked passes, of words too, if some of its patches are masked
    min_block_patches = None  # the smallest masked block is in proportion to the grid, see `masking.block_mask`

    image_tokenizer_config: COTSImageTokenizerConfig | dict | None = None
    image_pooling: Literal["cls", "mean", "cls+mean", "tower"] | None = None
    text_pooling: Literal["cls", "mean", "cls+mean", "last", "tower"] | None = None
    image_projection: Literal["linear", "mlp", "none"] = "linear"
    text_projection: Literal["linear", "mlp", "none"] = "linear"
    projection_hidden_dim: int = 1536
    standardize_features: bool = False
    projection_bias: bool = True
    text_padding: Literal["ignored", "attended"] = "ignored"
    pad_token_id: int | None = None
    frame_pooling: Literal["mean", "attention"] = "mean"
    num_frames: int = 8

    contrast: Literal["momentum", "in_batch", "sigmoid"] = "momentum"
    momentum: float | int = 0.99
    momentum_warmup_steps: int = 0
    temperature: float | int = 0.05
    learn_temperature: bool = False
    queue_size: int = 12_800
    center_keys: bool = True
    center_momentum: float | int = 0.0
    enqueue_before_loss: bool = True
    same_image: Literal["excluded", "positive"] = "excluded"
    soft_target_alpha: float | int = 0.0
    soft_target_warmup_steps: int = 0
    nested_dims: list[int] | tuple[int, ...] | None = None
    initial_logit_bias: float | int = -10.0

    patch_mask_ratio: float | int = 0.4
    word_mask_ratio: float | int = 0.15
    masked_fraction: float | int = 1.0
    token_every: int = 1
    single_pass: bool = False

    filter_lambda: float | int | None = 2.0
    filter_warmup_steps: int = 1_000
    similarity_queue_size: int = 12_800

    instance_weight: float | int = 1.0
    mvm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    task_weight: float | int = 1.0

    @property
    def num_patches(self) -> int:
        return self.patch_grid**2

    @property
    def num_masked_patches(self) -> int:
        """Exactly this many patches of each image are masked."""
        return max(1, round(self.patch_mask_ratio * self.num_patches))

    @property
    def uses_keys(self) -> bool:
        """The momentum contrast compares with keys, and the filter scores pairs by them."""
        return self.contrast == "momentum" or self.filter_lambda is not None

    @property
    def uses_momentum_encoder(self) -> bool:
        """The keys come from a momentum encoder. With a momentum of 0 they come from the online encoder, of which it
        would be a copy."""
        return self.uses_keys and self.momentum > 0

    @property
    def keeps_center(self) -> bool:
        """A running mean of the keys is part of the state."""
        return self.contrast == "momentum" and self.center_keys and self.center_momentum > 0

    @property
    def uses_masks(self) -> bool:
        """A token level is on."""
        return self.mvm_weight > 0 or self.mlm_weight > 0

    def validate_image_grid(self):
        """Part of the strict validation: patches must tile the image, and there must be one code per patch."""
        super().validate_image_grid()
        if self.mvm_weight > 0:
            self.check_code_grid()

    def validate_ranges(self):
        """Part of the strict validation: each number within the range in which its formula means something."""
        self.check_at_least(1, "projection_dim", "projection_hidden_dim", "queue_size", "similarity_queue_size")
        self.check_at_least(1, "num_frames", "token_every")
        self.check_at_least(0, "instance_weight", "mvm_weight", "mlm_weight", "task_weight")
        self.check_at_least(0, "filter_warmup_steps", "momentum_warmup_steps", "soft_target_warmup_steps")
        if self.filter_lambda is not None and self.filter_lambda < 0:
            raise ValueError(
                f"filter_lambda must not be negative (None switches the filter off), got {self.filter_lambda}"
            )
        self.check_interval("(0, 1]", "patch_mask_ratio", "word_mask_ratio", "masked_fraction")
        self.check_interval("[0, 1)", "momentum", "center_momentum")
        self.check_interval("[0, 1]", "soft_target_alpha")

    def validate_nested_dims(self):
        """Part of the strict validation: fewer dimensions than all, each once."""
        dims = self.nested_dims or ()
        if len(set(dims)) < len(dims) or not all(0 < dim < self.projection_dim for dim in dims):
            raise ValueError(
                f"nested_dims must be distinct and below projection_dim={self.projection_dim}, got {dims}"
            )

    def validate_projections(self):
        """Part of the strict validation: a stream without a projection is as wide as the joint space."""
        for name, tower in self.tower_properties.items():
            projection, pooling = name.replace("pooling", "projection"), getattr(self, name)
            width = tower.feature_size(pooling)
            if getattr(self, projection) == "none" and width != self.projection_dim:
                raise ValueError(
                    f'{projection}="none" needs projection_dim={width}, the width of {tower.name}\'s feature with '
                    f'{name}="{pooling}"; got projection_dim={self.projection_dim}'
                )

    def validate_levels(self):
        """Part of the strict validation: the task level is minimized by two uniform distributions."""
        if not any((self.instance_weight, self.mvm_weight, self.mlm_weight, self.task_weight)):
            raise ValueError(
                "instance_weight, mvm_weight, mlm_weight and task_weight are all 0: nothing to learn from"
            )
        if self.single_pass and not self.uses_masks:
            raise ValueError("single_pass=True needs mvm_weight > 0 or mlm_weight > 0: otherwise nothing is masked")
        if self.task_weight > 0 and self.instance_weight == 0:
            raise ValueError(
                "task_weight > 0 needs instance_weight > 0: on its own, the task level has a trivial optimum"
            )

    def validate_contrast(self):
        """Part of the strict validation: options of one contrast are not asked of another."""
        if self.soft_target_alpha > 0 and self.contrast != "momentum":
            raise ValueError(
                f'soft_target_alpha > 0 needs contrast="momentum", whose keys are the targets; got "{self.contrast}"'
            )
