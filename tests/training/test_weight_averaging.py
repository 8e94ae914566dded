"""--ema_decay against an average that is kept by hand, in float64, parameter by parameter."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hf_cots import COTSTrainer
from hf_cots.train import build_trainer, train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.weight_averaging import WeightAverage
from tests.support import runs
from tests.support.runs import assert_same_weights, make_trainer
from tests.support.worlds import checkpoint


FLAGS = {"ema_decay": 0.4, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "dropout": 0.1}
EVAL = {"eval_strategy": "steps", "eval_steps": 3}


class Recording(COTSTrainer):
    """Remembers the online weights after each optimizer step, and those that evaluation sees."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.online, self.evaluated = {0: self.weights()}, {}

    def weights(self):
        return {name: p.detach().clone() for name, p in self.model.encoder.named_parameters()}

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        self.online.setdefault(self.state.global_step, self.weights())  # called at the end of an epoch too
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def retrieval(self, pairs):
        with self.averaged_weights():
            self.evaluated[self.state.global_step] = self.weights()
        before = self.weights()
        results = super().retrieval(pairs)
        assert_same_weights(self.weights(), before)
        return results


def record(world, folder, **settings):
    trainer = build_trainer(*parse_arguments(world.flags(folder, **FLAGS | settings)), Recording)
    trainer.train()
    return trainer


def average_by_hand(states, decay):
    """The formula, element by element, of the weights before the run and after each of its steps."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for step in range(1, len(states)):
        share = min(decay, (1 + step) / (10 + step))
        average = {name: share * old + (1 - share) * states[step][name].double() for name, old in average.items()}
    return average


def assert_is(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("decay", [0.4, 0.999], ids=["decay", "warm-up"])
def test_it_is_the_average_of_the_weights_after_each_step(world, tmp_path, decay):
    trainer = record(world, tmp_path, ema_decay=decay, eval_data=world.imagefolder, **EVAL)
    assert len(trainer.online) == 7
    assert_is(trainer.evaluated[3], average_by_hand({step: trainer.online[step] for step in range(4)}, decay))
    assert_is(trainer.weights(), average_by_hand(trainer.online, decay))
    saved = load_file(tmp_path / "checkpoint-3" / "ema.safetensors")
    assert_same_weights(saved, trainer.evaluated[3])
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    raw = checkpoint(tmp_path, 3)
    assert_same_weights({name: raw[f"cots.{name}"] for name in saved}, trainer.online[3])
    assert (saved["visual_projection.weight"] - raw["cots.visual_projection.weight"]).abs().max() > 1e-4


def test_training_itself_is_the_same(world, tmp_path):
    record(world, tmp_path / "with", eval_data=world.imagefolder, **EVAL)
    record(world, tmp_path / "without", ema_decay=None)
    runs.assert_same_checkpoints(tmp_path / "with", tmp_path / "without", 6)


def test_the_saved_model_is_the_average_and_so_is_what_was_evaluated(world, tmp_path, caplog):
    settings = {"eval_data": world.imagefolder, "learning_rate": 0.05, **EVAL}
    with caplog.at_level("INFO"):
        results = train(world.flags(tmp_path, **FLAGS | settings))
    assert any("averaged with decay 0.4" in record.getMessage() for record in caplog.records)
    saved = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    average = load_file(tmp_path / "checkpoint-6" / "ema.safetensors")
    assert_same_weights(
        {name: saved[name] for name in average if "mask_token" not in name},
        {name: tensor for name, tensor in average.items() if "mask_token" not in name},
    )
    without = make_trainer(world.flags(tmp_path / "other", eval_data=world.imagefolder))
    without.model.encoder.load_state_dict(average, strict=False)
    assert without.retrieval(without.eval_dataset) == results


def test_a_resumed_run_has_the_same_average_bit_for_bit(world, tmp_path):
    train(world.flags(tmp_path / "whole", **FLAGS))
    middle = tmp_path / "whole" / "checkpoint-3"
    train(world.flags(tmp_path / "resumed", **FLAGS, resume_from_checkpoint=middle))
    runs.assert_same_checkpoints(tmp_path / "resumed", tmp_path / "whole", 6)
    for name in ("checkpoint-6/ema.safetensors", "model/model.safetensors"):
        assert_same_weights(*(load_file(tmp_path / run / name) for run in ("resumed", "whole")))
    assert "ema.safetensors" in (middle / "complete.json").read_text()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"freeze": "vision"}], ids=["full", "lora", "frozen"])
def test_the_best_average_is_loaded_at_the_end(world, tmp_path, settings):
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    results = iter([3.0, 1.0])

    class Descending(Recording):
        def retrieval(self, pairs):
            super().retrieval(pairs)
            return {"text_to_image": {"R@1": next(results)}}

    flags = FLAGS | EVAL | {"load_best_model_at_end": True, "eval_data": world.imagefolder, "learning_rate": 0.05}
    trainer = build_trainer(*parse_arguments(world.flags(tmp_path, **flags | settings)), Descending)
    trainer.train()
    assert trainer.state.best_global_step == 3
    assert_same_weights(trainer.weights(), trainer.evaluated[3])
    assert any(not torch.equal(trainer.evaluated[3][name], trainer.evaluated[6][name]) for name in trainer.weights())
    average = load_file(tmp_path / "checkpoint-3" / "ema.safetensors")
    assert set(average) == {n for n, p in trainer.model.encoder.named_parameters() if p.requires_grad}


def test_checkpoints_of_runs_without_an_average_are_refused_and_the_other_way_told(world, tmp_path, caplog):
    settings = FLAGS | {"max_steps": 3, "ema_decay": None}
    train(world.flags(tmp_path / "plain", **settings))
    train(world.flags(tmp_path / "average", **settings | {"ema_decay": 0.4}))
    with pytest.raises(
        ValueError, match=r"cannot resume: .*checkpoint-3 has no ema.safetensors.*leave out --ema_decay"
    ):
        train(world.flags(tmp_path / "plain", **FLAGS, resume_from_checkpoint="last"))
    train(world.flags(tmp_path / "average", **settings, resume_from_checkpoint="last"))
    assert any("ema_decay None (was 0.4)" in record.getMessage() for record in caplog.records)
    shutil.copy(tmp_path / "average" / "checkpoint-3" / "ema.safetensors", tmp_path / "ema.safetensors")
    trainer = make_trainer(world.flags(tmp_path / "new", **FLAGS, freeze="text"))
    with pytest.raises(ValueError, match=r"ema.safetensors is of another model: it differs in text_model"):
        WeightAverage(trainer.model.encoder, 0.4).load(tmp_path)


@pytest.mark.parametrize("decay", [0, 1.5, "nan"])
def test_a_decay_out_of_range_is_refused(world, tmp_path, decay):
    with pytest.raises(ValueError, match="--ema_decay must be above 0 and at most 1"):
        make_trainer(world.flags(tmp_path, ema_decay=decay))
