"""Build tokenizer, processor and model from the flags; contradictions are errors before training starts."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .._errors import naming
from ..conversion.simla import simla_tokenizer
from ..models import (
    CookieConfig,
    CookieForPreTraining,
    COTSConfig,
    COTSForPreTraining,
    COTSImageProcessor,
    COTSImageTokenizer,
    COTSImageTokenizerConfig,
    COTSProcessor,
    SimlaConfig,
    SimlaForPreTraining,
)
from ..models.pretraining import PreTrainingModel
from ..models.tower_layers import freeze_layers
from ..models.tower_properties import attention_layers, describe_tower, native_class
from ..models.towers import copy_tower, tower_config
from ..search.loading import check_tokenizer, named_errors
from .arguments import ModelArguments
from .dual_encoder import (
    build_source_processor,
    choose_fields,
    is_dual_encoder,
    load_named_dual_encoder,
    read_config,
    read_processor,
    text_limit,
)
from .parameter_groups import TOWERS


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
MASK_TOKEN = "<mask>"  # RoBERTa's, for tokenizers that have none
TEXT_LENGTH = 64  # tokens of a text, where neither flag nor model says


def check_sources(arguments: ModelArguments) -> None:
    """Check that exactly one model source is given, and that every name exists or has the form of a Hub id.

    Raises:
        ValueError: if no source or more than one is given.
        OSError: naming the one that is missing.
    """
    sources = [arguments.model, arguments.vision or arguments.text, arguments.config]
    if sum(source is not None for source in sources) != 1 or bool(arguments.vision) != bool(arguments.text):
        raise ValueError("give exactly one source for the model: --model, or --vision with --text, or --config")
    if arguments.image_tokenizer and arguments.architecture == "cookie":
        CookieForPreTraining.refuse_image_tokenizer()
    for source in (*sources, arguments.text, arguments.image_tokenizer):
        if source is not None and not source.startswith("{"):
            with named_errors(source):
                (read_config if source == arguments.model else AutoConfig.from_pretrained)(source)


def build_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the text tokenizer: `--tokenizer`, or that of the checkpoint, the text tower or the config. For a new SIMLA
    it drops [SEP] and punctuation, see [`simla_tokenizer`]. If it has no padding token (GPT-2), texts are padded with
    its end token; the attention mask tells the two apart.

    Raises:
        ValueError: if not exactly one model source is given, or the tokenizer has no token to pad with.
    """
    check_sources(arguments)
    source = arguments.tokenizer or arguments.model or arguments.text or arguments.config
    with named_errors(str(source)):
        if arguments.model is not None and source == arguments.model and is_dual_encoder(read_config(source)):
            tokenizer = COTSProcessor.from_dual_encoder(source).tokenizer
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
    check_tokenizer(source, tokenizer)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"the tokenizer {source} has neither a pad_token nor an eos_token to pad with; choose another with "
                "--tokenizer"
            )
        logger.warning("the tokenizer %s has no pad_token: texts are padded with %s", source, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    if arguments.architecture == "simla" and arguments.text and source == arguments.text:
        check_simla_text(load_tower_config(arguments.text, "text"))
        tokenizer = simla_tokenizer(tokenizer, tokenizer.model_max_length)
    tokenizer.model_max_length = text_limit(arguments, TEXT_LENGTH, tokenizer.model_max_length)
    return tokenizer


def build_processor(
    config: Config, tokenizer: PreTrainedTokenizerBase, arguments: ModelArguments | None = None
) -> COTSProcessor:
    """Make the processor with the config's image size, mean and standard deviation. It resizes, crops and pads like
    the processor of `--model`, if there is one."""
    source = read_processor(arguments.model) if arguments is not None and arguments.model else None
    if source is not None:
        return build_source_processor(source, config, tokenizer)
    side = config.vision_config.image_size
    image_processor = COTSImageProcessor(
        size={"height": side, "width": side}, image_mean=list(config.image_mean), image_std=list(config.image_std)
    )
    return COTSProcessor(image_processor, tokenizer)


def build_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainingModel:
    """Build the pre-training model from the flags, with LoRA and frozen towers if requested.

    Raises:
        ValueError: if not exactly one source is named, an override is not a field of the config, a tower lacks what
            the model or a flag needs of it, the vocabulary is too small for the tokenizer, masked words can have no
            mask token or masked images no trained image tokenizer, or a tower to freeze is unknown.
    """
    check_sources(arguments)
    model_class = find_model_class(arguments)
    overrides = read_overrides(arguments, model_class.config_class)
    mask_token_id = -1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    overrides |= {"mask_token_id": mask_token_id, "special_token_ids": sorted(tokenizer.all_special_ids)}
    if arguments.vision and arguments.text:
        overrides |= choose_text_pooling(arguments.text, tokenizer, model_class.config_class, overrides)
    theirs = load_named_dual_encoder(arguments)
    if theirs is not None:
        overrides = choose_fields(theirs, arguments, tokenizer, overrides)
    config = plan_config(arguments, model_class.config_class, overrides, theirs)
    check_text_tower(config, tokenizer)
    new_mask_token = config.mask_token_field is not None and tokenizer.mask_token_id is None
    if new_mask_token:  # any word stands for it until the model is there and can be given one more
        overrides["mask_token_id"] = config.mask_token_id = 0
    if arguments.vision and arguments.text:
        towers = (arguments.vision, arguments.text, arguments.image_tokenizer)
        sizes = {} if arguments.image_size is None else {"image_size": arguments.image_size}
        model, random_codes = combine_towers(*towers, model_class, overrides | sizes), True
    elif theirs is not None:
        model, random_codes = model_class.from_dual_encoder(theirs, arguments.image_tokenizer, **overrides), True
    elif arguments.model:
        model, random_codes = load_checkpoint(arguments.model, model_class, overrides)
        model = resize_images(model, arguments.image_size)
    else:
        model, random_codes = model_class(config), True
    if arguments.image_tokenizer and not arguments.vision and theirs is None:
        model.set_image_tokenizer(COTSImageTokenizer.from_pretrained(arguments.image_tokenizer))
    check_image_tokenizer(model.config, trained=not random_codes or arguments.image_tokenizer is not None)
    if new_mask_token:
        add_mask_token(model, tokenizer)
    tell_about_towers(model.config)
    adapted = add_lora(model, arguments.lora_rank, arguments.freeze) if arguments.lora_rank else model
    freeze_towers(model, arguments.freeze)
    return adapted


# ---------------------------------------------------------------------- sources of the model


def find_model_class(arguments: ModelArguments) -> type[PreTrainingModel]:
    """Find the model class from the flags, the checkpoint or the config.

    Raises:
        ValueError: if the checkpoint or config is of another model.
    """
    if arguments.vision:
        return MODELS[arguments.architecture]
    source = arguments.model or arguments.config
    config = read_config(arguments.model) if arguments.model else AutoConfig.from_pretrained(arguments.config)
    if arguments.model and is_dual_encoder(config):
        return COTSForPreTraining
    if config.model_type not in MODELS:
        other = ", nor another dual encoder" if arguments.model else ""
        raise ValueError(
            f"{source} is not a COTS, SIMLA or COOKIE model: its model_type is '{config.model_type}'{other}"
        )
    return MODELS[config.model_type]


def read_overrides(arguments: ModelArguments, config_class: type[Config]) -> dict[str, Any]:
    """Read the config fields of `--config_overrides`.

    Raises:
        ValueError: naming those that the config does not have.
    """
    overrides = dict(arguments.config_overrides or {})  # type: ignore[arg-type]  # parse_arguments reads JSON
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(config_class)})
    if unknown:
        raise ValueError(f"--config_overrides: {config_class.__name__} has no field {', '.join(unknown)}")
    return overrides


