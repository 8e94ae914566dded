"""Build tokenizer, processor and model from the flags; contradictions are errors before training starts."""

import dataclasses
import json
import logging
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..conversion.simla import simla_tokenizer
from ..models import (
    CookieConfig,
    CookieForPreTraining,
    COTSConfig,
    COTSForPreTraining,
    COTSImageProcessor,
    COTSImageTokenizer,
    COTSProcessor,
    SimlaConfig,
    SimlaForPreTraining,
)
from ..models.model_files import named_damage
from ..models.pretraining import PreTrainingModel
from .arguments import ModelArguments


logger = logging.getLogger(__name__)

Config = COTSConfig | SimlaConfig | CookieConfig
MODELS: dict[str, type[PreTrainingModel]] = {
    "cots": COTSForPreTraining,
    "simla": SimlaForPreTraining,
    "cookie": CookieForPreTraining,
}
# New parameters, which are trained in full beside LoRA's adapters. Those of the momentum encoder stay frozen.
NEW_PARAMETERS = (
    "cots.visual_projection",
    "cots.text_projection",
    "mvm_",
    "mlm_",
    "cots.log_temperature",
    "logit_bias",
)
TOWERS = {"vision": "vision_model", "text": "text_model"}


def check_source(arguments: ModelArguments) -> None:
    """Check that exactly one source of the model is named.

    Raises:
        ValueError: if there is none, or more than one.
    """
    sources = [arguments.model, arguments.vision or arguments.text, arguments.config]
    if sum(source is not None for source in sources) != 1 or bool(arguments.vision) != bool(arguments.text):
        raise ValueError("name exactly one source of the model: --model, or --vision with --text, or --config")


def build_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the named text tokenizer, or that of the checkpoint, the text tower or the config. With a text tower that
    becomes SIMLA's, it drops [SEP] and punctuation, see [`simla_tokenizer`].

    Raises:
        ValueError: if not exactly one source of the model is named, or the tokenizer has no mask or padding token,
            which masked language modeling and batches need.
    """
    check_source(arguments)
    source = arguments.tokenizer or arguments.model or arguments.text or arguments.config
    with named_damage(source or ""):
        tokenizer = AutoTokenizer.from_pretrained(source)
    for kind in ("mask_token", "pad_token"):
        if getattr(tokenizer, kind) is None:
            raise ValueError(f"the tokenizer {source} has no {kind}; name another with --tokenizer")
    if arguments.architecture == "simla" and source == arguments.text:
        tokenizer = simla_tokenizer(tokenizer, tokenizer.model_max_length)
    tokenizer.model_max_length = min(arguments.max_text_length, tokenizer.model_max_length)
    return tokenizer


def build_processor(config: Config, tokenizer: PreTrainedTokenizerBase) -> COTSProcessor:
    """Make the processor with the config's image size, mean and standard deviation."""
    side = config.vision_config.image_size
    image_processor = COTSImageProcessor(
        size={"height": side, "width": side}, image_mean=list(config.image_mean), image_std=list(config.image_std)
    )
    return COTSProcessor(image_processor, tokenizer)


def build_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainingModel:
    """Build the model for pre-training that the flags name, with LoRA and frozen towers as they ask.

    Raises:
        ValueError: if not exactly one source is named, an override is not a field of the config, the vocabulary is too
            small for the tokenizer, masked image modeling has no trained image tokenizer, or a tower to freeze is
            unknown.
    """
    check_source(arguments)
    model_class = find_model_class(arguments)
    overrides = read_overrides(arguments, model_class.config_class)
    overrides |= {"mask_token_id": tokenizer.mask_token_id, "special_token_ids": sorted(tokenizer.all_special_ids)}
    if arguments.vision and arguments.text:
        towers = (arguments.vision, arguments.text, arguments.image_tokenizer)
        model, random_codes = combine_towers(*towers, model_class, overrides), True
    elif arguments.model:
        model, random_codes = load_checkpoint(arguments.model, model_class, overrides)
    else:
        model, random_codes = model_class(load_config(arguments.config, overrides)), True
    if arguments.image_tokenizer and not arguments.vision:
        model.set_image_tokenizer(COTSImageTokenizer.from_pretrained(arguments.image_tokenizer))
    check_image_tokenizer(model.config, trained=not random_codes or arguments.image_tokenizer is not None)
    check_text_tower(model.config.text_config, tokenizer)
    adapted = add_lora(model, arguments.lora_rank) if arguments.lora_rank else model
    freeze_towers(model, arguments.freeze)
    return adapted


# ---------------------------------------------------------------------- sources of the model


def find_model_class(arguments: ModelArguments) -> type[PreTrainingModel]:
    """The class that the flags, the checkpoint or the config ask for.

    Raises:
        ValueError: if the checkpoint or config is of another model.
    """
    if arguments.vision:
        return MODELS[arguments.architecture]
    source = arguments.model or arguments.config
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type not in MODELS:
        raise ValueError(f"{source} is not a COTS, SIMLA or COOKIE model but '{model_type}'")
    return MODELS[model_type]


def read_overrides(arguments: ModelArguments, config_class: type[Config]) -> dict[str, Any]:
    """The config fields of `--config_overrides`.

    Raises:
        ValueError: naming those that the config does not have.
    """
    overrides = dict(arguments.config_overrides or {})  # type: ignore[arg-type]  # parse_arguments reads JSON
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(config_class)})
    if unknown:
        raise ValueError(f"--config_overrides: no field of {config_class.__name__}: {', '.join(unknown)}")
    return overrides


