"""Base of the configurations of COTS, SIMLA and COOKIE: two towers, their inputs, joint space and temperature."""

import copy
import dataclasses
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .renamed_fields import rename_fields
from .tower_properties import TowerProperties, describe_tower, square_side


@strict
class TwoTowerConfig(PreTrainedConfig):
    """Base class of the configurations; each subclass sets its own defaults and documents its fields.

    vision_config, text_config (`PreTrainedConfig` or `dict`): the towers.
    projection_dim (`int`): width of the joint space.
    image_mean, image_std (`list[float]`): normalization of `pixel_values`.
    special_token_ids (`list[int]`): token ids that are never masked.
    mask_token_id (`int`): the token that replaces a masked word; -1 if the tokenizer has none.
    temperature, min_temperature, max_temperature (`float`): tau, and the bounds of a learned tau.
    initializer_range (`float`): standard deviation of new linear layers.
    """

    vision_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 256
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    special_token_ids: list[int] | tuple[int, ...] = (0, 100, 101, 102, 103)
    mask_token_id: int = 103
    temperature: float | int = 0.07
    min_temperature: float | int = 0.01
    max_temperature: float | int = 0.5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        """As in transformers; then poolings that were not set get the default for their tower.

        Raises:
            ValueError: if a tower cannot be used, or lacks what a pooling takes.
        """
        super().__post_init__(**kwargs)
        towers = self.tower_properties
        self.vision_config.image_size = square_side(self.vision_config)  # it may be a list of two equal sides
        fields = {field.name for field in dataclasses.fields(self)}
        for name, tower in towers.items():
            if getattr(self, name) is None:
                setattr(self, name, tower.default_pooling)
            tower.check_pooling(name, getattr(self, name), chosen=name in fields)

    @property
    def tower_properties(self) -> dict[str, TowerProperties]:
        """What the towers offer, by the field that says how each is pooled."""
        return {
            "image_pooling": describe_tower(self.vision_config, "image"),
            "text_pooling": describe_tower(self.text_config, "text"),
        }

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but also accepts the names of fields and values in older files."""
        return super().from_dict(rename_fields(config_dict), **kwargs)

    @classmethod
    def from_towers(
        cls,
        vision_config: PreTrainedConfig,
        text_config: PreTrainedConfig,
        image_size: int | None = None,
        **fields,
    ):
        """Build the config of a model with these towers. The image tokenizer's input size is set to fit the patch
        grid.

        Args:
            image_size: image size in pixels, if different from the image tower's.

        Raises:
            ValueError: if a tower cannot be used, or fields contradict one another.
        """
        if image_size is not None:
            vision_config = copy.deepcopy(vision_config)
            vision_config.image_size = image_size
        if "image_tokenizer_config" in cls.sub_configs_defaults:
            codes = fields.pop("image_tokenizer_config", None) or {}
            codes = codes.to_dict() if isinstance(codes, PreTrainedConfig) else dict(codes)
            downsampling = 2 ** (codes.get("num_groups", 4) - 1)
            codes["image_size"] = describe_tower(vision_config, "image").patch_grid[0] * downsampling  # type: ignore[index]
            fields["image_tokenizer_config"] = codes
        return cls(vision_config=vision_config, text_config=text_config, **fields)

    def at_image_size(self, image_size: int):
        """The same config for another image size in pixels; the image tokenizer's input size is set to fit.

        Raises:
            ValueError: if the image tower or another field does not allow for it.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self.from_towers(image_size=image_size, **copy.deepcopy(fields))

    # ------------------------------------------------------------------ what a subclass says of itself

    loss_terms: ClassVar[tuple[str, ...]]  # terms of the loss, each with a field for its weight
    # What only [`COTSConfig`] has fields for; models of another config take these.
    image_projection = text_projection = "linear"
    projection_bias = True
    standardize_features = False
    text_padding = "ignored"
    frame_pooling = "mean"
    # Whether a pair without a masked patch takes the masked passes, too.
    masks_every_pair = False

    @property
    def loss_weights(self) -> dict[str, float | int]:
        """The weight of each term of the loss, by name."""
        return {name: getattr(self, f"{name}_weight") for name in self.loss_terms}

    @property
    def tokenizer_loss(self) -> str | None:
        """The field whose weight, if above 0, requires an image tokenizer."""
        return None

    @property
    def mask_token_field(self) -> str | None:
        """The field that, above 0, asks for a mask token; None if no word is masked."""
        return "mlm_weight" if self.loss_weights.get("mlm", 0) > 0 else None

    @property
    def masks_patches(self) -> bool:
        """Whether a step masks patches."""
        return False

    @property
    def uses_masks(self) -> bool:
        """Whether a step masks anything, patches or words."""
        return False

    # ------------------------------------------------------------------ what follows from the fields

    @property
    def patch_grid(self) -> int:
        """Patches, or cells of a convolutional net's last map, along one side of the image tower's output."""
        return describe_tower(self.vision_config, "image").patch_grid[0]  # type: ignore[index]

    def validate_image_grid(self):
        """Part of the strict validation: images are square, and patches tile them."""
        square_side(self.vision_config)

    def validate_temperature(self):
        """Part of the strict validation: tau lies within its bounds."""
        if not 0 < self.min_temperature <= self.temperature <= self.max_temperature:
            raise ValueError(
                f"temperature={self.temperature} must be between min_temperature={self.min_temperature} "
                f"and max_temperature={self.max_temperature}, all positive"
            )

    def validate_normalization(self):
        """Part of the strict validation: one mean and one positive deviation per channel."""
        if not len(self.image_mean) == len(self.image_std) == 3 or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean and image_std need three entries each, and those of image_std must be positive; got "
                f"{self.image_mean}, {self.image_std}"
            )

    def check_code_grid(self) -> None:
        """There must be one code of the image tokenizer for each patch.

        Raises:
            ValueError: naming both grids and the size that would fit.
        """
        codes = self.image_tokenizer_config.grid_size
        if codes != self.patch_grid:
            raise ValueError(
                f"the image tokenizer gives a grid of {codes} x {codes} codes but the image tower has "
                f"{self.patch_grid} x {self.patch_grid} patches; set image_tokenizer_config.image_size to "
                f"{self.patch_grid * self.image_tokenizer_config.downsampling}"
            )

    def check_at_least(self, lowest: int, *names: str) -> None:
        """Each of the named fields is at least `lowest`, or else a ValueError."""
        wanted = f"be at least {lowest}" if lowest else "not be negative"
        for name in names:
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must {wanted}, got {getattr(self, name)}")

    def check_interval(self, interval: str, *names: str) -> None:
        """Each of the named fields lies in an interval such as "[0, 1)", or else a ValueError."""
        low, high = map(float, interval[1:-1].split(","))
        for name in names:
            value = getattr(self, name)
            ends = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
            if not (low < value < high or value in ends):
                raise ValueError(f"{name} must lie in {interval}, got {value}")
