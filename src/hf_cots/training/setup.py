"""From flags to a model, a processor and data, with every contradiction told before training starts."""

import dataclasses
import json
import logging
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..conversion.simla import simla_tokenizer
from ..data.augmentation import RandomCropFlip
from ..data.code_cache import CodeCache, CodeSettings
from ..data.collator import COTSCollator
from ..data.frozen_features import StoredFeaturePairs, store_features
from ..data.keep_mask import apply_keep_mask
from ..data.sources import PairDataset, load_pairs
from ..data.streams import PairStream, load_stream
from ..data.views import SecondViews
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
from ..models.pretraining import PreTrainingModel
from .arguments import COTSTrainingArguments, DataArguments, ModelArguments


logger = logging.getLogger(__name__)

Config = COTSConfig | SimlaConfig | CookieConfig
MODELS: dict[str, type[PreTrainingModel]] = {
    "cots": COTSForPreTraining,
    "simla": SimlaForPreTraining,
    "cookie": CookieForPreTraining,
}
# What LoRA trains in full: everything new. The momentum encoder's share of it stays frozen.
BESIDE_TOWERS = (
    "cots.visual_projection",
    "cots.text_projection",
    "mvm_",
    "mlm_",
    "cots.log_temperature",
    "logit_bias",
)
TOWERS = {"vision": "vision_model", "text": "text_model"}


def check_source(arguments: ModelArguments) -> None:
    """Exactly one source of the model must be named.

    Raises:
        ValueError: if there is none, or more than one.
    """
    sources = [arguments.model, arguments.vision or arguments.text, arguments.config]
    if sum(source is not None for source in sources) != 1 or bool(arguments.vision) != bool(arguments.text):
        raise ValueError("name exactly one source of the model: --model, or --vision with --text, or --config")


def build_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """The named tokenizer, or the one that comes with the checkpoint, the text tower or the config. A text tower that
    is to become SIMLA reads without [SEP] and punctuation, as [`simla_tokenizer`] does.

    Raises:
        ValueError: if not exactly one source of the model is named, or the tokenizer has no mask or padding token,
            without which no word can be masked or batch be made.
    """
    check_source(arguments)
    source = arguments.tokenizer or arguments.model or arguments.text or arguments.config
    tokenizer = AutoTokenizer.from_pretrained(source)
    for kind in ("mask_token", "pad_token"):
        if getattr(tokenizer, kind) is None:
            raise ValueError(f"the tokenizer {source} has no {kind}; name another with --tokenizer")
    if arguments.architecture == "simla" and source == arguments.text:
        tokenizer = simla_tokenizer(tokenizer, tokenizer.model_max_length)
    tokenizer.model_max_length = min(arguments.max_text_length, tokenizer.model_max_length)
    return tokenizer


def build_processor(config: Config, tokenizer: PreTrainedTokenizerBase) -> COTSProcessor:
    """The processor that fits a config: its image size, mean and deviation."""
    side = config.vision_config.image_size
    image_processor = COTSImageProcessor(
        size={"height": side, "width": side}, image_mean=list(config.image_mean), image_std=list(config.image_std)
    )
    return COTSProcessor(image_processor, tokenizer)


def tower(source: str) -> str | PreTrainedModel:
    """A pretrained tower's name as it is; of a JSON mapping, a tower with random weights.

    Raises:
        ValueError: if the mapping is no JSON or names no `model_type`.
    """
    if not source.startswith("{"):
        return source
    fields = json.loads(source)
    if "model_type" not in fields:
        raise ValueError(f"a tower from scratch needs a model_type, got {source}")
    return AutoModel.from_config(AutoConfig.for_model(**fields))


def tower_normalisation(source: str) -> dict[str, list[float]]:
    """Mean and deviation that a pretrained image tower was trained with, if an image processor lies beside it."""
    if source.startswith("{"):
        return {}
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        logger.warning("no image processor beside %s: pixels are normalised with mean and deviation 0.5", source)
        return {}
    return {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}


def model_class(arguments: ModelArguments) -> type[PreTrainingModel]:
    """What kind of model the flags, the checkpoint or the config ask for.

    Raises:
        ValueError: if the checkpoint or config is of another kind.
    """
    if arguments.vision:
        return MODELS[arguments.architecture]
    source = arguments.model or arguments.config
    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in MODELS:
        raise ValueError(f"{source} is no COTS, SIMLA or COOKIE model but '{kind}'")
    return MODELS[kind]


def changed_config(source: str | None, overrides: dict) -> Config:
    """The config of a checkpoint, folder or file, with fields replaced.

    Raises:
        ValueError: if it contradicts itself with the new fields.
    """
    config = AutoConfig.from_pretrained(source)
    # Made anew, because fields that are set one by one escape the validation.
    return type(config).from_dict(config.to_dict() | overrides)


