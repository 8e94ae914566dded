"""Two and four processes are one process with the whole batch, ragged last batches included."""

import json

import pytest
import torch

import hf_cots.train
from tests.support.paths import SCRIPTS
from tests.support.processes import torchrun
from tests.support.recording import DoubleTrainer
from tests.support.runs import assert_near, cookie_flags
from tests.support.steps import assert_close
from tests.support.worlds import World, all_pairs, checkpoint, log_history


# An epoch of 38 pairs is three batches of 12 and one of 2, of which four ranks get 0, 1, 0 and 1. The queue of 20
# slots wraps around in mid-batch.
PAIRS, BATCH, STEPS = 38, 12, 6
CONTRASTS = {
    "momentum": {"queue_size": 20},
    "in_batch": {"queue_size": 20, "contrast": "in_batch"},
    "sigmoid": {"contrast": "sigmoid", "learn_temperature": True, "initial_logit_bias": -3},
    "albef": {"queue_size": 20, "soft_target_alpha": 0.4, "soft_target_warmup_steps": 4, "center_keys": False},
    "cookie": {"shared_dropout": 0},
    "positives": {"queue_size": 20, "same_image": "positive", "center_momentum": 0.5, "momentum_warmup_steps": 3},
}
# Contrast, processes, micro-batches of a step.
WAYS = [("momentum", 2, 1), ("momentum", 2, 2), ("momentum", 4, 1), ("in_batch", 2, 1), ("in_batch", 4, 1)]
# Two micro-batches of a contrast within the batch equal one by gradient caching.
WAYS += [("cookie", 2, 1), ("cookie", 4, 1), ("cookie", 2, 2), ("in_batch", 2, 2)]
WAYS += [("sigmoid", 2, 1), ("sigmoid", 4, 1), ("albef", 2, 1), ("albef", 2, 2), ("positives", 2, 1)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    rows = [f"{world.imagefolder.name}/{name},{caption}" for name, _, caption in all_pairs()[:PAIRS]]
    (world.root / "ragged.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return world


# Processes before and after a checkpoint.
RESUMED = [(2, 2), (1, 2), (2, 4)]


def folder_of(world, contrast, processes, count=1):
    return world.root / f"{contrast}-{processes}-{count}"


def flags(world, contrast, processes, count=1, folder=None):
    settings = {"per_device_train_batch_size": BATCH // processes // count, "gradient_accumulation_steps": count}
    settings |= {"max_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS // 2}
    settings["train_data"] = world.root / "ragged.csv"
    if processes > 1:
        settings["ddp_backend"] = "gloo"
    if count > 1 and contrast in ("in_batch", "cookie"):
        settings["gradient_cache"] = True
    if contrast == "cookie":  # so that a factor in the gradient, which Adam does not see, is one in the weights
        settings |= {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    write = cookie_flags if contrast == "cookie" else World.flags
    return write(world, folder or folder_of(world, contrast, processes, count), CONTRASTS[contrast], **settings)


@pytest.fixture(scope="module")
def runs(world):
    """All ways in float64; what the processes printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_cots.train, "COTSTrainer", DoubleTrainer)
        for contrast in CONTRASTS:
            hf_cots.train.train(flags(world, contrast, 1))
    errors = {}
    for processes in (2, 4):
        starts = [flags(world, *way) for way in WAYS if way[1] == processes]
        starts += [resumed(world, *pair) for pair in RESUMED if pair[1] == processes]
        script = str(SCRIPTS / "training_ranks.py")
        errors[processes] = torchrun(processes, script, *map(json.dumps, starts))
    return errors


def resumed(world, before, processes):
    """Flags of a run that goes on, in mid-epoch, from the checkpoint of a run with another or the same number."""
    start = folder_of(world, "momentum", before) / f"checkpoint-{STEPS // 2}"
    words = flags(world, "momentum", processes, folder=world.root / f"resumed-{before}-{processes}")
    return [*words, "--resume_from_checkpoint", str(start)]


def final_states(world, runs, contrast, processes, count):
    folder = folder_of(world, contrast, processes, count)
    assert (folder / f"checkpoint-{STEPS}" / "complete.json").is_file(), runs[processes][-4000:]
    one, many = checkpoint(folder_of(world, contrast, 1), STEPS), checkpoint(folder, STEPS)
    assert one.keys() == many.keys()
    return one, many


@pytest.mark.parametrize(("contrast", "processes", "count"), WAYS)
def test_many_ranks_give_the_state_of_one(world, runs, contrast, processes, count):
    """Weights, momentum weights, queues, similarity queue and counters; in float64, up to the order of sums."""
    one, many = final_states(world, runs, contrast, processes, count)
    assert int(many["steps_seen"]) == STEPS
    assert int(many["pairs_seen"]) == PAIRS + 2 * BATCH
    if "key_queue.pointer" in many:
        assert int(many["key_queue.pointer"]) == (PAIRS + 2 * BATCH) % 20
    assert_close(many, one, rtol=1e-10)


@pytest.mark.parametrize(("before", "processes"), RESUMED)
def test_a_run_resumes_in_mid_epoch_on_as_many_ranks_or_others(world, runs, before, processes):
    folder = world.root / f"resumed-{before}-{processes}"
    assert (folder / f"checkpoint-{STEPS}" / "complete.json").is_file(), runs[processes][-4000:]
    one, resumed = checkpoint(folder_of(world, "momentum", 1), STEPS), checkpoint(folder, STEPS)
    assert_close(resumed, one, rtol=1e-10)


@pytest.mark.parametrize(("contrast", "processes", "count"), WAYS)
def test_every_rank_holds_the_same_queues_at_each_step(world, runs, contrast, processes, count):
    folder = folder_of(world, contrast, processes, count)
    hashes = [(folder / f"hashes-{rank}.jsonl").read_text().splitlines() for rank in range(processes)]
    assert all(len(each) == STEPS for each in hashes), runs[processes][-4000:]
    assert len({tuple(each) for each in hashes}) == 1
    assert len(set(hashes[0])) == STEPS


@pytest.mark.parametrize(("contrast", "processes", "count"), WAYS)
def test_many_ranks_log_what_one_logs(world, runs, contrast, processes, count):
    final_states(world, runs, contrast, processes, count)
    one, many = (
        [line for line in log_history(folder_of(world, contrast, *way), STEPS) if "loss" in line]
        for way in ((1, 1), (processes, count))
    )
    assert len(one) == len(many) == STEPS
    assert {len(line) for line in one} == {len(line) for line in many}
    for line, wanted in zip(many, one):
        for name in (name for name in wanted if name.startswith(("loss", "filter_drop", "grad_norm"))):
            assert line[name] == pytest.approx(wanted[name], rel=1e-6, abs=2e-5), name  # the log has five digits


def test_the_command_line_gives_the_same(world):
    """`torchrun -m hf_cots.train` as a user starts it, in float32."""
    folders = {n: world.root / f"command-{n}" for n in (1, 2)}
    hf_cots.train.train(flags(world, "momentum", 1, folder=folders[1]))
    errors = torchrun(2, "-m", "hf_cots.train", *flags(world, "momentum", 2, folder=folders[2]))
    assert (folders[2] / "model" / "model.safetensors").is_file(), errors[-4000:]
    assert f"{STEPS} steps of {BATCH} pairs" in (folders[2] / "model" / "README.md").read_text()
    one, two = (checkpoint(folders[n], STEPS) for n in (1, 2))
    # Adam turns the rounding of gradients that are all but zero into steps, and centring magnifies the rounding of
    # the nearly equal keys of an untrained model; the weights as a whole agree all the same.
    assert_near(two, one, ("cots.", "momentum_encoder."), 1e-4)
    assert torch.equal(one["key_queue.image_ids"], two["key_queue.image_ids"])
