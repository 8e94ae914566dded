"""The flags of `python -m hf_cots.train` and `hf_cots.train_dvae`, and the recipes that hold them."""

import copy
import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg

from .._errors import naming
from ..models.renamed_fields import RENAMED, rename_fields
from .settings import (
    check_early_stopping,
    check_upload,
    choose_best_by,
    prepare_early_stopping,
    watch_in_the_right_direction,
)


logger = logging.getLogger(__name__)

# Flags that recipes may still write under an older name.
RENAMED_FLAGS = {
    "kl_share": "kl_warmup_fraction",
    "shuffle_block": "shuffle_buffer_size",
    "standardize": "standardize_features",
    "temperature_share": "temperature_anneal_fraction",
}

LICENSE_HELP = "License of the weights for the model card, as a Hub identifier such as apache-2.0; yours to choose."


def check_range(flag: str, value: float, low: float, high: float = math.inf, *, open_below: bool = False) -> None:
    """Check that a flag's number is finite and within its range.

    Raises:
        ValueError: naming the flag, if the number is not finite or not in the range.
    """
    if not (math.isfinite(value) and low <= value <= high) or (open_below and value == low):
        least = f"above {low}" if open_below else f"at least {low}"
        most = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"--{flag} must be {least}{most}, got {value}")


def check_license(name: str | None) -> None:
    """Check that a license is written like the Hub's identifiers.

    Raises:
        ValueError: if it is not.
    """
    if name is not None and not re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*[+]?", name):
        raise ValueError(
            f"--license {name!r} is not a license identifier of the Hub (such as apache-2.0, cc-by-4.0 or other): see "
            "https://hf.co/docs/hub/repositories-licenses"
        )


def check_batches(training: Any) -> None:
    """Check that batch sizes are at least 1; transformers does not check them.

    Raises:
        ValueError: naming the flag.
    """
    for flag in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        check_range(flag, getattr(training, flag), 1)


@dataclass
class ModelArguments:
    """The source of the model: exactly one of a checkpoint, two pretrained towers, or a config."""

    _argument_group_name = "Model"

    model: str | None = HfArg(
        default=None,
        help="Checkpoint to start from: a COTS, SIMLA or COOKIE, or for a COTS any dual encoder (CLIP, SigLIP, ...).",
    )
    vision: str | None = HfArg(
        default=None, help="Image tower: Hub id or folder, or a JSON config for random weights."
    )
    text: str | None = HfArg(default=None, help="Text tower: Hub id or folder, or a JSON config for random weights.")
    architecture: Literal["cots", "simla", "cookie"] = HfArg(
        default="cots", help="Model to build from --vision and --text; not needed with --model or --config."
    )
    config: str | None = HfArg(
        default=None, help="COTS, SIMLA or COOKIE config (Hub id, folder or file) to train from random weights."
    )
    config_overrides: dict | str | None = HfArg(
        default=None, help='Config fields to override, as JSON or a YAML mapping: {"queue_size": 4096}.'
    )
    image_tokenizer: str | None = HfArg(
        default=None, help="Trained image tokenizer: Hub id or folder. Required if mvm_weight (SIMLA: mim_weight) > 0."
    )
    tokenizer: str | None = HfArg(
        default=None,
        help="Text tokenizer: Hub id or folder. Defaults to the tokenizer of --model, --text or --config.",
    )
    max_text_length: int | None = HfArg(
        default=None,
        help="Maximum number of tokens per text; the rest is truncated. Defaults to the limit of --model, else 64.",
    )
    image_size: int | None = HfArg(
        default=None,
        help="Image size in pixels, if different from the image tower's; position embeddings are interpolated.",
    )
    freeze: list[str] = HfArg(
        default_factory=list,
        help="Towers to freeze: vision, text or both; vision:8 freezes only the embeddings and the first 8 layers.",
    )
    standardize_features: bool = HfArg(
        default=False,
        help="Initialize new projections as if features had zero mean and unit variance (needs --feature_cache).",
    )
    lora_rank: int = HfArg(
        default=0, help="Rank of the LoRA adapters for training the towers (needs peft); 0 for none."
    )
    license: str | None = HfArg(default=None, help=LICENSE_HELP)

    def __post_init__(self) -> None:
        if self.max_text_length is not None:
            check_range("max_text_length", self.max_text_length, 1)
        check_range("lora_rank", self.lora_rank, 0)
        check_license(self.license)


