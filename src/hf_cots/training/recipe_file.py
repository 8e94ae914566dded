"""The recipe saved with a trained model: the flags that were given."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from .arguments import read_recipe
from .names import data_name


# Flags whose values may be paths, of which only the last part is kept, as in the card; and those of this machine.
DATA = ("train_data", "eval_data", "keep_mask", "code_cache", "feature_cache", "output_dir")
MODELS = ("vision", "text", "model", "tokenizer", "image_tokenizer", "config")
PATHS = (*DATA, *MODELS, "deepspeed", "fsdp_config")
LEFT_OUT = ("hub_token", "resume_from_checkpoint", "logging_dir")


def read_flags(argv: list[str] | None) -> dict[str, Any]:
    """Read the flags of a command line by name: those of its recipe file, if it starts with one, and those after
    it."""
    words = list(sys.argv[1:] if argv is None else argv)
    given: dict[str, Any] = read_recipe(words.pop(0)) if words and not words[0].startswith("--") else {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            given[name] = values = [value] if value else []
        else:
            values.append(word)
    return {name: simplify(value) if name not in PATHS else one_of(value) for name, value in given.items()}


def one_of(value: Any) -> Any:
    """Unwrap a list of one value; a flag without values becomes True."""
    if not isinstance(value, list):
        return value
    return True if not value else value[0] if len(value) == 1 else value


def simplify(value: Any) -> Any:
    """Like [`one_of`], but parse texts of numbers, booleans and mappings."""
    value = one_of(value)
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {"True": True, "False": False}.get(value, value)


def write_recipe(folder: Path, argv: list[str] | None) -> None:
    """Write `recipe.yaml` to a folder, which is created if needed: the flags given to `hf_cots.train`, with names of
    data and towers instead of paths."""
    given = {name: value for name, value in read_flags(argv).items() if name not in LEFT_OUT}
    recipe = {
        name: data_name(value) if name in PATHS and isinstance(value, str) else value for name, value in given.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    (folder / "recipe.yaml").write_text(
        f"# The flags of `hf-cots train` that made this model.\n{text}", encoding="utf-8"
    )