def load_config(source: str | None, overrides: dict[str, Any]) -> Config:
    """Load the config of a checkpoint, folder or file, with some fields replaced.

    Raises:
        ValueError: if the fields contradict each other.
    """
    config = AutoConfig.from_pretrained(source)
    # A new object, because fields that are set one by one are not validated.
    return type(config).from_dict(config.to_dict() | overrides)


def plan_config(
    arguments: ModelArguments,
    config_class: type[Config],
    overrides: dict[str, Any],
    theirs: PreTrainedModel | None = None,
) -> Config:
    """Build the model's config before any weights are loaded. For a dual encoder that is already loaded, `theirs`, all
    fields come from `overrides`.

    Raises:
        ValueError: if a tower cannot be used, or fields contradict each other.
    """
    if arguments.vision and arguments.text:
        fields: dict[str, Any] = dict(overrides)
        if arguments.image_tokenizer and "image_tokenizer_config" in config_class.sub_configs_defaults:
            fields["image_tokenizer_config"] = COTSImageTokenizerConfig.from_pretrained(arguments.image_tokenizer)
        towers = load_tower_config(arguments.vision, "image"), load_tower_config(arguments.text, "text")
        return config_class.from_towers(*towers, image_size=arguments.image_size, **fields)
    if theirs is not None:
        return config_class.from_towers(**overrides)
    config = load_config(arguments.model or arguments.config, overrides)
    return config if arguments.image_size is None else config.at_image_size(arguments.image_size)