def build_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainingModel:
    """The model that the flags name, frozen and adapted as they say.

    Raises:
        ValueError: if not exactly one source is named, an override is no field of the config, the vocabulary is too
            small for the tokenizer, masked image modelling has no trained image tokenizer, or a name to freeze is
            unknown.
    """
    check_source(arguments)
    cls = model_class(arguments)
    overrides = dict(arguments.config_overrides or {})  # type: ignore[arg-type]  # parse_arguments reads texts
    fields = {field.name for field in dataclasses.fields(cls.config_class)}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(
            f"--config_overrides names what is no field of {cls.config_class.__name__}: {', '.join(unknown)}"
        )
    overrides |= {"mask_token_id": tokenizer.mask_token_id, "special_token_ids": sorted(tokenizer.all_special_ids)}
    if arguments.vision and arguments.text:
        overrides = tower_normalisation(arguments.vision) | overrides
        model = cls.from_vision_text_pretrained(
            tower(arguments.vision), tower(arguments.text), arguments.image_tokenizer, **overrides
        )
        untrained = arguments.image_tokenizer is None
    elif arguments.model:
        sizes = {name: overrides.pop(name, None) for name in ("queue_size", "similarity_queue_size") if name in fields}
        config = changed_config(arguments.model, overrides)
        model, info = cls.from_pretrained(arguments.model, config=config, output_loading_info=True)
        # Queues of another run hold keys of its data, under its ids.
        model.new_queues(**{name: getattr(config, name) if size is None else size for name, size in sizes.items()})
        untrained = any(key.startswith("image_tokenizer.") for key in info["missing_keys"])
    else:
        model, untrained = cls(changed_config(arguments.config, overrides)), True
    if arguments.image_tokenizer and not arguments.vision:
        model.set_image_tokenizer(COTSImageTokenizer.from_pretrained(arguments.image_tokenizer))
        untrained = False
    weight = model.config.tokenizer_loss
    if weight is not None and getattr(model.config, weight) > 0 and untrained:
        raise ValueError(
            f"{weight} > 0 needs a trained image tokenizer: name one with --image_tokenizer, or leave it off with "
            f"--config_overrides '{{\"{weight}\": 0}}'"
        )
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the text tower only {model.config.text_config.vocab_size}"
        )
    longest = getattr(model.config.text_config, "max_position_embeddings", tokenizer.model_max_length)
    if tokenizer.model_max_length > longest:
        raise ValueError(
            f"--max_text_length {tokenizer.model_max_length} is more than the text tower's {longest} positions"
        )
    adapted = add_lora(model, arguments.lora_rank) if arguments.lora_rank else model
    freeze_towers(model, arguments.freeze)
    return adapted


def freeze_towers(model: PreTrainingModel, names: list[str]) -> None:
    """Take the gradient from the named towers.

    Raises:
        ValueError: for a name other than "vision" and "text".
    """
    for name in names:
        if name not in TOWERS:
            raise ValueError(f"--freeze takes {' and '.join(TOWERS)}, got '{name}'")
        getattr(model.encoder, TOWERS[name]).requires_grad_(False)
    model.train(model.training)  # a tower that is not trained loses its dropout at once