def load_config(source: str | None, overrides: dict[str, Any]) -> Config:
    """The config of a checkpoint, folder or file, with some fields replaced.

    Raises:
        ValueError: if the fields contradict each other.
    """
    config = AutoConfig.from_pretrained(source)
    # A new object, because fields that are set one by one are not validated.
    return type(config).from_dict(config.to_dict() | overrides)


def load_checkpoint(
    source: str, model_class: type[PreTrainingModel], overrides: dict[str, Any]
) -> tuple[PreTrainingModel, bool]:
    """A trained model with empty queues, and whether its image tokenizer has random weights."""
    # Queues are not loaded: their keys and ids belong to another run's data.
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    sizes = {name: overrides.pop(name, None) for name in ("queue_size", "similarity_queue_size") if name in known}
    config = load_config(source, overrides)
    model, info = model_class.from_pretrained(source, config=config, output_loading_info=True)
    model.reset_queues(**{name: getattr(config, name) if size is None else size for name, size in sizes.items()})
    return model, any(key.startswith("image_tokenizer.") for key in info["missing_keys"])


def combine_towers(
    vision: str, text: str, image_tokenizer: str | None, model_class: type[PreTrainingModel], overrides: dict[str, Any]
) -> PreTrainingModel:
    """A new model on top of two towers, with the image normalization of the image tower."""
    overrides = read_normalization(vision) | overrides
    return model_class.from_vision_text_pretrained(load_tower(vision), load_tower(text), image_tokenizer, **overrides)


def load_tower(source: str) -> str | PreTrainedModel:
    """A tower with random weights if `source` is a config as JSON; else `source` itself, a Hub id or folder.

    `"add_pooling_layer": false` leaves the pooler out. No model here uses it, but it takes random numbers.

    Raises:
        ValueError: if the JSON is invalid or has no `model_type`.
    """
    if not source.startswith("{"):
        return source
    fields = json.loads(source)
    if "model_type" not in fields:
        raise ValueError(f"the config of a tower to train from random weights needs a model_type, got {source}")
    options = {name: fields.pop(name) for name in ("add_pooling_layer",) if name in fields}
    return AutoModel.from_config(AutoConfig.for_model(**fields), **options)


def read_normalization(source: str) -> dict[str, list[float]]:
    """Image mean and standard deviation that a pretrained image tower was trained with; empty if it has no image
    processor."""
    if source.startswith("{"):
        return {}
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        logger.warning("%s has no image processor: images are normalized with mean and deviation 0.5", source)
        return {}
    return {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}


# ---------------------------------------------------------------------- checks


def check_image_tokenizer(config: Config, trained: bool) -> None:
    """Check that masked image modeling, if it is on, has a trained image tokenizer.

    Raises:
        ValueError: naming the loss that needs one.
    """
    weight = config.tokenizer_loss
    if weight is not None and getattr(config, weight) > 0 and not trained:
        raise ValueError(
            f"{weight} > 0 needs a trained image tokenizer: name one with --image_tokenizer, or turn the loss off "
            f"with --config_overrides '{{\"{weight}\": 0}}'"
        )


def check_text_tower(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the text tower has an embedding for every token and every position.

    Raises:
        ValueError: if its vocabulary or its positions are too few.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the text tower only {config.vocab_size}")
    positions = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    if tokenizer.model_max_length > positions:
        raise ValueError(
            f"--max_text_length {tokenizer.model_max_length} is more than the text tower's {positions} positions"
        )


# ---------------------------------------------------------------------- which parameters are trained


def freeze_towers(model: PreTrainingModel, names: list[str]) -> None:
    """Exclude the named towers from training.

    Raises:
        ValueError: for a name other than "vision" and "text".
    """
    for name in names:
        if name not in TOWERS:
            raise ValueError(f"--freeze takes {' and '.join(TOWERS)}, got '{name}'")
        getattr(model.encoder, TOWERS[name]).requires_grad_(False)
    model.train(model.training)  # turns the dropout of frozen towers off


def add_lora(model: PreTrainingModel, rank: int):
    """Add low-rank adapters (Hu et al. 2022) to the attention of both towers; projections and token heads are
    trained in full. The momentum encoder gets adapters too, which follow the trained ones.

    Raises:
        ModuleNotFoundError: naming the package, if peft is missing.
        ValueError: for SIMLA and COOKIE, whose cross-attention and shared layers are new and must be trained in full.
    """
    if not isinstance(model, COTSForPreTraining):
        new = "SIMLA's cross-attention" if isinstance(model, SimlaForPreTraining) else "COOKIE's shared layers"
        raise ValueError(f"--lora_rank is for COTS: {new} must be trained in full")
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--lora_rank needs peft: pip install peft") from None
    attention = r"(cots|momentum_encoder)\..*\.(q_proj|v_proj|query|value|q_lin|v_lin)"
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=attention))
    for name, parameter in model.named_parameters():
        if name.startswith(NEW_PARAMETERS) or name.endswith("mask_token"):
            parameter.requires_grad_(True)
    model.reset_momentum()
    model.train()  # freezes the momentum encoder's adapters
    return adapted