def choose_text_pooling(
    text: str, tokenizer: PreTrainedTokenizerBase, config_class: type[Config], overrides: dict[str, Any]
) -> dict[str, str]:
    """Choose `"mean"` pooling for a text tower whose tokenizer adds no special token at the start, since there is no
    class token, unless a pooling is given. Empty if the tower's default is kept."""
    first = tokenizer("a")["input_ids"][:1]
    if config_class is not COTSConfig or (first and first[0] in tokenizer.all_special_ids):
        return {}
    if overrides.get("text_pooling") is None:
        default = describe_tower(load_tower_config(text, "text"), "text").default_pooling
        return {"text_pooling": "mean"} if default == "cls" else {}
    if overrides["text_pooling"].startswith("cls"):
        logger.warning('text_pooling="cls" pools the first word: the tokenizer adds no special token before it')
    return {}


def load_checkpoint(
    source: str, model_class: type[PreTrainingModel], overrides: dict[str, Any]
) -> tuple[PreTrainingModel, bool]:
    """Load a trained model with empty queues, and say whether its image tokenizer has random weights.

    Raises:
        ValueError: if the file lacks weights of the encoder, or they do not fit the config.
    """
    # Queues are not loaded: their keys and ids belong to another run's data.
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    sizes = {name: overrides.pop(name, None) for name in ("queue_size", "similarity_queue_size") if name in known}
    config = load_config(source, overrides)
    try:
        model, info = model_class.from_pretrained(source, config=config, output_loading_info=True)
    except RuntimeError as error:  # transformers has just logged which weights have another shape
        raise ValueError(f"{source}: the weights do not fit the config: {str(error).splitlines()[0]}") from error
    prefix, new = f"{model.base_model_prefix}.", ("mask_token", "log_temperature")
    missing = sorted(key for key in info["missing_keys"] if key.startswith(prefix) and not key.endswith(new))
    missing = [key for key in missing if not key.startswith(f"{prefix}frame_pooler.")]
    if missing:
        raise ValueError(f"{source}: the file is missing weights of the model: {', '.join(missing[:3])}")
    model.reset_queues(**{name: getattr(config, name) if size is None else size for name, size in sizes.items()})
    return model, any(key.startswith("image_tokenizer.") for key in info["missing_keys"])


def resize_images(model: PreTrainingModel, image_size: int | None) -> PreTrainingModel:
    """Adapt the model to another image size, if one is given: the position embeddings of its image towers are
    interpolated, the image tokenizer's grid is adjusted, and all other weights are kept.

    Raises:
        ValueError: if the image tower or the config does not allow it.
    """
    if image_size is None or image_size == model.config.vision_config.image_size:
        return model
    resized = type(model)(model.config.at_image_size(image_size))
    towers = {name: tower for name, tower in model.named_modules() if name.endswith("vision_model")}
    for name, tower in towers.items():
        copy_tower(resized.get_submodule(name), tower)  # type: ignore[arg-type]
    state = {name: rows for name, rows in model.state_dict().items() if not name.startswith(tuple(towers))}
    resized.load_state_dict(state, strict=False)
    return resized


def combine_towers(
    vision: str, text: str, image_tokenizer: str | None, model_class: type[PreTrainingModel], overrides: dict[str, Any]
) -> PreTrainingModel:
    """Build a new model on top of two towers, with the image normalization of the image tower."""
    overrides = read_normalization(vision) | overrides
    return model_class.from_vision_text_pretrained(load_tower(vision), load_tower(text), image_tokenizer, **overrides)


def load_tower_config(source: str, kind: Literal["image", "text"]) -> PreTrainedConfig:
    """Load the config of a tower from a Hub id, a folder (of a dual encoder, that half), or JSON.

    Raises:
        ValueError: if the JSON is invalid or has no `model_type`.
    """
    if not source.startswith("{"):
        return tower_config(AutoConfig.from_pretrained(source), kind)
    fields = read_tower_json(source)
    fields.pop("add_pooling_layer", None)
    return AutoConfig.for_model(**fields)


