"""The same 64 pairs as 1 x 64, 8 x 8 and 64 x 1: one step, whatever its micro-batches."""

import pytest
import torch

import hf_cots.train
from tests.support.recording import DoubleTrainer, RecordingTrainer
from tests.support.worlds import all_pairs, checkpoint, log_history


WAYS = {"1x64": (64, 1), "8x8": (8, 8), "64x1": (1, 64)}
TRAINERS = {"float64": DoubleTrainer, "float32": RecordingTrainer}
# Adam divides by the gradient's own size, so that in float32 the sign of rounding noise becomes a step.
OPTIMIZERS = {"float64": "adamw_torch", "float32": "sgd"}
ROOM = {"float64": 1e-10, "float32": 1e-5}


@pytest.fixture(scope="module")
def pairs(world):
    """100 pairs on 40 images: an epoch is a step of 64 and one of 36."""
    captions = [
        (name, text) for name, _, caption in all_pairs() for text in (caption, f"the {caption}", f"a {caption}")
    ]
    path = world.root / "hundred.csv"
    lines = [f"{world.imagefolder.name}/{name},{text}" for name, text in captions[:100]]
    path.write_text("image,caption\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def start(world, pairs):
    """A model that has learned a little. The embeddings of an untrained one agree to three digits, which centring the
    keys takes away: of float32's seven, four would be left to compare."""
    folder = world.root / "start"
    overrides = {"queue_size": 64, "mvm_weight": 0.25, "mlm_weight": 0.25, "task_weight": 0.1}
    settings = {"max_steps": 100, "learning_rate": 2e-3, "per_device_train_batch_size": 16, "logging_steps": 50}
    hf_cots.train.train(world.flags(folder, overrides, train_data=pairs, **settings))
    return folder / "model"


@pytest.fixture(scope="module")
def runs(world, pairs, start):
    """Gradients of each step and the checkpoint after three, by precision and way. All four losses are on."""
    results = {}
    for precision, trainer in TRAINERS.items():
        for way, (size, count) in WAYS.items():
            folder = world.root / f"{precision}-{way}"
            settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
            settings |= {"optim": OPTIMIZERS[precision], "learning_rate": 1e-3 if precision == "float32" else 1e-4}
            settings |= {"max_grad_norm": 0, "save_strategy": "steps", "save_steps": 3, "train_data": pairs}
            settings |= {"model": start, "vision": None, "text": None}
            overrides = {"queue_size": 150, "similarity_queue_size": 50, "learn_temperature": True}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(hf_cots.train, "COTSTrainer", trainer)
                hf_cots.train.train(world.flags(folder, overrides, **settings))
            results[precision, way] = trainer.last.gradients, checkpoint(folder, 3)
    return results


def norm(tensors) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


@pytest.mark.parametrize("precision", TRAINERS)
@pytest.mark.parametrize("way", ["8x8", "64x1"])
def test_the_gradient_agrees(runs, precision, way):
    wanted, given = runs[precision, "1x64"][0], runs[precision, way][0]
    assert len(wanted) == len(given) == 3
    for one, other in zip(given, wanted):
        assert one.keys() == other.keys()
        difference = norm(one[name].double() - other[name].double() for name in other)
        assert difference < ROOM[precision] * norm(other.values())


@pytest.mark.parametrize("way", ["8x8", "64x1"])
def test_every_parameters_gradient_agrees_in_float64(runs, way):
    """Relative to its own norm, but for those that are zero in exact arithmetic (a key's bias in attention)."""
    wanted, given = runs["float64", "1x64"][0], runs["float64", way][0]
    for one, other in zip(given, wanted):
        for name in other:
            size = max(norm([other[name]]), 1e-3)
            assert norm([one[name] - other[name]]) < 1e-10 * size, name


@pytest.mark.parametrize("precision", TRAINERS)
@pytest.mark.parametrize("way", ["8x8", "64x1"])
def test_weights_momentum_weights_and_queues_agree(runs, precision, way):
    wanted, given = runs[precision, "1x64"][1], runs[precision, way][1]
    whole = {name for name, tensor in wanted.items() if not tensor.is_floating_point()}
    assert {"key_queue.image_ids", "key_queue.pointer", "key_queue.filled", "score_queue.filled"} <= whole
    assert all(torch.equal(given[name], wanted[name]) for name in whole)
    assert int(wanted["pairs_seen"]) == 164
    assert int(wanted["key_queue.pointer"]) == 14
    for name in wanted.keys() - whole:
        error = (given[name].double() - wanted[name].double()).norm() / wanted[name].double().norm().clamp(min=1e-3)
        # The gradient of a key's bias in attention is rounding, which Adam makes steps of: 2.4e-10 with torch 2.8.
        assert error < ROOM[precision] * (10 if name.endswith(("key.bias", "k_proj.bias")) else 1), f"{name}: {error}"


@pytest.mark.parametrize("precision", TRAINERS)
def test_all_levels_and_the_filter_are_at_work(runs, world, precision):
    """Without which the comparison would prove nothing."""
    lines = [line for line in log_history(world.root / f"{precision}-1x64", 3) if "loss" in line]
    assert len(lines) == 3
    assert all(line[f"loss_{term}"] > 0 for line in lines for term in ("instance", "mvm", "mlm", "task"))
    assert 0 < max(line["filter_drop_rate"] for line in lines) < 1
