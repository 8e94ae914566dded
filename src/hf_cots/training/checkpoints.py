"""Checkpoints that are complete or not used: one whose writing was interrupted has no valid `complete.json`."""

import json
import os
import re
from pathlib import Path


COMPLETE = "complete.json"


def invalidate(folder: Path) -> None:
    """Remove the mark of a checkpoint before anything in its folder is overwritten."""
    (folder / COMPLETE).unlink(missing_ok=True)


def mark_complete(folder: Path) -> None:
    """Mark a checkpoint whose files are all written: list each with its size in bytes, in one atomic step."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    draft = folder / f"{COMPLETE}.draft"
    draft.write_text(json.dumps(sizes, indent=1) + "\n")
    os.replace(draft, folder / COMPLETE)


def find_problem(folder: Path) -> str | None:
    """Why a checkpoint must not be used; None if it is marked as complete and every file has its recorded size."""
    mark = folder / COMPLETE
    if not mark.is_file():
        return f"{folder} has no {COMPLETE}: its writing was interrupted, or another trainer wrote it"
    for name, size in json.loads(mark.read_text()).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or does not have the {size} bytes that were written"
    return None


def last_checkpoint(output_dir: Path | str) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and find_problem(folder) is None:
            steps[int(match[1])] = folder
    return steps[max(steps)] if steps else None
