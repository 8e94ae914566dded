"""Checkpoints that are whole or not there: a kill in the middle of a write leaves nothing that looks like one."""

import json
import os
import re
from pathlib import Path


COMPLETE = "complete.json"


def begin(folder: Path) -> None:
    """Called before anything is written to a checkpoint's folder: an older mark would vouch for new files."""
    (folder / COMPLETE).unlink(missing_ok=True)


def complete(folder: Path) -> None:
    """Called when all is written: lists every file with its size in bytes, in one atomic step."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    draft = folder / f"{COMPLETE}.draft"
    draft.write_text(json.dumps(sizes, indent=1) + "\n")
    os.replace(draft, folder / COMPLETE)


def find_problem(folder: Path) -> str | None:
    """Why a checkpoint must not be used, or None if it is whole: marked, and every file there with its full size."""
    mark = folder / COMPLETE
    if not mark.is_file():
        return f"{folder} has no {COMPLETE}: its writing was cut off, or another trainer wrote it"
    for name, size in json.loads(mark.read_text()).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or not {size} bytes long as when the checkpoint was written"
    return None


def last_checkpoint(output_dir: Path | str) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and find_problem(folder) is None:
            steps[int(match[1])] = folder
    return steps[max(steps)] if steps else None