@dataclass
class ImageTokenizerArguments:
    """The image tokenizer to train: a new one, or one to continue training."""

    _argument_group_name = "Image tokenizer"

    model: str | None = HfArg(default=None, help="Image tokenizer to continue training from: Hub id or folder.")
    config: dict | str | None = HfArg(
        default=None, help='COTSImageTokenizerConfig fields, as JSON or a YAML mapping: {"codebook_size": 512}.'
    )
    license: str | None = HfArg(default=None, help=LICENSE_HELP)

    def __post_init__(self) -> None:
        check_license(self.license)


@dataclass
class ImageArguments:
    """The images to train and evaluate on."""

    _argument_group_name = "Data"

    train_data: str = HfArg(
        help="Training data: Hub id, folder, Parquet, CSV, JSON lines or tar files; glob patterns are allowed."
    )
    eval_data: str | None = HfArg(default=None, help="Evaluation data, in any format that --train_data accepts.")
    train_split: str = HfArg(default="train", help="Split of a Hub data set to train on.")
    eval_split: str = HfArg(default="test", help="Split of a Hub data set to evaluate on.")
    image_column: str = HfArg(default="image", help="Column of images or image paths.")
    separator: str | None = HfArg(
        default=None, help="Separator of CSV files (a character, or tab); detected from the header by default."
    )
    streaming: bool = HfArg(
        default=False, help="Stream the training data instead of caching and indexing it (needs --max_steps)."
    )
    shuffle_buffer_size: int = HfArg(default=1000, help="Size of the shuffle buffer in pairs, with --streaming.")
    min_scale: float = HfArg(default=0.2, help="Minimum area of a random crop, as a fraction of the image's area.")
    flip: float = HfArg(default=0.5, help="Probability of a horizontal flip.")
    recolor: float = HfArg(
        default=0.0,
        help="Probability of replacing black and white by random colors, for drawings whose color has no meaning.",
    )

    def __post_init__(self) -> None:
        check_range("shuffle_buffer_size", self.shuffle_buffer_size, 1)
        check_range("min_scale", self.min_scale, 0, 1, open_below=True)
        check_range("flip", self.flip, 0, 1)
        check_range("recolor", self.recolor, 0, 1)

    @property
    def columns(self) -> dict[str, Any]:
        """The column arguments for [`load_pairs`] and [`load_stream`]; captions are not read."""
        return {"image_column": self.image_column, "caption_column": None, "image_id_column": None}


@dataclass
class DataArguments(ImageArguments):
    """The image-text pairs to train and evaluate on."""

    caption_column: str = HfArg(
        default="auto",
        help="Column of captions (texts or lists of texts); by default the one named caption, captions, text or txt.",
    )
    image_id_column: str | None = HfArg(
        default=None,
        help="Column of image ids (equal values mean the same image); by default the image's path or row.",
    )
    video_column: str | None = HfArg(
        default=None,
        help="Column of clips or clip paths, to train on clips instead of images; for a folder of clips: video.",
    )
    num_frames: int = HfArg(
        default=8, help="Frames to sample per clip: the middle of each of this many equal segments."
    )
    frame_jitter: bool = HfArg(default=False, help="In training, sample each frame at a random time of its segment.")
    keep_mask: str | None = HfArg(
        default=None, help="keep_mask.json from `hf-cots audit`: training pairs to leave out."
    )
    code_cache: str | None = HfArg(
        default=None, help="Folder of precomputed image codes from `hf-cots tokenize`; missing codes are computed."
    )
    feature_cache: str | None = HfArg(
        default=None,
        help="Folder for caching the features of a frozen text tower, or of two frozen towers (without augmentation).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_frames", self.num_frames, 1)
        if self.frame_jitter and self.video_column is None:
            raise ValueError("--frame_jitter is only for clips: give their column with --video_column")

    @property
    def columns(self) -> dict[str, Any]:
        """The column arguments for [`load_pairs`] and [`load_stream`]."""
        names = ("image_column", "caption_column", "image_id_column", "video_column", "num_frames")
        return {name: getattr(self, name) for name in names}


MOST_WORKERS = 8


def default_workers(use_cpu: bool) -> int:
    """The default number of data loading processes: with a GPU, one for each core available to this process but one;
    on a CPU none, because all cores train."""
    if use_cpu or not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine share them
    return max(1, min(MOST_WORKERS, cores - 1))


