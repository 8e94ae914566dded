"""Public names of data, models and folders, without the paths of this machine."""

import re
from pathlib import Path, PureWindowsPath

from transformers import TrainingArguments


def model_name(args: TrainingArguments) -> str:
    """`--hub_model_id`, or the name of `output_dir`."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


def data_name(data: str) -> str:
    """The name of data for a card: a Hub id as it is; of a path or URL only the last part, because the rest describes
    this machine."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not data.startswith(".") and not Path(data).exists()
    if is_id or not re.search(r"[/\\~.]", data):
        return data
    path = PureWindowsPath(data.partition("?")[0]) if "\\" in data else Path(data.partition("?")[0])
    return path.name if path.name not in ("", "..", "~") else Path(data).expanduser().resolve().name


def loadable_name(args: TrainingArguments, folder: Path) -> str:
    """What a card's reader passes to `from_pretrained`: `--hub_model_id`, or the folder relative to the current folder
    or to its parent."""
    if args.hub_model_id:
        return args.hub_model_id
    here = Path.cwd()
    path = folder.resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
