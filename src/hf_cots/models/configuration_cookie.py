"""Configuration of COOKIE (Wen et al., ICCV 2021)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_two_tower import TwoTowerConfig


@strict
class CookieConfig(TwoTowerConfig):
    """Configuration of [`CookieModel`] and [`CookieForPreTraining`].

    The authors released neither code nor weights. The two streams, the shared transformer on top of them and the three
    contrasts are those of the abstracts; every number is our choice.

    Streams
        vision_config (`PreTrainedConfig` or `dict`, defaults to ViT-B/16 at 224 pixels): the image stream.
        text_config (`PreTrainedConfig` or `dict`, defaults to BERT-base-uncased): the text stream.
        projection_dim (`int`, defaults to 1024): width of the shared transformer and of the joint space.
        image_mean, image_std (`list[float]`, default 0.5): normalization of `pixel_values`.
        special_token_ids (`list[int]`, defaults to BERT's): token ids that the second view of a text does not change.
        mask_token_id (`int`, defaults to 103, BERT's): the token that replaces a masked word.

    Shared transformer
        num_shared_layers (`int`, defaults to 2): pre-norm layers that patches and words pass through, 0 to 4.
        share_weights (`bool`, defaults to `True`): the same layers for both; `False` gives each modality its own.
        num_shared_heads (`int`, defaults to 4), shared_intermediate_size (`int`, defaults to 2048), shared_dropout
            (`float`, defaults to 0.1): of each layer.
        pooling (`"mean"`, `"first"` or `"max"`, default `"mean"`): how the layers' output is pooled into the
            embedding:
            its mean or maximum over the patches (or the tokens without padding), or the first of them.

    Losses
        temperature (`float`, defaults to 0.07); learn_temperature (`bool`, defaults to `False`);
        min_temperature, max_temperature (`float`, default 0.01 and 0.5): bounds of a learned temperature.
        cross_modal_loss (`"info_nce"` or `"hinge"`, default `"info_nce"`): loss that compares image and caption;
            `"hinge"` is the hinge loss of the hardest negative, for fine-tuning.
        margin (`float`, defaults to 0.2): margin of the hinge loss.
        cross_modal_weight, visual_weight, textual_weight (`float`, default 1): weights of the contrasts between image
            and caption, two views of the image, and two views of the caption. A contrast with weight 0 is not
            computed, and its view is not made.

    Views
        color_jitter (`float`, defaults to 0.4): strength of the jitter of brightness, contrast and saturation in the
            image's second view; a quarter of it for the hue.
        grayscale (`float`, defaults to 0.2), blur (`float`, defaults to 0.5): their probabilities in that view.
        text_view (`"dropped_words"` or `"other_caption"`, default `"dropped_words"`): the caption's second view: the
            caption with words dropped, or another caption of the image if there is one.
        word_drop_ratio (`float`, defaults to 0.2): probability that a word is dropped. A dropped word is masked with
            probability word_drop_masked (`float`, defaults to 0.5), replaced by a random word with probability
            word_drop_replaced (`float`, defaults to 0.1), and otherwise deleted.

    initializer_range (`float`, defaults to 0.02): standard deviation of new linear layers.

    Raises:
        ValueError (or huggingface_hub's `StrictDataclass...Error` around it): if fields contradict each other.
    """

    model_type = "cookie"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }
    keys_to_ignore_at_inference = ["image_embeds", "text_embeds"]
    # The towers' own global features are not used: pooling follows the shared layers.
    image_pooling = text_pooling = "mean"
    loss_terms = ("cross_modal", "visual", "textual")

    projection_dim: int = 1024

    num_shared_layers: int = 2
    share_weights: bool = True
    num_shared_heads: int = 4
    shared_intermediate_size: int = 2048
    shared_dropout: float | int = 0.1
    pooling: Literal["mean", "first", "max"] = "mean"

    learn_temperature: bool = False
    cross_modal_loss: Literal["info_nce", "hinge"] = "info_nce"
    margin: float | int = 0.2
    cross_modal_weight: float | int = 1.0
    visual_weight: float | int = 1.0
    textual_weight: float | int = 1.0

    color_jitter: float | int = 0.4
    grayscale: float | int = 0.2
    blur: float | int = 0.5
    text_view: Literal["dropped_words", "other_caption"] = "dropped_words"
    word_drop_ratio: float | int = 0.2
    word_drop_masked: float | int = 0.5
    word_drop_replaced: float | int = 0.1

    @property
    def mask_token_field(self) -> str | None:
        """The field that, above 0, asks for a mask token; None if no word is masked."""
        drops = self.textual_weight > 0 and self.text_view == "dropped_words" and self.word_drop_ratio > 0
        return "word_drop_masked" if drops and self.word_drop_masked > 0 else None

    def validate_shared_layers(self):
        """Part of the strict validation: layers that can be built."""
        if not 0 <= self.num_shared_layers <= 4:
            raise ValueError(f"num_shared_layers must be from 0 to 4, got {self.num_shared_layers}")
        self.check_at_least(1, "projection_dim", "num_shared_heads", "shared_intermediate_size")
        if self.projection_dim % self.num_shared_heads:
            raise ValueError(
                f"projection_dim={self.projection_dim} is not divisible by num_shared_heads={self.num_shared_heads}"
            )

    def validate_pooling(self):
        """Part of the strict validation: a first token that is pooled knows of the others."""
        tower = self.tower_properties["text_pooling"]
        if self.pooling == "first" and self.num_shared_layers == 0 and tower.is_causal:
            raise ValueError(
                f'pooling="first" without shared layers does not fit {tower.name}, which is causal: its first state '
                'sees no other word; set pooling="mean"'
            )

    def validate_ranges(self):
        """Part of the strict validation: each number within the range in which its formula means something."""
        self.check_at_least(0, "cross_modal_weight", "visual_weight", "textual_weight", "margin")
        if not any(self.loss_weights.values()):
            raise ValueError("cross_modal_weight, visual_weight and textual_weight are all 0: nothing to learn from")
        self.check_interval("[0, 1]", "color_jitter", "grayscale", "blur")
        self.check_interval("[0, 1)", "shared_dropout", "word_drop_ratio")
        if (
            min(self.word_drop_masked, self.word_drop_replaced) < 0
            or self.word_drop_masked + self.word_drop_replaced > 1
        ):
            raise ValueError(
                f"word_drop_masked={self.word_drop_masked} and word_drop_replaced={self.word_drop_replaced} must be "
                "fractions that add up to at most 1; the rest is deleted"
            )
