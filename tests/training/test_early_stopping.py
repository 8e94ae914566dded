"""--early_stopping_patience against the rule, counted by hand over evaluations with given results."""

import pytest
import torch

from hf_cots import COTSTrainer
from hf_cots.train import build_trainer
from hf_cots.training.arguments import parse_arguments
from tests.support.runs import assert_same_weights, make_trainer
from tests.support.worlds import checkpoint


FLAGS = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
NO_TOKENS = {"mvm_weight": 0, "mlm_weight": 0}


def start(world, folder, results, resume=None, **settings):
    """A run whose n-th evaluation gives the n-th of these R@1."""

    class Given(COTSTrainer):
        def retrieval(self, pairs):
            return {"text_to_image": {"R@1": float(results[self.state.global_step - 1])}}

    flags = FLAGS | {"eval_data": world.imagefolder, "image_tokenizer": None} | settings
    trainer = build_trainer(*parse_arguments(world.flags(folder, NO_TOKENS, **flags)), Given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def stops_at(results, patience):
    """By hand: the step after which `patience` evaluations in a row were no better than the best, and the best one."""
    best, best_step, without = float("-inf"), 0, 0
    for step, result in enumerate(results, start=1):
        best, best_step, without = (result, step, 0) if result > best else (best, best_step, without + 1)
        if without == patience:
            return step, best_step
    return len(results), best_step


@pytest.mark.parametrize(
    ("results", "patience"),
    [((1, 3, 2, 2, 3, 4, 1, 1), 1), ((1, 3, 2, 2, 4, 4, 1, 3), 3), ((5, 1, 1), 2), ((1, 2, 3, 4, 5, 6, 7, 8), 1)],
)
def test_it_stops_where_the_rule_says_and_loads_the_best(world, tmp_path, results, patience, caplog):
    with caplog.at_level("INFO"):
        trainer = start(world, tmp_path, results, early_stopping_patience=patience)
    stop, best = stops_at(results, patience)
    assert (trainer.state.global_step, trainer.state.best_global_step) == (stop, best)
    assert_same_weights(trainer.model.state_dict(), checkpoint(tmp_path, best))
    told = [r.getMessage() for r in caplog.records if "stopped at step" in r.getMessage()]
    expected = f"stopped at step {stop}: no improvement in the last {patience} evaluations (best text_to_image_R@1: "
    assert told == ([] if stop == 8 and best == 8 else [f"{expected}{results[best - 1]} at step {best})"])


def test_a_resumed_run_keeps_the_count(world, tmp_path):
    """Killed after one evaluation without a better model: it stops at the next one, not at the one after."""
    results = (5, 1, 1, 1, 1, 1, 1, 1)
    start(world, tmp_path / "a", results, early_stopping_patience=2)
    again = start(
        world, tmp_path / "b", results, tmp_path / "a" / "checkpoint-2", early_stopping_patience=2, save_steps=1
    )
    assert again.state.global_step == 3
    assert_same_weights(checkpoint(tmp_path / "b", 3), checkpoint(tmp_path / "a", 3))


def test_a_run_that_was_stopped_stays_stopped_unless_it_gets_more_patience(world, tmp_path):
    results = (5, 1, 1, 1, 1, 1, 1, 1)
    first = start(world, tmp_path, results, early_stopping_patience=2)
    same = start(world, tmp_path, results, "last", early_stopping_patience=2)
    assert same.state.global_step == first.state.global_step == 3
    assert_same_weights(same.model.state_dict(), checkpoint(tmp_path, 1))
    more = start(world, tmp_path, results, "last", early_stopping_patience=4)
    assert more.state.global_step == 5


def test_a_second_run_of_a_trainer_counts_anew(world, tmp_path):
    trainer = start(world, tmp_path, (5, 1, 1, 1, 1, 1, 1, 1), early_stopping_patience=2)
    trainer.train()
    assert trainer.state.global_step == 3


def test_it_stops_by_the_metric_that_is_named_and_by_averaged_weights(world, tmp_path):
    settings = {"metric_for_best_model": "image_to_text_median_rank", "ema_decay": 0.9, "early_stopping_patience": 1}
    flags = FLAGS | {"eval_data": world.imagefolder, "image_tokenizer": None, "learning_rate": 0.3} | settings
    trainer = make_trainer(world.flags(tmp_path, NO_TOKENS, **flags))
    trainer.train()
    name = "eval_image_to_text_median_rank"
    lines = [line[name] for line in trainer.state.log_history if name in line]
    assert trainer.state.global_step == stops_at([-rank for rank in (*lines, *[99] * (8 - len(lines)))], 1)[0]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping_patience": 0}, "--early_stopping_patience must be at least 1"),
        ({"eval_strategy": "no"}, "--early_stopping_patience counts evaluations: give --eval_data"),
        ({"save_strategy": "no"}, "--early_stopping_patience needs evaluations where checkpoints are saved"),
        ({"save_strategy": "epoch"}, "--early_stopping_patience needs evaluations where checkpoints are saved"),
        ({"save_steps": 4}, "--save_steps 4 must equal --eval_steps 1, or set --save_strategy best"),
        ({"eval_data": None}, "eval_dataset|--eval_data"),
        ({"metric_for_best_model": "accuracy"}, "--metric_for_best_model accuracy is not an evaluation metric"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(world, tmp_path, settings, message):
    settings = (
        FLAGS | {"early_stopping_patience": 2, "eval_data": world.imagefolder, "image_tokenizer": None} | settings
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(world.flags(tmp_path, NO_TOKENS, **settings))