@dataclass
class COTSTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with defaults and extra flags for [`COTSTrainer`]."""

    remove_unused_columns: bool = HfArg(default=False, help="Must be false: data set items are pairs, not columns.")
    ddp_broadcast_buffers: bool | None = HfArg(
        default=False, help="Must be false: the queues are synchronized without it."
    )
    label_names: list[str] | None = HfArg(
        default_factory=lambda: ["image_ids"], help="Names of the model inputs that are labels."
    )
    logging_steps: float = HfArg(default=10, help="Log every N steps; a value below 1 is a fraction of all steps.")
    logging_nan_inf_filter: bool = HfArg(
        default=False, help="Leave non-finite losses out of the log; this makes every step wait for the GPU."
    )
    dataloader_num_workers: int = HfArg(
        default=None,
        help="Number of data loading processes. Defaults to the number of cores minus 1 (1 to 8) with a GPU, else 0.",
    )
    peak_tflops: float | None = HfArg(
        default=None,
        help="Peak throughput of one GPU in TFLOPS; if set, the log shows the fraction that is used (mfu).",
    )
    gradient_cache: bool = HfArg(
        default=False,
        help="Contrast all pairs of an optimizer step in the memory of one micro-batch (for in-batch contrasts).",
    )
    text_learning_rate: float | None = HfArg(
        default=None, help="Learning rate of the text tower; defaults to --learning_rate."
    )
    vision_learning_rate: float | None = HfArg(
        default=None, help="Learning rate of the image tower; defaults to --learning_rate."
    )
    layer_decay: float | None = HfArg(
        default=None,
        help="Layer-wise learning rate decay: the factor from each tower layer to the one below; 1 for none.",
    )
    ema_decay: float | None = HfArg(
        default=None,
        help="Decay of an exponential moving average of the weights, which is evaluated and saved instead of them.",
    )
    channels_last: bool = HfArg(
        default=False, help="Use the channels-last memory format, in which convolutional image towers run faster."
    )
    early_stopping_patience: int | None = HfArg(
        default=None, help="Stop after this many evaluations without improvement, and load the best model."
    )

    def __post_init__(self):
        for flag in ("layer_decay", "ema_decay"):
            if getattr(self, flag) is not None:
                check_range(flag, getattr(self, flag), 0, 1, open_below=True)
        if self.early_stopping_patience is not None:
            check_range("early_stopping_patience", self.early_stopping_patience, 1)
        if self.peak_tflops is not None:
            check_range("peak_tflops", self.peak_tflops, 0, open_below=True)
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_workers(self.use_cpu)
        if str(self.fsdp).lower() == "true":  # a switch, which TrainingArguments still declares as a text
            self.fsdp = True
        prepare_early_stopping(self)
        choose_best_by(self, "text_to_image_R@1", smaller_is_better=("_rank",))
        super().__post_init__()
        check_early_stopping(self)
        watch_in_the_right_direction(self)


@dataclass
class DVAETrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with DALL-E's settings (Ramesh et al. 2021, appendix A.2): AdamW with a cosine
    schedule from 1e-4 to 1.25e-6, and schedules for the temperature and the KL weight. DALL-E's took 150,000 and 5,000
    of 3 million updates; here they are fractions of all steps, and the learning rate decays until the last step."""

    remove_unused_columns: bool = HfArg(default=False, help="Must be false: data set items are images, not columns.")
    learning_rate: float = HfArg(default=1e-4, help="Initial learning rate.")
    lr_scheduler_type: str = HfArg(default="cosine_with_min_lr", help="Learning rate schedule.")
    lr_scheduler_kwargs: dict | str | None = HfArg(
        default_factory=lambda: {"min_lr_rate": 0.0125}, help="Arguments of the learning rate schedule, as JSON."
    )
    weight_decay: float = HfArg(default=1e-4, help="Weight decay of AdamW.")
    dataloader_drop_last: bool = HfArg(
        default=True, help="Drop an incomplete last batch, whose images would weigh more."
    )
    logging_steps: float = HfArg(default=10, help="Log every N steps; a value below 1 is a fraction of all steps.")
    final_temperature: float = HfArg(
        default=1 / 16, help="Final temperature of the Gumbel-softmax; it starts at the config's gumbel_temperature."
    )
    temperature_anneal_fraction: float = HfArg(
        default=0.05, help="Fraction of the steps over which the temperature is annealed."
    )
    kl_warmup_fraction: float = HfArg(
        default=1 / 600, help="Fraction of the steps over which the KL weight rises to the config's."
    )

    def __post_init__(self):
        choose_best_by(self, "mse", smaller_is_better=("mse", "mae", "collapsed"))
        super().__post_init__()
        watch_in_the_right_direction(self)


@dataclass
class TeacherArguments:
    """The teacher text tower, and the vocabulary size of the student, which is initialized from it."""

    _argument_group_name = "Model"

    teacher: str = HfArg(
        help="Text tower with a WordPiece tokenizer, or a COTS with such a text tower: Hub id or folder."
    )
    vocab_size: int = HfArg(
        default=30_000,
        help="Size of the vocabulary to learn from the translations; its new pieces are added to the teacher's.",
    )

    def __post_init__(self) -> None:
        check_range("vocab_size", self.vocab_size, 1)