def read_tower_json(source: str) -> dict[str, Any]:
    """Read the fields of a tower's config from JSON.

    Raises:
        ValueError: if the JSON is invalid or has no `model_type`.
    """
    with naming(f"the config of a tower (--vision or --text) is not valid JSON: {source}"):
        fields = json.loads(source)
    if "model_type" not in fields:
        raise ValueError(f"the JSON config of a tower with random weights needs a model_type, got {source}")
    return fields


def load_tower(source: str) -> str | PreTrainedModel:
    """Build a tower with random weights if `source` is a JSON config; else return `source`, a Hub id or folder.

    `"add_pooling_layer": false` leaves out the pooler, which no model here uses but which would draw random numbers.

    Raises:
        ValueError: if the JSON is invalid or has no `model_type`.
    """
    if not source.startswith("{"):
        return source
    fields = read_tower_json(source)
    options = {name: fields.pop(name) for name in ("add_pooling_layer",) if name in fields}
    config = AutoConfig.for_model(**fields)
    if type(config) not in MODEL_MAPPING:  # SigLIP's text tower, which AutoModel does not know
        return native_class(type(config))._from_config(config, **options)
    return AutoModel.from_config(config, **options)


def read_normalization(source: str) -> dict[str, list[float]]:
    """Read the image mean and standard deviation of a pretrained image tower; empty if it has no image processor."""
    if source.startswith("{"):
        return {}
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        logger.warning(
            "%s has no image processor: images are normalized with mean 0.5 and standard deviation 0.5", source
        )
        return {}
    return {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}


# ---------------------------------------------------------------------- checks


def check_image_tokenizer(config: Config, trained: bool) -> None:
    """Check that there is a trained image tokenizer if masked image modeling is on.

    Raises:
        ValueError: naming the loss that needs one.
    """
    weight = config.tokenizer_loss
    if weight is not None and getattr(config, weight) > 0 and not trained:
        raise ValueError(
            f"{weight} > 0 needs a trained image tokenizer: give one with --image_tokenizer, or turn off the loss "
            f"with --config_overrides '{{\"{weight}\": 0}}'"
        )


