"""The flags of `python -m hf_cots.train`, in the manner of the transformers example scripts."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser, TrainingArguments


@dataclass
class ModelArguments:
    """Where the model comes from: a checkpoint, two pretrained towers, or a config. Exactly one of the three."""

    model: str | None = field(default=None, metadata={"help": "COTS, SIMLA or COOKIE checkpoint: Hub id or folder."})
    vision: str | None = field(
        default=None, metadata={"help": "Image encoder: Hub id or folder, or a config as JSON to learn from scratch."}
    )
    text: str | None = field(default=None, metadata={"help": "Text encoder: the same."})
    architecture: Literal["cots", "simla", "cookie"] = field(
        default="cots", metadata={"help": "What --vision and --text become; a checkpoint or config knows it itself."}
    )
    config: str | None = field(
        default=None,
        metadata={"help": "COTS, SIMLA or COOKIE config (Hub id, folder or file) to train from random weights."},
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": 'Fields of the config, as JSON or as a YAML mapping: {"queue_size": 4096}.'},
    )
    image_tokenizer: str | None = field(
        default=None,
        metadata={"help": "Trained image tokenizer: Hub id or folder. Needed for mvm_weight (SIMLA: mim_weight) > 0."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Text tokenizer: Hub id or folder. Defaults to the model's or text tower's."}
    )
    max_text_length: int = field(default=64, metadata={"help": "Longer texts are cut at this many tokens."})
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "Towers that are not trained: vision, text, or both."}
    )
    standardize: bool = field(
        default=False,
        metadata={"help": "New projections begin as those of standardised features (needs --feature_cache)."},
    )
    lora_rank: int = field(default=0, metadata={"help": "Train the towers through LoRA of this rank (needs peft)."})


@dataclass
class ImageTokenizerArguments:
    """Which image tokenizer is trained."""

    model: str | None = field(default=None, metadata={"help": "Image tokenizer to go on from: Hub id or folder."})
    config: dict | str | None = field(
        default=None,
        metadata={"help": 'Fields of COTSImageTokenizerConfig, as JSON or as a YAML mapping: {"codebook_size": 512}.'},
    )


@dataclass
class ImageArguments:
    """Which pictures are trained and evaluated on."""

    train_data: str = field(metadata={"help": "Hub id, folder, parquet, CSV, JSON lines, or tars; globs work."})
    eval_data: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub data set."})
    eval_split: str = field(default="test", metadata={"help": "Split of a Hub data set."})
    image_column: str = field(default="image", metadata={"help": "Column of pictures or paths."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the training data as needed, without a copy or an index (--max_steps)."}
    )
    shuffle_block: int = field(default=1000, metadata={"help": "Pairs of a stream that are shuffled together."})
    min_scale: float = field(default=0.2, metadata={"help": "Smallest random crop, as a share of the picture's area."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})


@dataclass
class DataArguments(ImageArguments):
    """Which pairs are trained and evaluated on."""

    caption_column: str = field(
        default="auto",
        metadata={"help": "Column of texts, or of lists of texts; by default the one called caption, text or txt."},
    )
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column whose equal cells mean the same picture; by default path or row."}
    )
    keep_mask: str | None = field(
        default=None, metadata={"help": "keep_mask.json of `hf-cots audit`: pairs of the training data to leave out."}
    )
    code_cache: str | None = field(
        default=None, metadata={"help": "Folder of `hf-cots tokenize`: codes are read from it where it has them."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the features of two frozen towers: each is computed once, without augmentation."
        },
    )


@dataclass
class COTSTrainingArguments(TrainingArguments):
    """transformers' training arguments with the values that COTS needs."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "Items are pairs, not columns."})
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Ranks keep equal queues by themselves."}
    )
    label_names: list[str] | None = field(default_factory=lambda: ["image_ids"])
    logging_steps: float = field(default=10)
    gradient_cache: bool = field(
        default=False,
        metadata={"help": "Contrast all pairs of a step, in the memory of one micro-batch (contrasts in the batch)."},
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the text tower, if it differs."}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the image tower, if it differs."}
    )


@dataclass
class DVAETrainingArguments(TrainingArguments):
    """transformers' training arguments with DALL-E's values (Ramesh et al. 2021, appendix A.2): AdamW with a cosine
    from 1e-4 to 1.25e-6, and two schedules. Theirs ran 150,000 and 5,000 of 3 million updates; here they are shares
    of all steps, and the learning rate falls until the last one."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "Items are pairs, not columns."})
    learning_rate: float = field(default=1e-4)
    lr_scheduler_type: str = field(default="cosine_with_min_lr")
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 0.0125})
    weight_decay: float = field(default=1e-4)
    dataloader_drop_last: bool = field(default=True, metadata={"help": "So that each picture weighs the same."})
    logging_steps: float = field(default=10)
    final_temperature: float = field(
        default=1 / 16, metadata={"help": "Of the Gumbel-softmax, which begins at the config's gumbel_temperature."}
    )
    temperature_share: float = field(default=0.05, metadata={"help": "Share of the steps in which it gets there."})
    kl_share: float = field(
        default=1 / 600, metadata={"help": "Share of the steps in which the KL weight rises to the config's."}
    )


def flags_of(settings: dict) -> list[str]:
    """A recipe's mapping as command-line flags; entries without a value keep the flag's default."""
    flags = []
    for name, value in settings.items():
        if value is None or value == []:
            continue
        flags.append(f"--{name}")
        if isinstance(value, dict):
            flags.append(json.dumps(value))
        elif isinstance(value, list):
            flags.extend(map(str, value))
        else:
            flags.append(str(value))
    return flags


def parse_flags(kinds: tuple[type, ...], argv: list[str] | None, description: str) -> tuple[Any, ...]:
    """One object of each of the dataclasses `kinds`, from flags, or from one YAML or JSON file with flags on top.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it holds no mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        recipe = Path(argv[0])
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))  # JSON is YAML too
        if not isinstance(settings, dict):
            raise ValueError(f"{recipe} must hold a mapping of flags to values, got {type(settings).__name__}")
        argv = flags_of(settings) + argv[1:]
    return HfArgumentParser(kinds, description=description).parse_args_into_dataclasses(args=argv)


def fields_of(flag: str, value: dict | str | None) -> dict | None:
    """The mapping of fields to values that a flag gives as JSON.

    Raises:
        ValueError: if it is no JSON or no mapping.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--{flag} is no JSON: {error}") from None
    if not isinstance(value, dict | None):
        raise ValueError(f"--{flag} must be a mapping of fields to values, got {value!r}")
    return value


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, COTSTrainingArguments]:
    """Flags, or one YAML or JSON file with flags on top: `recipe.yaml --learning_rate 1e-4`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it holds no mapping, or the overrides are no JSON or no mapping.
    """
    kinds = (ModelArguments, DataArguments, COTSTrainingArguments)
    model, data, training = parse_flags(kinds, argv, "Train COTS on image-text pairs.")
    model.config_overrides = fields_of("config_overrides", model.config_overrides)
    return model, data, training