@dataclass
class TranslationArguments:
    """The translation pairs to train and evaluate on."""

    _argument_group_name = "Data"

    train_data: str = HfArg(
        help="Translation pairs: Hub id, folder, Parquet, CSV, TSV or JSON lines; glob patterns are allowed."
    )
    eval_data: str | None = HfArg(default=None, help="Evaluation data, in any format that --train_data accepts.")
    train_split: str = HfArg(default="train", help="Split of a Hub data set to train on.")
    eval_split: str = HfArg(default="test", help="Split of a Hub data set to evaluate on.")
    english_column: str = HfArg(default="english", help="Column of the English texts.")
    translation_column: str = HfArg(default="translation", help="Column of the translations.")
    language_column: str | None = HfArg(
        default="language", help='Column of the languages of the translations; "" if there is none.'
    )
    languages: list[str] = HfArg(default_factory=list, help="Languages to train on; all by default.")
    separator: str | None = HfArg(
        default=None, help="Separator of CSV files (a character, or tab); detected from the header by default."
    )
    max_text_length: int = HfArg(default=128, help="Maximum number of tokens per text; longer texts are truncated.")

    def __post_init__(self) -> None:
        check_range("max_text_length", self.max_text_length, 1)

    @property
    def columns(self) -> dict[str, Any]:
        """The column arguments for [`load_translations`]."""
        names = ("english_column", "translation_column", "separator")
        return {name: getattr(self, name) for name in names} | {"language_column": self.language_column or None}


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with defaults for a student that is initialized from its teacher."""

    remove_unused_columns: bool = HfArg(default=False, help="Must be false: data set items are texts, not columns.")
    learning_rate: float = HfArg(default=1e-4, help="Learning rate of the layers, which start as the teacher's.")
    embedding_learning_rate: float = HfArg(default=1e-3, help="Learning rate of the word embeddings.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Learning rate schedule.")
    logging_steps: float = HfArg(default=10, help="Log every N steps; a value below 1 is a fraction of all steps.")

    def __post_init__(self):
        check_range("embedding_learning_rate", self.embedding_learning_rate, 0)
        choose_best_by(self, "accuracy", smaller_is_better=("mse",))
        super().__post_init__()
        watch_in_the_right_direction(self)


# ---------------------------------------------------------------------- recipes


def to_flags(settings: Mapping[str, Any]) -> list[str]:
    """Convert a recipe's mapping to command-line flags; entries without a value keep the flag's default."""
    flags = []
    for name, value in settings.items():
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{name}", *map(str, values)]
    return flags


def rename_keys(settings: Mapping[str, Any], new_names: Mapping[str, str], source: str) -> dict[str, Any]:
    """Rename the keys of `settings` that have an old name, with a warning that lists them.

    Raises:
        ValueError: if a setting is given under both its old and its new name.
    """
    old = [name for name in settings if name in new_names]
    for name in old:
        if new_names[name] in settings:
            raise ValueError(f"{source} sets {new_names[name]} twice, once under its old name {name}: remove one")
    if old:
        logger.warning("%s uses old names: %s", source, ", ".join(f"{name} is now {new_names[name]}" for name in old))
    return {new_names.get(name, name): value for name, value in settings.items()}


def read_recipe(recipe: Mapping[str, Any] | Path | str) -> dict[str, Any]:
    """Read the flags of a recipe: a mapping, or a YAML or JSON file that contains one.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it does not contain a mapping, or sets a flag under both its old and its new name.
    """
    if isinstance(recipe, Mapping):
        return rename_keys(recipe, RENAMED_FLAGS, "the recipe")
    with naming(recipe):
        settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))  # JSON is YAML too
    check_size(settings, recipe)
    if not isinstance(settings, dict):
        raise ValueError(f"{recipe} must contain a mapping of flags to values, got {type(settings).__name__}")
    return rename_keys(settings, RENAMED_FLAGS, str(recipe))


def check_size(settings: Any, source: Path | str, most: int = 100_000) -> None:
    """Check that a recipe's YAML aliases do not expand to a huge number of values.

    Raises:
        ValueError: naming the file, if it has more values than `most`.
    """
    left, count = [settings], 0
    while left:
        value = left.pop()
        count += 1
        if count > most:
            raise ValueError(f"{source}: its YAML aliases expand to more than {most:,} values")
        if isinstance(value, (dict, list)):
            left += value.values() if isinstance(value, dict) else value


def parse_mapping(flag: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Parse a flag's JSON mapping; returns an empty mapping if the flag is not set.

    Raises:
        ValueError: if it is not JSON, or not a mapping.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--{flag} is not valid JSON: {error}") from None
    if not isinstance(value, Mapping | None):
        raise ValueError(f"--{flag} must be a mapping of fields to values, got {value!r}")
    return dict(value or {})


def help_groups(kind: type) -> list[type]:
    """Split `kind` into dataclasses, one for each group of `--help`: training arguments are divided into this
    package's and those of transformers."""
    if not issubclass(kind, TrainingArguments):
        return [kind]
    inherited = {field.name for field in fields(TrainingArguments)}
    own = [field for field in fields(kind) if field.name not in inherited]
    groups = {"Training": own, "Training (transformers.TrainingArguments)": [f for f in fields(kind) if f not in own]}
    return [
        make_dataclass(
            kind.__name__,
            [(field.name, field.type, copy.copy(field)) for field in group],
            namespace={"_argument_group_name": title},
        )
        for title, group in groups.items()
    ]