@torch.no_grad()
def add_mask_token(model: PreTrainingModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add a missing mask token to a model that masks words, and to its tokenizer. Its word embedding starts as the
    mean of the others.

    Raises:
        ValueError: naming the field that needs it, if the tokenizer cannot take a new token or the tower has no word
            embeddings.
    """
    known, name = len(tokenizer), tokenizer.name_or_path or "the tokenizer"
    tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    mask, encoders = tokenizer.mask_token_id, (model.encoder, *(momentum for momentum, _ in model.ema_pairs))
    if mask in (None, tokenizer.unk_token_id) or describe_tower(model.config.text_config).embedding_size is None:
        raise ValueError(
            f"{name} has no mask_token and none can be added; choose another with --tokenizer, or turn off word "
            f"masking with --config_overrides '{{\"{model.config.mask_token_field}\": 0}}'"
        )
    if mask >= model.config.text_config.vocab_size:
        model.resize_token_embeddings(mask + 1, mean_resizing=False)
    for encoder in encoders if len(tokenizer) > known else ():  # else it is a word that was there
        words = encoder.get_input_embeddings().weight
        words[mask] = words[:known].mean(dim=0)
    model.config.mask_token_id, model.config.special_token_ids = mask, sorted(tokenizer.all_special_ids)
    logger.warning("%s has no mask_token: %s was added to it and to the text tower for word masking", name, MASK_TOKEN)


def check_simla_text(config: PreTrainedConfig) -> None:
    """Check that a text tower can be used by SIMLA, before its tokenizer is modified.

    Raises:
        ValueError: if it is not a BERT.
    """
    if config.model_type != "bert":
        raise ValueError(f"SIMLA's text stack must start from a BERT, not from '{config.model_type}'")


def check_text_tower(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the text tower has an embedding for every token and every position.

    Raises:
        ValueError: if it has too few word embeddings or positions.
    """
    words = config.text_config.vocab_size
    if len(tokenizer) > words:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but the text tower only {words}")
    positions = describe_tower(config.text_config).max_positions
    if positions is not None and tokenizer.model_max_length > positions:
        raise ValueError(
            f"--max_text_length {tokenizer.model_max_length} exceeds the text tower's {positions} positions"
        )


def tell_about_towers(config: Config) -> None:
    """Log what is special about a tower: a default pooling other than "cls", causal attention, or padding that is not
    ignored."""
    for field, tower in config.tower_properties.items():
        if tower.default_pooling != "cls" and isinstance(config, COTSConfig):
            logger.info('%s: %s="%s"', tower.name, field, getattr(config, field))
        if not tower.ignores_padding:
            logger.warning(
                "%s does not ignore padding: the embedding of a text depends on how much it is padded", tower.name
            )
        if tower.is_causal and config.loss_weights.get("mlm", 0) > 0:
            logger.warning("%s is causal: masked words are predicted only from the words before them", tower.name)


# ---------------------------------------------------------------------- which parameters are trained


def parse_freeze(names: Sequence[str]) -> dict[str, int | None]:
    """Parse `--freeze` into towers with the number of first layers to freeze, None for the whole tower.

    Raises:
        ValueError: for anything but "vision", "text" and these with a number, as in "vision:8", or one named twice.
    """
    towers: dict[str, int | None] = {}
    for name in names:
        tower, colon, count = name.partition(":")
        if tower not in TOWERS or (colon and not count.isdecimal()):
            raise ValueError(
                f"--freeze takes {' and '.join(TOWERS)}, or one of them with a number of layers as in vision:8, "
                f"got '{name}'"
            )
        depth = int(count) if colon else None
        if towers.setdefault(tower, depth) != depth:
            raise ValueError(f"--freeze names {tower} twice: remove one")
    return towers


def freeze_towers(model: PreTrainingModel, names: Sequence[str]) -> None:
    """Exclude the named towers, or their embeddings and first layers, from training.

    Raises:
        ValueError: as [`parse_freeze`], or if a tower has fewer layers.
    """
    for name, count in parse_freeze(names).items():
        tower = getattr(model.encoder, TOWERS[name])
        if count is None:
            tower.requires_grad_(False)
            continue
        try:
            freeze_layers(tower, count)
        except ValueError as error:
            raise ValueError(f"--freeze {name}:{count}: {error}") from None
    model.train(model.training)  # turns the dropout of what is frozen off


def add_lora(model: PreTrainingModel, rank: int, frozen: Sequence[str] = ()):
    """Add low-rank adapters (Hu et al. 2022) to the attention of both towers; projections and token heads are fully
    trained. The momentum encoder gets adapters too, which follow the trained ones.

    Args:
        frozen: towers that are not trained, in which no attention layer is required.

    Raises:
        ModuleNotFoundError: naming the package, if peft is missing.
        ValueError: for SIMLA and COOKIE, whose new cross-attention and shared layers must be fully trained; or if the
            attention of a trained tower has no linear layers.
    """
    if not isinstance(model, COTSForPreTraining):
        new = "SIMLA's cross-attention" if isinstance(model, SimlaForPreTraining) else "COOKIE's shared layers"
        raise ValueError(f"--lora_rank is only supported by COTS: {new} must be fully trained")
    targets = find_lora_targets(model, frozen)
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--lora_rank needs peft: pip install peft") from None
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for name, parameter in model.named_parameters():
        if name.startswith(NEW_PARAMETERS) or name.endswith("mask_token"):
            parameter.requires_grad_(True)
    model.reset_momentum()
    model.train()  # freezes the momentum encoder's adapters
    return adapted


def find_lora_targets(model: COTSForPreTraining, frozen: Sequence[str]) -> list[str]:
    """Find the names of the linear layers to adapt, in both towers and in the momentum encoder.

    Raises:
        ValueError: naming the tower, if a trained tower has none.
    """
    targets = []
    for kind, attribute in TOWERS.items():
        tower = getattr(model.encoder, attribute)
        layers = attention_layers(tower)
        if not layers and kind not in frozen:
            raise ValueError(
                f"--lora_rank: {describe_tower(tower).name} has no attention with linear layers to adapt; remove "
                f"--lora_rank, or freeze that tower with --freeze {kind}"
            )
        encoders = ["cots"] + ["momentum_encoder"] * (model.momentum_encoder is not None)
        targets += [f"{encoder}.{attribute}.{layer}" for encoder in encoders for layer in layers]
    return targets
