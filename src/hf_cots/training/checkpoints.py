"""Checkpoint completeness: a checkpoint whose writing was interrupted has no valid `complete.json` and is not used."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
TRAINER_STATE = "trainer_state.json"


def invalidate(folder: Path) -> None:
    """Remove a checkpoint's `complete.json` before anything in its folder is overwritten."""
    (folder / COMPLETE).unlink(missing_ok=True)


def mark_complete(folder: Path) -> None:
    """Write a checkpoint's `complete.json`, which lists each file with its size in bytes, in one atomic step."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    draft = folder / f"{COMPLETE}.draft"
    draft.write_text(json.dumps(sizes, indent=1) + "\n")
    os.replace(draft, folder / COMPLETE)


def recorded_sizes(folder: Path) -> dict[str, int] | None:
    """Read the files and sizes of a checkpoint's `complete.json`; None if it is missing or damaged."""
    try:
        return json.loads((folder / COMPLETE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def holds_weights_alone(folder: Path) -> bool:
    """Whether a checkpoint was written with `--save_only_model`: it is complete but has no optimizer state."""
    names = {path.name for path in folder.glob("*")} | (recorded_sizes(folder) or {}).keys()
    return TRAINER_STATE in names and not any(name.startswith(("optimizer", "global_step")) for name in names)


def find_problem(folder: Path) -> str | None:
    """Say why a run cannot be resumed from a checkpoint; None if it is marked as complete, every file has its recorded
    size, and the optimizer's state is included."""
    if not folder.is_dir():
        return f"no such folder: {folder}"
    if holds_weights_alone(folder):
        return (
            f"{folder} has weights but no optimizer and no learning-rate schedule (--save_only_model); a new run can "
            "start from its weights with --model"
        )
    sizes = recorded_sizes(folder)
    if sizes is None:
        damaged = (folder / COMPLETE).is_file()
        return (
            f"{folder / COMPLETE} is damaged"
            if damaged
            else f"{folder} has no {COMPLETE}: its writing was interrupted, or another trainer wrote it"
        )
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or does not have the {size} bytes that were written"
    return None


def last_checkpoint(output_dir: Path | str) -> Path | None:
    """Find the complete checkpoint with the most steps, or None; later, incomplete ones are logged.

    Raises:
        ValueError: if a later one contains only weights: resuming from an earlier one would overwrite it.
    """
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match:
            steps[int(match[1])] = folder
    for _, folder in sorted(steps.items(), reverse=True):
        problem = find_problem(folder)
        if problem is None:
            return folder
        if holds_weights_alone(folder):
            raise ValueError(f"cannot resume: {problem}")
        logger.warning("skipping a checkpoint: %s", problem)
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The state of transformers' Trainer."""
    return json.loads((folder / TRAINER_STATE).read_text())
