"""Build data sets, caches and the collator from the flags; contradictions are errors before training starts."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..data.augmentation import RandomCropFlip
from ..data.code_cache import CodeCache, CodeSettings
from ..data.collator import COTSCollator
from ..data.frozen_features import StoredFeaturePairs, StoredTexts, store_features, store_texts
from ..data.keep_mask import apply_keep_mask
from ..data.sources import PairDataset, load_pairs
from ..data.streams import PairStream, load_stream
from ..data.views import SecondViews
from ..models import CookieConfig, COTSConfig, COTSForPreTraining, COTSProcessor
from ..models.pretraining import PreTrainingModel
from .arguments import COTSTrainingArguments, DataArguments, ImageArguments, ModelArguments
from .build_model import Config
from .parameter_groups import TOWERS


logger = logging.getLogger(__name__)

Pairs = PairDataset | PairStream


def load_train_data(arguments: ImageArguments, training: TrainingArguments) -> Pairs:
    """Load or open the training data; unreadable images are reported in `output_dir/broken_images.jsonl`.

    Raises:
        FileNotFoundError, ValueError: naming the file, column or row that is wrong, or if incomplete batches are
            dropped and no batch is complete.
    """
    source: dict[str, Any] = {
        "split": arguments.train_split,
        "separator": arguments.separator,
        "seed": training.seed,
        "report": Path(training.output_dir) / "broken_images.jsonl",
    }
    if isinstance(arguments, DataArguments):
        source["frame_jitter"] = arguments.frame_jitter
    if arguments.streaming:
        return load_stream(
            arguments.train_data, **arguments.columns, **source, shuffle_buffer_size=arguments.shuffle_buffer_size
        )
    pairs = load_pairs(arguments.train_data, **arguments.columns, **source)
    batch_size = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and len(pairs) < batch_size:
        raise ValueError(
            f"{arguments.train_data} has only {len(pairs)} {pairs.medium}s, less than a batch of {batch_size}: lower "
            "--per_device_train_batch_size"
        )
    return pairs


def load_eval_data(arguments: ImageArguments) -> PairDataset | None:
    """Load the evaluation data, if `--eval_data` is set.

    Raises:
        FileNotFoundError, ValueError: naming the file, column or row that is wrong.
    """
    if arguments.eval_data is None:
        return None
    split, separator = arguments.eval_split, arguments.separator
    return load_pairs(arguments.eval_data, **arguments.columns, split=split, separator=separator)


def build_data(arguments: DataArguments, training: COTSTrainingArguments) -> tuple[Pairs, PairDataset | None]:
    """Load the training pairs that `--keep_mask` keeps, and the evaluation pairs.

    Raises:
        FileNotFoundError, ValueError: as [`load_train_data`], or if `--keep_mask` is combined with `--streaming`.
    """
    if arguments.streaming and arguments.keep_mask:
        raise ValueError("--keep_mask needs a data set of known length: leave out --streaming")
    train_pairs = load_train_data(arguments, training)
    if arguments.keep_mask:
        apply_keep_mask(train_pairs, arguments.keep_mask)  # type: ignore[arg-type]  # no stream: refused above
    return train_pairs, load_eval_data(arguments)


def prepare_for_clips(
    model: PreTrainingModel, processor: COTSProcessor, model_arguments: ModelArguments, arguments: DataArguments
) -> None:
    """If `--video_column` is set, check that the model can be trained on clips, and save the number of frames in its
    config.

    Raises:
        ValueError: naming the flag or field that only supports images.
    """
    if arguments.video_column is None:
        return
    config = model.config
    if not isinstance(config, COTSConfig):
        raise ValueError("--video_column is only supported by COTS: SIMLA and COOKIE are trained on images")
    if config.uses_masks:
        raise ValueError(
            "--video_column: the token level masks images, not clips: turn it off with --config_overrides "
            '\'{"mvm_weight": 0, "mlm_weight": 0}\''
        )
    if model_arguments.standardize_features:
        raise ValueError("--standardize_features does not support clips: remove it or --video_column")
    if arguments.feature_cache and arguments.frame_jitter and "vision" in model_arguments.freeze:
        raise ValueError(
            "--frame_jitter samples other frames in each epoch, which --feature_cache cannot store: remove one of the "
            "two"
        )
    config.num_frames = processor.video_processor.num_frames = arguments.num_frames


def build_augmentation(config: Config, arguments: DataArguments) -> RandomCropFlip:
    """Build the random crops and flips that the flags ask for."""
    size = config.vision_config.image_size
    return RandomCropFlip(size, arguments.min_scale, arguments.flip, recolor=arguments.recolor)


def build_code_cache(model: PreTrainingModel, arguments: DataArguments, seed: int) -> CodeCache | None:
    """Open the image codes of `--code_cache`, if it is set.

    Raises:
        FileNotFoundError, ValueError: if the folder does not exist, was written for another tokenizer, crop, size or
            seed, or masked image modeling, which needs the codes, is off.
    """
    if arguments.code_cache is None:
        return None
    config = model.config
    if config.tokenizer_loss is None:
        raise ValueError("--code_cache is only for masked image modeling, which COOKIE does not have: remove it")
    if getattr(config, config.tokenizer_loss) == 0:
        raise ValueError(
            f"--code_cache is only for masked image modeling, but {config.tokenizer_loss} is 0: remove it"
        )
    settings = CodeSettings.from_tokenizer(
        model.image_tokenizer,
        config.image_tokenizer_config.image_size,
        build_augmentation(config, arguments),
        config.image_mean,
        config.image_std,
        seed,
    )
    cache = CodeCache(arguments.code_cache, settings)
    logger.info(
        "%d crops have precomputed codes in %s; the codes of other crops are computed",
        len(cache),
        arguments.code_cache,
    )
    return cache


def build_stored_features(
    model: PreTrainingModel,
    processor: COTSProcessor,
    pairs: Pairs,
    model_arguments: ModelArguments,
    arguments: DataArguments,
    training: COTSTrainingArguments,
) -> StoredFeaturePairs | StoredTexts | None:
    """If `--feature_cache` is set, compute or read the stored features: of all pairs, or only of their texts if the
    image tower is trained. `--standardize_features` initializes the projections with them.

    Raises:
        ValueError: if training needs more than the towers' features, or the projections are not new.
    """
    if model_arguments.standardize_features and (arguments.feature_cache is None or model_arguments.model):
        raise ValueError(
            "--standardize_features needs --feature_cache and new projections, which a --model checkpoint does not "
            "have"
        )
    measured = model_arguments.standardize_features or model_arguments.model is not None
    if model.config.standardize_features and not measured:
        raise ValueError(
            "the config field standardize_features needs the flag --standardize_features, which measures mean and "
            "deviation"
        )
    if arguments.feature_cache is None:
        return None
    check_features_suffice(model, model_arguments, pairs)
    model.to(training.device)  # Trainer would only do so later
    precision = "bfloat16" if training.bf16 else "float32"
    with training.main_process_first(desc="features of frozen towers"):
        if set(model_arguments.freeze) == {"text"}:
            return store_texts(model.encoder, processor, pairs, arguments.feature_cache, precision=precision)  # type: ignore[arg-type]
        frozen = store_features(
            model.encoder,
            processor,
            pairs,  # type: ignore[arg-type]  # checked
            arguments.feature_cache,
            workers=training.dataloader_num_workers,
            progress=training.should_log and not training.disable_tqdm,
            precision=precision,
        )
    if model_arguments.standardize_features:
        features = frozen.all_features()
        model.encoder.standardize_projections(features["image_features"], features["text_features"])
        model.reset_momentum()
    return frozen


def check_features_suffice(model: PreTrainingModel, arguments: ModelArguments, pairs: Pairs) -> None:
    """Check that training needs no more of the frozen towers than one global feature per image and text. If the image
    tower is trained, only text features are stored.

    Raises:
        ValueError: naming the flag or field that needs more.
    """
    frozen = set(arguments.freeze)
    if frozen not in (set(TOWERS), {"text"}) or arguments.lora_rank:
        raise ValueError(
            "--feature_cache needs frozen towers: set --freeze vision text, or --freeze text (images are "
            "augmented, so a frozen image tower alone cannot be stored), and do not use LoRA"
        )
    if frozen == {"text"} and arguments.standardize_features:
        raise ValueError("--standardize_features needs the features of both towers: set --freeze vision text")
    if not isinstance(model, COTSForPreTraining):
        raise ValueError("--feature_cache is only supported by COTS: SIMLA and COOKIE use the towers' token states")
    if model.config.uses_masks and frozen != {"text"}:
        raise ValueError(
            "--feature_cache stores features of unmasked inputs: turn off the token level with --config_overrides "
            '\'{"mvm_weight": 0, "mlm_weight": 0}\''
        )
    if not isinstance(pairs, PairDataset):
        raise ValueError("--feature_cache needs a data set of known length: leave out --streaming")


def build_views(config: Config, arguments: DataArguments, pairs: Pairs) -> SecondViews | None:
    """Build the second views for COOKIE's contrasts within one modality; None for other models. If another caption of
    the same image serves as a view, `pairs` are set to return it.

    Raises:
        ValueError: if other captions are needed from a stream.
    """
    if not isinstance(config, CookieConfig):
        return None
    if config.textual_weight > 0 and config.text_view == "other_caption":
        if not isinstance(pairs, PairDataset):
            raise ValueError('text_view="other_caption" needs a data set of known length: leave out --streaming')
        pairs.other_captions = True
    return SecondViews.from_config(config, build_augmentation(config, arguments))


def build_collator(
    processor: COTSProcessor,
    config: Config,
    arguments: DataArguments,
    code_cache: CodeCache | None = None,
    views: SecondViews | None = None,
    stored_texts: StoredTexts | None = None,
) -> COTSCollator:
    """Build the collator with the flags' augmentation, stored codes, second views and stored text features."""
    augmentation, clips = build_augmentation(config, arguments), arguments.video_column is not None
    return COTSCollator(processor, config, augmentation, code_cache, views, stored_texts, clips)
