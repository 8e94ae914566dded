"""The demo's two trainings: the recipes beside this file, on the emoji set of a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import train_dvae
from ..train import build_trainer
from ..training.arguments import parse_recipe, read_recipe, to_flags
from ..training.trainer import COTSTrainer
from .recipe import RECIPES, text_tower_folder


def train_image_tokenizer(folder: Path, **changes: Any) -> Path:
    """Train the demo's image tokenizer on the emoji set in `folder`, and return the tokenizer's folder.

    Args:
        folder: with `data/train/`; the tokenizer goes to `image_tokenizer/`.
        changes: flags of `hf_cots.train_dvae` that replace the recipe's.
    """
    flags = {"train_data": str(folder / "data" / "train"), "output_dir": str(folder / "image_tokenizer")} | changes
    train_dvae.train([str(RECIPES / "image_tokenizer.yaml"), *to_flags(flags)])
    return Path(flags["output_dir"]) / "model"


def build_cots_trainer(folder: Path, config_overrides: Mapping[str, Any] | None = None, **changes: Any) -> COTSTrainer:
    """The trainer of the demo's COTS on the emoji set in `folder`, ready to start.

    Args:
        folder: with `data/` and the image tokenizer; the model goes there too.
        config_overrides: fields of the config that replace the recipe's.
        changes: flags of `hf_cots.train` that replace the recipe's; None restores a flag's default.

    Raises:
        ModuleNotFoundError: as [`text_tower_folder`].
    """
    recipe = read_recipe(RECIPES / "cots.yaml")
    flags = {
        "text": text_tower_folder(),
        "image_tokenizer": str(folder / "image_tokenizer" / "model"),
        "train_data": str(folder / "data" / "train"),
        "eval_data": str(folder / "data" / "test"),
        "output_dir": str(folder),
        "config_overrides": recipe["config_overrides"] | dict(config_overrides or {}),
    }
    return build_trainer(*parse_recipe(recipe, **(flags | changes)))
