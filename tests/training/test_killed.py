"""A run that is killed and resumed equals the uninterrupted one, bit for bit.

`make soak` runs the long form: twenty kills at random moments.
"""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

import hf_cots.train
from tests.scripts.killed import WitnessTrainer
from tests.support.paths import SCRIPTS
from tests.support.processes import ENVIRONMENT
from tests.support.runs import assert_same_checkpoints
from tests.support.worlds import all_pairs, log_history


TIMES = {"pairs_per_second", "data_wait_share", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
# The summary of transformers at the end covers the steps since the last start, by design.
SINCE_THE_START = {"train_loss", "total_flos"}


@pytest.fixture(scope="module")
def world(world):
    rows = [f"{world.imagefolder.name}/{name},{caption}" for name, _, caption in all_pairs()[:38]]
    (world.root / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return world


def flags(world, folder, steps, save_steps, **settings):
    """Dropout, flips, a ragged last batch, logs that fall between the checkpoints, of which one is kept."""
    settings |= {"max_steps": steps, "save_strategy": "steps", "save_steps": save_steps, "save_total_limit": 1}
    settings |= {"logging_steps": 3, "flip": 0.5, "train_data": world.root / "pairs.csv"}
    return world.flags(folder, dropout=0.1, **settings)


def start(plan, *flags, **options):
    """The process of a run that dies as planned."""
    script = str(SCRIPTS / "killed.py")

    command = [sys.executable, script, json.dumps(plan), *flags, "--resume_from_checkpoint", "last"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def uninterrupted(world, folder, *args, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_cots.train, "COTSTrainer", WitnessTrainer)
        folder.mkdir()
        hf_cots.train.train(flags(world, folder, *args, **settings))


def witnessed(folder):
    """Step to hash of its data; a step that ran several times must have seen the same each time."""
    seen = {}
    for line in (folder / "batches.jsonl").read_text().splitlines():
        step, digest = json.loads(line)
        assert seen.setdefault(step, digest) == digest, f"step {step} saw other data after a restart"
    return seen


def assert_equal_runs(folder, reference, steps):
    """Weights, momentum weights, queues, optimizer, schedule, random state, data of every step, and log."""
    assert_same_checkpoints(folder, reference, steps)
    assert witnessed(folder) == witnessed(reference)
    assert len(witnessed(reference)) == steps
    logs = [
        [{k: v for k, v in line.items() if k not in TIMES | SINCE_THE_START} for line in log_history(f, steps)]
        for f in (folder, reference)
    ]
    assert logs[0] == logs[1]
    assert sum("loss" in line for line in logs[1]) >= steps // 3


def test_a_run_killed_at_every_kind_of_moment_equals_the_uninterrupted_one(world, tmp_path):
    """In a forward, with half of a file of a checkpoint written, before the checkpoint is marked as complete, before
    the older one is deleted, and between two epochs of five steps."""
    steps = 14
    uninterrupted(world, tmp_path / "uninterrupted", steps, 2)
    folder = tmp_path / "killed"
    deaths = [{"forward": 4}, {"half_a_file": 2}, {"before_the_mark": 2}, {"rotation": 2}, {"between_epochs": 2}]
    workers = ["0", "2", "0", "0", "1"]
    last_complete = []
    for death, count in zip(deaths, workers):
        process = start(death, *flags(world, folder, steps, 2, dataloader_num_workers=count))
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == -signal.SIGKILL, errors[-3000:]
        assert (folder / "phase").read_text() == next(iter(death))
        complete = [int(path.parent.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*/complete.json")]
        last_complete.append(max(complete))
    # Each start got further than the one before, and nothing half written was taken for complete.
    assert last_complete == [2, 2, 4, 8, 10]
    process = start({}, *flags(world, folder, steps, 2))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors[-3000:]
    assert_equal_runs(folder, tmp_path / "uninterrupted", steps)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments(world, tmp_path):
    """Each start is killed at a random time after its first step, so that forwards, checkpoints and epochs are hit."""
    steps, kills, phases, chance = 400, 0, [], random.Random(0)
    uninterrupted(world, tmp_path / "uninterrupted", steps, 3)
    folder = tmp_path / "killed"
    while True:
        before = (folder / "batches.jsonl").stat().st_size if (folder / "batches.jsonl").is_file() else 0
        process = start({}, *flags(world, folder, steps, 3, dataloader_num_workers=chance.choice((0, 0, 1, 2))))
        while process.poll() is None and (
            not (folder / "batches.jsonl").is_file() or (folder / "batches.jsonl").stat().st_size == before
        ):
            time.sleep(0.02)
        if kills < 20:
            time.sleep(chance.uniform(0, 3))
            process.kill()
        errors = process.communicate(timeout=600)[1]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors[-3000:]
        kills += 1
        phases.append((folder / "phase").read_text())
        complete = [path.parent.name for path in folder.glob("checkpoint-*/complete.json")]
        print(f"kill {kills} in {phases[-1]}, complete: {complete}", flush=True)
    assert kills == 20, f"the run ended after {kills} kills: give it more steps"
    assert_equal_runs(folder, tmp_path / "uninterrupted", steps)