def add_lora(model: PreTrainingModel, rank: int):
    """Low-rank adapters (Hu et al. 2022) on the attention of both towers; projections and token heads train in full.

    The momentum encoder gets adapters too, so that it can follow.

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
        if name.startswith(BESIDE_TOWERS) or name.endswith("mask_token"):
            parameter.requires_grad_(True)
    model.reset_momentum()
    model.train()  # freezes the momentum encoder's adapters
    return adapted


def build_data(
    arguments: DataArguments, training: COTSTrainingArguments
) -> tuple[PairDataset | PairStream, PairDataset | None]:
    """Training and evaluation pairs; broken pictures are reported in `output_dir/broken_images.jsonl`.

    Raises:
        FileNotFoundError, ValueError: naming the file, column or row that is wrong.
    """
    columns = (arguments.image_column, arguments.caption_column, arguments.image_id_column)
    report = Path(training.output_dir) / "broken_images.jsonl"
    source = (arguments.train_data, *columns, arguments.train_split, training.seed, report)
    if arguments.streaming and arguments.keep_mask:
        raise ValueError("--keep_mask needs pairs that can be counted: leave out --streaming")
    train = load_stream(*source, arguments.shuffle_block) if arguments.streaming else load_pairs(*source)
    if arguments.keep_mask:
        apply_keep_mask(train, arguments.keep_mask)
    if arguments.eval_data is None:
        return train, None
    return train, load_pairs(arguments.eval_data, *columns, arguments.eval_split)


def build_augmentation(config: Config, arguments: DataArguments) -> RandomCropFlip:
    """Crops and flips as the flags say."""
    return RandomCropFlip(config.vision_config.image_size, arguments.min_scale, arguments.flip)


def build_code_cache(model: PreTrainingModel, arguments: DataArguments, seed: int) -> CodeCache | None:
    """The codes that `--code_cache` names, if it names any.

    Raises:
        FileNotFoundError, ValueError: if the folder is not there, was made with another tokenizer, crop, size or seed,
            or masked image modelling, which needs codes, is off.
    """
    if arguments.code_cache is None:
        return None
    config = model.config
    if config.tokenizer_loss is None:
        raise ValueError("--code_cache is for masked image modelling, which COOKIE has not")
    if getattr(config, config.tokenizer_loss) == 0:
        raise ValueError(f"--code_cache is for masked image modelling, but {config.tokenizer_loss} is 0")
    settings = CodeSettings.from_tokenizer(
        model.image_tokenizer,
        config.image_tokenizer_config.image_size,
        build_augmentation(config, arguments),
        config.image_mean,
        config.image_std,
        seed,
    )
    cache = CodeCache(arguments.code_cache, settings)
    logger.info("the codes of %d crops are read from %s, others are computed", len(cache), arguments.code_cache)
    return cache


def build_frozen_pairs(
    model: PreTrainingModel,
    processor: COTSProcessor,
    pairs: PairDataset | PairStream,
    model_arguments: ModelArguments,
    arguments: DataArguments,
    training: COTSTrainingArguments,
) -> StoredFeaturePairs | None:
    """The features that `--feature_cache` asks for, if it does; with `--standardize`, new projections begin as those
    of standardised features.

    Raises:
        ValueError: if more of the towers is needed than their features, or the projections are not new.
    """
    if model_arguments.standardize and (arguments.feature_cache is None or model_arguments.model):
        raise ValueError("--standardize is for new projections and needs --feature_cache, from which it reads")
    if arguments.feature_cache is None:
        return None
    check_features_suffice(model, model_arguments, pairs)
    model.to(training.device)  # Trainer would only later
    with training.main_process_first(desc="features of frozen towers"):
        frozen = store_features(
            model.encoder,
            processor,
            pairs,  # type: ignore[arg-type]  # checked
            arguments.feature_cache,
            workers=training.dataloader_num_workers,
            progress=training.should_log and not training.disable_tqdm,
        )
    if model_arguments.standardize:
        every = frozen.all_features()
        model.encoder.standardize_projections(every["image_features"], every["text_features"])
        model.reset_momentum()
    return frozen


def check_features_suffice(
    model: PreTrainingModel, arguments: ModelArguments, pairs: PairDataset | PairStream
) -> None:
    """Training needs no more of the towers than a global feature each.

    Raises:
        ValueError: saying what is in the way.
    """
    if set(arguments.freeze) != set(TOWERS) or arguments.lora_rank:
        raise ValueError("--feature_cache needs towers that are not trained: --freeze vision text, without LoRA")
    if not isinstance(model, COTSForPreTraining):
        raise ValueError("--feature_cache is for COTS: SIMLA and COOKIE read their towers' tokens")
    if model.config.uses_masks:
        raise ValueError(
            "--feature_cache holds features of nothing masked: leave the token level off with --config_overrides "
            '\'{"mvm_weight": 0, "mlm_weight": 0}\''
        )
    if not isinstance(pairs, PairDataset):
        raise ValueError("--feature_cache needs pairs that can be counted: leave out --streaming")


def build_views(config: Config, arguments: DataArguments, pairs: PairDataset | PairStream) -> SecondViews | None:
    """The second views that a COOKIE's contrasts ask for; with sibling captions, the pairs will hand those out.

    Raises:
        ValueError: if sibling captions are asked of a stream.
    """
    if not isinstance(config, CookieConfig):
        return None
    if config.textual_weight > 0 and config.text_view == "sibling":
        if not isinstance(pairs, PairDataset):
            raise ValueError('text_view="sibling" needs pairs that can be counted: leave out --streaming')
        pairs.siblings = True
    return SecondViews.from_config(config, build_augmentation(config, arguments))


def build_collator(
    processor: COTSProcessor,
    config: Config,
    arguments: DataArguments,
    code_cache: CodeCache | None = None,
    views: SecondViews | None = None,
) -> COTSCollator:
    """Batches with the flags' augmentation, with codes where the cache has them, and with second views."""
    return COTSCollator(processor, config, build_augmentation(config, arguments), code_cache, views)
