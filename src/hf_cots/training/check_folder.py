"""Checks a model folder before it is published: its files, its card, and that it loads without the package."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from ..models.cards import UNKNOWN_LICENSE, read_card
from . import isolated
from .record import QUERIES


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check_folder(folder: Path) -> list[str]:
    """Check a folder; returns notes for its owner, one line each.

    Raises:
        FileNotFoundError: if it is not a saved model.
        ValueError: naming the file that must not be published, the card's fault, or what differs without the package.
    """
    check_files(folder)
    notes = check_card(folder)
    check_without_package(folder)
    return notes


def check_files(folder: Path) -> None:
    """Check that a folder contains a saved model and nothing else."""
    for name in ("config.json", "README.md"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is not a saved model's folder")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors)")
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} is a pickle file, which can run code when loaded: only safetensors weights may be published"
            )
        if path.is_symlink() or path.name.startswith(".") or path.name.startswith("checkpoint-"):
            raise ValueError(f"{path} is not part of a saved model: move it out of the folder")


def check_card(folder: Path) -> list[str]:
    """Check the card's metadata with huggingface_hub, offline."""
    text = read_card(folder)
    if text is None:
        raise ValueError(
            f"{folder / 'README.md'} is transformers' generated card: write your own description of the model"
        )
    try:
        data = ModelCard(text).data
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / 'README.md'}: invalid metadata: {reason}") from None
    notes = []
    if data.license in (None, UNKNOWN_LICENSE):
        notes.append(
            "the card names no license: nobody may use the weights before one is chosen (--license in training)"
        )
    if not data.eval_results:
        notes.append("the card has no results: train with --eval_data, or add them")
    if (folder / QUERIES).is_file():
        notes.append(f"{QUERIES} shows images of the evaluation data: delete it if they must not be public")
    return notes


def check_without_package(folder: Path) -> None:
    """Check that the folder's own code gives the same outputs as the package, in a process that cannot import it."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "outputs.safetensors"
        variables = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch) / "modules")}
        variables |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [sys.executable, "-I", isolated.__file__, str(folder.resolve()), str(output)]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{folder} does not load without hf_cots installed: {reason}")
        theirs = load_file(output)
    ours = isolated.compute_outputs(folder, trust_remote_code=False)
    if theirs.keys() != ours.keys():
        raise ValueError(f"{folder}: its own code outputs {sorted(theirs)}, but the package outputs {sorted(ours)}")
    differing = sorted(name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name]))
    if differing:
        raise ValueError(
            f"{folder}: its own code gives different {', '.join(differing)} than the package: save the model again"
        )
