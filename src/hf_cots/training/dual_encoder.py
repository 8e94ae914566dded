"""Start training from another dual encoder, such as CLIP or SigLIP: what is taken over and what is left out."""

import logging
from typing import Any

from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..conversion.dual_encoders import text_fields
from ..models import COTSConfig, COTSImageProcessor, COTSProcessor
from ..models.configuration_two_tower import TwoTowerConfig
from ..models.dual_encoder_files import locate_dual_encoder
from ..models.dual_encoders import load_dual_encoder, read_dual_encoder, read_image_processor
from ..models.image_processing_cots import output_sides
from ..models.tower_properties import describe_tower
from .arguments import ModelArguments


logger = logging.getLogger(__name__)


def read_config(source: str) -> PreTrainedConfig:
    """Read the config of a model; sentence-transformers may keep its files in a sub-folder."""
    name, subfolder = locate_dual_encoder(source)
    return AutoConfig.from_pretrained(name, subfolder=subfolder, trust_remote_code=False)


def is_dual_encoder(config: PreTrainedConfig) -> bool:
    """Whether a config belongs to another library's two-tower model."""
    return {"vision_config", "text_config"} <= set(config.sub_configs) and not isinstance(config, TwoTowerConfig)


def read_processor(source: str) -> COTSProcessor | None:
    """Read a dual encoder's processor as a [`COTSProcessor`], or that of a checkpoint; None if there is none."""
    if is_dual_encoder(read_config(source)):
        return COTSProcessor.from_dual_encoder(source)
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    ours = isinstance(processor, COTSProcessor) and isinstance(processor.image_processor, COTSImageProcessor)
    return processor if ours else None


# ---------------------------------------------------------------------- texts


def text_limit(arguments: ModelArguments, default: int, limit: int) -> int:
    """The maximum number of tokens per text: `--max_text_length`, or else the `limit` of the dual encoder or COTS
    given by `--model`, or else `default`; never more than `limit`.

    Raises:
        ValueError: if the text tower needs texts padded to `limit` and another length is requested.
    """
    config = None if arguments.model is None else read_config(arguments.model)
    if arguments.max_text_length is None:
        own = config is not None and (isinstance(config, COTSConfig) or is_dual_encoder(config))
        return limit if own else min(default, limit)
    if config is not None and arguments.tokenizer is None and arguments.max_text_length < limit:
        processor = read_processor(arguments.model)  # type: ignore[arg-type]
        if processor is not None and processor.padding == "max_length":
            raise ValueError(
                f"--max_text_length {arguments.max_text_length}: {arguments.model} only accepts texts padded to "
                f"{limit} tokens; remove the flag"
            )
    return min(arguments.max_text_length, limit)


# ---------------------------------------------------------------------- the model


def load_named_dual_encoder(arguments: ModelArguments) -> PreTrainedModel | None:
    """Load the dual encoder that `--model` names; None if it is a checkpoint of this package, or `--model` is not set.

    Raises:
        ValueError: if it cannot become a COTS, or another architecture is requested.
    """
    if arguments.model is None or not is_dual_encoder(read_config(arguments.model)):
        return None
    if arguments.architecture != "cots":
        raise ValueError(
            f"--architecture {arguments.architecture} must be built from --vision and --text; the dual encoder "
            f"{arguments.model} can only be turned into a COTS"
        )
    return load_dual_encoder(arguments.model)


def choose_fields(
    theirs: PreTrainedModel,
    arguments: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    overrides: dict[str, Any],
) -> dict[str, Any]:
    """The config fields for a training from a dual encoder: those that take it over, how its images are normalized,
    their size, and a weight of 0 for each part of the token level that cannot be had and is not asked for; then
    `overrides`.

    What is taken over and what is left out is logged in one line.
    """
    fields = read_dual_encoder(theirs)
    fields |= read_image_processor(arguments.model, theirs.config.vision_config)  # type: ignore[arg-type]
    if arguments.image_size is not None:
        fields["image_size"] = arguments.image_size
    missing = find_missing(theirs.config, arguments)
    left_out = {name: reason for name, reason in missing.items() if name not in overrides}
    fields |= text_fields(tokenizer, fields["text_padding"]) | dict.fromkeys(left_out, 0) | overrides
    taken = describe_what_is_taken_over(COTSConfig.from_towers(**fields), tokenizer.model_max_length)
    logger.info(
        "%s (%s): keeping %s%s",
        arguments.model,
        type(theirs).__name__,
        taken,
        "".join(f"; {name} is 0: {reason}" for name, reason in left_out.items()),
    )
    return fields


def find_missing(config: PreTrainedConfig, arguments: ModelArguments) -> dict[str, str]:
    """Explain which parts of the token level are not available and why, by the fields of their weights."""
    missing = {}
    if arguments.image_tokenizer is None:
        missing["mvm_weight"] = "no --image_tokenizer is named"
    elif not describe_tower(config.vision_config, "image").can_mask_patches:
        missing["mvm_weight"] = "its image tower cannot mask patches"
    return missing


def describe_what_is_taken_over(config: COTSConfig, length: int) -> str:
    """Describe the parts of a dual encoder that training starts from.

    Args:
        length: maximum number of tokens per text.
    """
    towers = (f'{tower.name} ({field}="{getattr(config, field)}")' for field, tower in config.tower_properties.items())
    return (
        f"{' and '.join(towers)} with their projections, the temperature {config.temperature:.4g}, images of "
        f"{config.vision_config.image_size} pixels and texts of {length} tokens"
    )


def build_source_processor(
    source: COTSProcessor, config: TwoTowerConfig, tokenizer: PreTrainedTokenizerBase
) -> COTSProcessor:
    """Build the processor of `--model` with the config's image size, mean and deviation, and a tokenizer."""
    side, images = config.vision_config.image_size, source.image_processor
    if output_sides(images) != (side, side):
        images = images.at_size(side)
    fields = images.to_dict() | {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
    return COTSProcessor(COTSImageProcessor.from_dict(fields), tokenizer, source.padding)
