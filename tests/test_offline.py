"""Work on local files looks up no outside host, although no variable forbids it."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import yaml

import hf_cots.data.sources  # noqa: F401  (imports it)
from tests.support.paths import ROOT
from tests.support.simla_world import simla_folder


SCRIPT = ROOT / "tests" / "scripts" / "without_network.py"
ONLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_ENDPOINT")


def run(commands, folder):
    """What each command came to, and the hosts that it tried to reach."""
    (folder / "commands.json").write_text(
        json.dumps({name: [str(x) for x in line] for name, line in commands.items()})
    )
    environment = {name: value for name, value in os.environ.items() if name not in ONLINE}
    environment |= {"HF_HOME": str(folder / "hf"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{folder}"}
    command = [sys.executable, str(SCRIPT), str(folder / "commands.json"), str(folder / "report.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


def test_the_script_notices_a_look_up(tmp_path):
    lines = ["import socket", "try: socket.getaddrinfo('example.org', 80)", "except OSError: pass"]
    (tmp_path / "asks.py").write_text("\n".join(lines))
    found = run({"asks": ["asks"]}, tmp_path)
    assert found == {"asks": {"code": "0", "tried": ["getaddrinfo example.org"]}}


@pytest.mark.timeout(300)
def test_no_command_on_local_files_looks_up_a_host(world, tmp_path):
    images, parquet, csv = world.imagefolder, world.parquet, world.paths_in(".csv")
    recipe = world.settings(tmp_path / "x", overrides={"mvm_weight": 1.0}, image_tokenizer=str(world.image_tokenizer))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe, default=str))))
    fast = ["--split", "train", "--resamples", "9"]
    model, simla = world.model, simla_folder(world)
    commands = {
        "evaluate": ["hf_cots", "evaluate", model, parquet, "--resamples", "9", "--output", "r.json"],
        "evaluate csv": ["hf_cots", "evaluate", model, csv, *fast],
        "evaluate and re-rank": ["hf_cots", "evaluate", model, images, *fast, "--rerank", simla, "--k", "4"],
        "search": ["hf_cots", "search", model, images, "a red circle", "--rerank", simla],
        "audit": ["hf_cots", "audit", model, parquet],
        "tokenize": ["hf_cots", "tokenize", "recipe.yaml", "--output", "codes"],
        "train": ["hf_cots.train", *world.flags(tmp_path / "a", train_data=parquet, eval_data=parquet, max_steps=1)],
        "train on a stream": [
            "hf_cots.train",
            *world.flags(tmp_path / "b", train_data=csv, streaming=True, max_steps=1),
        ],
    }
    found = run(commands, tmp_path)
    assert {name: entry["code"] for name, entry in found.items()} == dict.fromkeys(commands, "0")
    assert {name: entry["tried"] for name, entry in found.items() if entry["tried"]} == {}


def test_downloads_of_local_files_are_not_counted():
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is False