def parse_flags(kinds: tuple[type, ...], argv: list[str] | None, description: str) -> tuple[Any, ...]:
    """Parse flags, or a recipe file followed by flags, into one object of each dataclass in `kinds`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it does not contain a mapping, or a flag is unknown.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = to_flags(read_recipe(argv[0])) + argv[1:]
    elif argv and not argv[0].startswith("-"):
        raise ValueError(
            f"{argv[0]} is neither a recipe (.yaml, .yml or .json) nor a flag: give the data with --train_data"
        )
    parser = HfArgumentParser([group for kind in kinds for group in help_groups(kind)], description=description)
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(f"unknown flags: {' '.join(unknown)}")
    check_batches(values)
    parsed = tuple(kind(**{f.name: getattr(values, f.name) for f in fields(kind) if f.init}) for kind in kinds)
    for arguments in parsed:
        if isinstance(arguments, TrainingArguments):
            check_upload(arguments)
    return parsed


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, COTSTrainingArguments]:
    """Parse the arguments of `hf_cots.train`: flags, or a YAML or JSON file with flags on top, as in
    `recipe.yaml --learning_rate 1e-4`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it does not contain a mapping, a flag is unknown, or the overrides are not a JSON mapping.
    """
    kinds = (ModelArguments, DataArguments, COTSTrainingArguments)
    model, data, training = parse_flags(kinds, argv, "Train COTS, SIMLA or COOKIE on image-text pairs.")
    overrides = rename_keys(parse_mapping("config_overrides", model.config_overrides), RENAMED, "--config_overrides")
    model.config_overrides = rename_fields(overrides)
    for name, value in model.config_overrides.items():
        if value != overrides[name]:
            logger.warning("--config_overrides uses an old value: %s=%s is now %s", name, overrides[name], value)
    return model, data, training


def parse_image_tokenizer_arguments(
    argv: list[str] | None = None,
) -> tuple[ImageTokenizerArguments, ImageArguments, DVAETrainingArguments]:
    """Parse the arguments of `hf_cots.train_dvae`: flags, or a recipe file with flags on top.

    Raises:
        FileNotFoundError, ValueError: as [`parse_arguments`].
    """
    kinds = (ImageTokenizerArguments, ImageArguments, DVAETrainingArguments)
    model, images, training = parse_flags(kinds, argv, "Train an image tokenizer on images.")
    model.config = parse_mapping("config", model.config)
    return model, images, training


def parse_distillation_arguments(
    argv: list[str] | None = None,
) -> tuple[TeacherArguments, TranslationArguments, DistillationTrainingArguments]:
    """Parse the arguments of `hf_cots.distill_text`: flags, or a recipe file with flags on top.

    Raises:
        FileNotFoundError, ValueError: as [`parse_arguments`].
    """
    kinds = (TeacherArguments, TranslationArguments, DistillationTrainingArguments)
    return parse_flags(kinds, argv, "Distill a text tower into one for several languages.")  # type: ignore[return-value]


def parse_recipe(
    recipe: Mapping[str, Any] | Path | str, **changes: Any
) -> tuple[ModelArguments, DataArguments, COTSTrainingArguments]:
    """Parse a recipe into the arguments that `hf_cots.train.build_trainer` takes.

    Args:
        recipe: flags and their values, as a mapping, or as a YAML or JSON file that contains one.
        changes: flags to add or replace; None restores a flag's default.

    Raises:
        FileNotFoundError, ValueError: as [`parse_arguments`].
    """
    return parse_arguments(to_flags(read_recipe(recipe) | changes))
