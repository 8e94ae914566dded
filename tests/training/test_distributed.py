"""Two processes are one process with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_cots.train import train
from tests.worlds import World, checkpoint, log_history


ROOT = Path(__file__).parents[2]
CONTRASTS = {"momentum": {}, "in_batch": {"contrast": "in_batch"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folders of the same runs in one process and in two."""
    world = World(tmp_path_factory.mktemp("world"))

    def flags(contrast, processes):
        folder = world.root / f"{contrast}-{processes}"
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "optim": "sgd", "learning_rate": 0.01}
        if processes == 2:
            settings["ddp_backend"] = "gloo"
        return world.flags(folder, CONTRASTS[contrast], per_device_train_batch_size=8 // processes, **settings)

    for contrast in CONTRASTS:
        train(flags(contrast, 1))
    script = str(ROOT / "tests" / "training" / "ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    command += [json.dumps(flags(contrast, 2)) for contrast in CONTRASTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    return world.root, done.stderr


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_two_ranks_give_the_state_of_one(runs, contrast):
    """Up to the order of float32 sums; the keys of an untrained model are nearly equal, so that centring magnifies."""
    root, errors = runs
    folder = root / f"{contrast}-2"
    assert (folder / "checkpoint-2" / "model.safetensors").is_file(), errors[-4000:]
    one, two = (checkpoint(root / f"{contrast}-{processes}", 2) for processes in (1, 2))
    assert one.keys() == two.keys()
    assert int(two["steps_seen"]) == 2
    assert int(two["pairs_seen"]) == 16
    for name in one:
        room = 3e-4 if name.endswith("_keys") else 2e-5
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-4, atol=room, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_two_ranks_log_what_one_logs(runs, contrast):
    root, errors = runs
    assert (root / f"{contrast}-2" / "checkpoint-2").is_dir(), errors[-4000:]
    one, two = ([x for x in log_history(root / f"{contrast}-{n}", 2) if "loss" in x] for n in (1, 2))
    for line, wanted in zip(two, one):
        for name in ("loss", "loss_instance", "loss_mvm", "loss_mlm", "loss_task", "filter_drop_rate", "grad_norm"):
            assert line[name] == pytest.approx(wanted[name], rel=2e-4, abs=2e-5), name


def test_one_model_is_left_by_two_ranks(runs):
    root, errors = runs
    folder = root / "momentum-2" / "model"
    assert (folder / "model.safetensors").is_file(), errors[-4000:]
    assert "2 steps of 8 pairs" in (folder / "README.md").read_text()
