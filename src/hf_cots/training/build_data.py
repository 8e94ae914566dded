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
            dropped and there is no complete one.
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
            f"{arguments.train_data} has only {len(pairs)} {pairs.medium}s, fewer than a batch of {batch_size}: lower "
            "--per_device_train_batch_size"
        )
    return pairs


def load_eval_data(arguments: ImageArguments) -> PairDataset | None:
    """Load the evaluation data, if any are named.

    Raises:
        FileNotFoundError, ValueError: naming the file, column or row that is wrong.
    """
    if arguments.eval_data is None:
        return None
    split, separator = arguments.eval_split, arguments.separator
    return load_pairs(arguments.eval_data, **arguments.columns, split=split, separator=separator)


def build_data(arguments: DataArguments, training: COTSTrainingArguments) -> tuple[Pairs, PairDataset | None]:
    """Training pairs without those of `--keep_mask`, and evaluation pairs.

    Raises:
        FileNotFoundError, ValueError: as [`load_train_data`], or if a stream is to be masked.
    """
    if arguments.streaming and arguments.keep_mask:
        raise ValueError("--keep_mask needs a data set with a known length: leave out --streaming")
    train_pairs = load_train_data(arguments, training)
    if arguments.keep_mask:
        apply_keep_mask(train_pairs, arguments.keep_mask)  # type: ignore[arg-type]  # no stream: refused above
    return train_pairs, load_eval_data(arguments)


def prepare_for_clips(
    model: PreTrainingModel, processor: COTSProcessor, model_arguments: ModelArguments, arguments: DataArguments
) -> None:
    """Check that a model can be trained on the clips of `--video_column`, if it is set, and let its files say of how
    many frames its clips are.

    Raises:
        ValueError: naming what is for images alone.
    """
    if arguments.video_column is None:
        return
    config = model.config
    if not isinstance(config, COTSConfig):
        raise ValueError("--video_column is for COTS: SIMLA and COOKIE are trained on images")
    if config.uses_masks:
        raise ValueError(
            "--video_column: the token level masks images, not clips: turn it off with --config_overrides "
            '\'{"mvm_weight": 0, "mlm_weight": 0}\''
        )
    if model_arguments.standardize_features:
        raise ValueError("--standardize_features is for images, not for the clips of --video_column")
    if arguments.feature_cache and arguments.frame_jitter and "vision" in model_arguments.freeze:
        raise ValueError("--frame_jitter takes other frames in each epoch, of which --feature_cache keeps none")
    config.num_frames = processor.video_processor.num_frames = arguments.num_frames


def build_augmentation(config: Config, arguments: DataArguments) -> RandomCropFlip:
    """Random crops and flips as the flags ask."""
    size = config.vision_config.image_size
    return RandomCropFlip(size, arguments.min_scale, arguments.flip, recolor=arguments.recolor)


def build_code_cache(model: PreTrainingModel, arguments: DataArguments, seed: int) -> CodeCache | None:
    """Open the image codes of `--code_cache`, if it is set.

    Raises:
        FileNotFoundError, ValueError: if the folder does not exist, was made with another tokenizer, crop, size or
            seed, or masked image modeling, which needs codes, is off.
    """
    if arguments.code_cache is None:
        return None
    config = model.config
    if config.tokenizer_loss is None:
        raise ValueError("--code_cache is for masked image modeling, which COOKIE does not have")
    if getattr(config, config.tokenizer_loss) == 0:
        raise ValueError(f"--code_cache is for masked image modeling, but {config.tokenizer_loss} is 0")
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


def build_stored_features(
    model: PreTrainingModel,
    processor: COTSProcessor,
    pairs: Pairs,
    model_arguments: ModelArguments,
    arguments: DataArguments,
    training: COTSTrainingArguments,
) -> StoredFeaturePairs | StoredTexts | None:
    """Compute or read the features of `--feature_cache`, if it is set: of all pairs, or of their texts alone where the
    image tower is trained. `--standardize_features` initializes the projections with them.

    Raises:
        ValueError: if training needs more of the towers than their features, or the projections are not new.
    """
    if model_arguments.standardize_features and (arguments.feature_cache is None or model_arguments.model):
        raise ValueError(
            "--standardize_features needs --feature_cache, and new projections, which --model does not have"
        )
    measured = model_arguments.standardize_features or model_arguments.model is not None
    if model.config.standardize_features and not measured:
        raise ValueError("the config's standardize_features needs --standardize_features, which measures them")
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
    """Check that training needs nothing of the frozen towers but one global feature per image and text; of an image
    tower that is trained, texts alone are stored.

    Raises:
        ValueError: naming the flag or field that needs more.
    """
    frozen = set(arguments.freeze)
    if frozen not in (set(TOWERS), {"text"}) or arguments.lora_rank:
        raise ValueError(
            "--feature_cache needs towers that are not trained: --freeze vision text, or --freeze text (images are "
            "augmented, and those of a frozen image tower alone are not stored), without LoRA"
        )
    if frozen == {"text"} and arguments.standardize_features:
        raise ValueError("--standardize_features needs the features of both towers: --freeze vision text")
    if not isinstance(model, COTSForPreTraining):
        raise ValueError("--feature_cache is for COTS: SIMLA and COOKIE read their towers' tokens")
    if model.config.uses_masks and frozen != {"text"}:
        raise ValueError(
            "--feature_cache stores features of unmasked inputs: turn the token level off with --config_overrides "
            '\'{"mvm_weight": 0, "mlm_weight": 0}\''
        )
    if not isinstance(pairs, PairDataset):
        raise ValueError("--feature_cache needs a data set with a known length: leave out --streaming")


def build_views(config: Config, arguments: DataArguments, pairs: Pairs) -> SecondViews | None:
    """The second views of COOKIE's contrasts within a modality, None for other models; `pairs` are told if a second
    caption of the same image serves as one.

    Raises:
        ValueError: if other captions are asked of a stream.
    """
    if not isinstance(config, CookieConfig):
        return None
    if config.textual_weight > 0 and config.text_view == "other_caption":
        if not isinstance(pairs, PairDataset):
            raise ValueError('text_view="other_caption" needs a data set with a known length: leave out --streaming')
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
    """The collator with the flags' augmentation, stored codes, second views and stored features of texts."""
    augmentation, clips = build_augmentation(config, arguments), arguments.video_column is not None
    return COTSCollator(processor, config, augmentation, code_cache, views, stored_texts, clips)
