"""Whole training runs of a few steps: logs, exact accumulation, exact resumption, and every way of running."""

import json

import pytest
import torch
from transformers import AutoModel, ResNetConfig, Trainer, TrainingArguments

from hf_cots import COTSModel
from hf_cots.data.collator import COTSCollator
from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.train import train
from hf_cots.training.checkpoints import last_checkpoint
from tests.support.runs import assert_same_weights, load_exactly, make_trainer
from tests.support.steps import assert_close
from tests.support.tiny import QUIET
from tests.support.worlds import World, all_pairs, checkpoint, log_history, tiny_processor, write_images


def run(world, folder, overrides=None, dropout=0.0, **settings):
    """Train and return the last checkpoint and the log of each step."""
    settings = {"save_strategy": "steps", "save_steps": settings.get("max_steps", 3)} | settings
    train(world.flags(folder, overrides, dropout, **settings))
    steps = int(settings.get("max_steps", 3))
    return checkpoint(folder, steps), [line for line in log_history(folder, steps) if "loss" in line]


# ---------------------------------------------------------------------- what a run leaves and logs


@pytest.fixture(scope="module")
def finished(world):
    folder = world.root / "finished"
    results = train(world.flags(folder, eval_data=world.imagefolder, save_strategy="steps", save_steps=3))
    return folder, results


def test_a_run_leaves_a_model_card(finished, world):
    folder, results = finished
    card = (folder / "model" / "README.md").read_text()
    assert f"Trained on `{world.imagefolder.name}` for 3 steps of 8 pairs." in card
    assert f"{results['image_to_text']['R@5']:.1f}" in card


def test_logs_name_everything(finished):
    folder, _ = finished
    lines = [line for line in log_history(folder, 3) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    names = {"filter_drop_rate", "batch_accuracy", "image_embedding_variance", "text_embedding_variance", "grad_norm"}
    names |= {"sim_current_keys", "sim_queued_keys", "pairs_per_second", "temperature", "broken_images"}
    for line in lines:
        assert names <= line.keys()

        assert line["pairs_per_second"] > 0
        assert line["broken_images"] == 0
    assert "filter_threshold" not in lines[0]  # still warming up
    assert lines[0]["filter_drop_rate"] == 0
    assert all("filter_threshold" in line for line in lines[1:])


def test_in_batch_contrast_logs_no_queue(world, tmp_path):
    _, lines = run(world, tmp_path, {"contrast": "in_batch", "filter_lambda": None}, max_steps=1)
    assert not {"queue_filled", "sim_current_keys", "sim_queued_keys", "filter_threshold"} & lines[0].keys()
    assert lines[0]["loss_instance"] > 0


def test_every_epoch_shows_each_pair_once_in_a_new_order(world, tmp_path, monkeypatch):
    asked = []
    original = PairDataset.__getitem__
    monkeypatch.setattr(PairDataset, "__getitem__", lambda self, key: asked.append(key) or original(self, key))
    run(world, tmp_path, max_steps=15)
    epochs = [[index for epoch, index in asked[40 * n : 40 * (n + 1)] if epoch == n] for n in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


# ---------------------------------------------------------------------- exactness


def assert_close_states(given, wanted):
    """Up to the order of float32 sums. Centered keys get more room: an untrained model's texts lie within 0.003 of
    one another, so that taking the mean away magnifies what rounding left some 300 times."""
    keys = {name for name in wanted if name.endswith("_keys")}
    assert len(keys) == 2
    for names, room in ((keys, 3e-4), (wanted.keys() - keys, 2e-5)):
        rest = wanted.keys() - names
        assert_close({n: t for n, t in given.items() if n not in rest}, {n: wanted[n] for n in names}, 1e-4, room)


@pytest.fixture(scope="module")
def one_batch_of_eight(world):
    return run(world, world.root / "eight", optim="sgd", learning_rate=0.01)


@pytest.mark.parametrize(("size", "count"), [(4, 2), (1, 8)])
def test_accumulation_gives_the_state_of_one_large_batch(world, one_batch_of_eight, tmp_path, size, count):
    """Weights, momentum weights, queues and counters after three steps with all four levels on.

    SGD, because Adam divides by the gradient's own size: where that is all but zero, rounding decides the sign of a
    whole step. What centered keys decide, the task level and the norm of the gradient, has more room, as the keys.
    """
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
    state, lines = run(world, tmp_path, optim="sgd", learning_rate=0.01, **settings)
    expected, expected_lines = one_batch_of_eight
    assert max(line["filter_drop_rate"] for line in expected_lines) > 0
    assert int(state["pairs_seen"]) == 24
    assert int(state["steps_seen"]) == 3
    assert_close_states(state, expected)
    for line, wanted in zip(lines, expected_lines):
        for name in ("loss", "loss_instance", "loss_mvm", "loss_mlm", "loss_task", "grad_norm", "filter_drop_rate"):
            room = 1e-3 if name in ("loss_task", "grad_norm") else 2e-4
            assert line[name] == pytest.approx(wanted[name], rel=room, abs=2e-5), name


def test_micro_batches_of_unequal_size_are_exact(world, tmp_path):
    """An epoch of 40 pairs as one step: 40, or 16 + 16 + 8. A mean of three means would weigh the last ones double."""
    settings = {"optim": "sgd", "learning_rate": 0.01, "max_steps": 2}
    whole, lines = run(world, tmp_path / "whole", per_device_train_batch_size=40, **settings)
    settings |= {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 3}
    pieces, again = run(world, tmp_path / "pieces", **settings)
    assert_close_states(pieces, whole)
    for line, wanted in zip(again, lines):
        for name in ("loss", "grad_norm", "loss_instance"):  # what is logged by name is the mean over the step too
            assert line[name] == pytest.approx(wanted[name], rel=2e-4), name
        assert line["filter_drop_rate"] == pytest.approx(wanted["filter_drop_rate"], rel=1e-3)


def test_three_steps_move_weights_momentum_and_queues(world, one_batch_of_eight):
    """Without which the comparison above would prove nothing."""
    state, _ = one_batch_of_eight
    start = make_trainer(world.flags(world.root / "start")).model.state_dict()
    moved = {name for name, tensor in state.items() if name in start and not torch.equal(tensor, start[name])}
    for part in ("cots.vision_model", "cots.text_model", "cots.text_projection", "momentum_encoder.vision_model"):
        assert any(name.startswith(part) for name in moved), part
    assert {"key_queue.image_keys", "key_queue.text_keys", "score_queue.scores", "mlm_bias"} <= moved
    assert not any(name.startswith("image_tokenizer") for name in moved)


@pytest.mark.parametrize("contrast", ["momentum", "in_batch"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(world, tmp_path, contrast):
    """With dropout, across the end of an epoch (five steps), queues and momentum weights included."""
    settings = {"max_steps": 6, "save_steps": 3, "dropout": 0.1}
    overrides = {"contrast": contrast, "enqueue_before_loss": contrast == "in_batch"}
    whole, lines = run(world, tmp_path / "whole", overrides, **settings)
    settings["resume_from_checkpoint"] = tmp_path / "whole" / "checkpoint-3"
    resumed, again = run(world, tmp_path / "resumed", overrides, **settings)
    assert_same_weights(resumed, whole)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    middle = checkpoint(tmp_path / "whole", 3)
    assert not torch.equal(middle["cots.visual_projection.weight"], whole["cots.visual_projection.weight"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_equals_an_uninterrupted_one_bit_for_bit(world, tmp_path, workers):
    """In mid-block, with accumulation, across the end of a pass (40 pairs, 16 to a step)."""
    settings = {"max_steps": 6, "save_steps": 2, "dropout": 0.1, "streaming": True, "shuffle_buffer_size": 12}
    settings |= {"train_data": world.parquet, "gradient_accumulation_steps": 2, "dataloader_num_workers": workers}
    whole, lines = run(world, tmp_path / "whole", **settings)
    for stop in (2, 4):
        settings["resume_from_checkpoint"] = tmp_path / "whole" / f"checkpoint-{stop}"
        resumed, again = run(world, tmp_path / f"from-{stop}", **settings)
        assert_same_weights(resumed, whole)
        assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    assert int(whole["pairs_seen"]) == 96


def test_a_stream_needs_a_number_of_steps(world, tmp_path):
    flags = world.flags(tmp_path, streaming=True, max_steps=None, num_train_epochs=1)
    with pytest.raises(ValueError, match="max_steps"):
        train(flags)


def test_a_checkpoint_that_is_not_whole_is_refused_and_passed_over(world, tmp_path):
    run(world, tmp_path, max_steps=4, save_steps=2)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=r"cannot resume: .*model\.safetensors"):
        train(world.flags(tmp_path, max_steps=4, resume_from_checkpoint=tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-2" / "complete.json").unlink()
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match=r"checkpoint-2 has no complete\.json"):
        train(world.flags(tmp_path, max_steps=4, resume_from_checkpoint=tmp_path / "checkpoint-2"))


def test_a_lora_run_resumes_with_all_that_it_trained(world, tmp_path):
    """Adapters, but also projections, token heads, queues and momentum weights, which are no adapters."""
    pytest.importorskip("peft")
    settings = {"lora_rank": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    states = []
    for name, checkpoint_folder in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-2")):
        trainer = make_trainer(world.flags(tmp_path / name, **settings))
        trainer.train(resume_from_checkpoint=checkpoint_folder)
        states.append({key: tensor.clone() for key, tensor in trainer.model.state_dict().items()})
    assert_same_weights(states[1], states[0])


# ---------------------------------------------------------------------- ways of running


RENAMED = hasattr(TrainingArguments, "activation_checkpointing")  # by a newer transformers
WAYS = {
    "bf16": {"bf16": True},
    "gradient_checkpointing": {"activation_checkpointing" if RENAMED else "gradient_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "accumulated": {"gradient_accumulation_steps": 2},
    "lora": {"lora_rank": 2},
    "frozen": {"freeze": "vision"},
    "workers": {"dataloader_num_workers": 2},
    "in_batch": {"overrides": {"contrast": "in_batch", "filter_lambda": None}},
    "learned_temperature": {"overrides": {"learn_temperature": True}},
    "share": {"overrides": {"masked_fraction": 0.5}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_in_every_way(world, tmp_path, way):
    if way == "lora":
        pytest.importorskip("peft")
    settings = dict(WAYS[way])
    overrides = settings.pop("overrides", None)
    trainer = make_trainer(world.flags(tmp_path, overrides, max_steps=1, **settings))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name].detach().cpu())}
    assert any("cots.text_projection" in name for name in moved)
    assert any("cots.text_model" in name for name in moved)
    assert any("cots.vision_model" in name for name in moved) == (way != "frozen")
    assert any("momentum_encoder." in name for name in moved) or way == "in_batch"
    assert all(torch.isfinite(p).all() for p in after.values())
    assert not any("image_tokenizer" in name for name in moved)
    (line,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert line["grad_norm"] > 0
    assert line["loss_mvm"] > 0


@pytest.mark.parametrize("way", ["gradient_checkpointing", "compiled", "workers"])
def test_ways_that_must_not_change_the_result(world, tmp_path, way):
    plain, _ = run(world, tmp_path / "plain", optim="sgd", learning_rate=0.01, max_steps=2)
    other, _ = run(world, tmp_path / "other", optim="sgd", learning_rate=0.01, max_steps=2, **WAYS[way])
    assert_close(other, plain, rtol=1e-4, atol=2e-5)


def test_a_lora_run_leaves_plain_weights(world, tmp_path):
    pytest.importorskip("peft")
    train(world.flags(tmp_path, lora_rank=2, max_steps=2))
    model = load_exactly(AutoModel, tmp_path / "model")
    start = make_trainer(world.flags(tmp_path)).model.cots
    query = "text_model.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(model.state_dict()[query], start.state_dict()[query])


def test_the_towers_learn_at_their_own_rates(world, tmp_path):
    rates = {"text_learning_rate": 1e-5, "vision_learning_rate": 3e-5, "weight_decay": 0.1}
    trainer = make_trainer(world.flags(tmp_path, max_steps=1, **rates))
    trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            tower = name.split(".")[1] if "_model." in name else "rest"
            assert group["lr"] == {"text_model": 1e-5, "vision_model": 3e-5, "rest": 1e-3}[tower], name
            plain = name.endswith("bias") or "norm" in name.lower()
            assert group["weight_decay"] == (0 if plain else 0.1), name
    assert not names


def test_evaluation_during_training(world, tmp_path):
    settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "eval_data": world.parquet}
    trainer = make_trainer(world.flags(tmp_path, **settings))
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_text_to_image_R@1" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert trainer.model.training
    for direction in ("text_to_image", "image_to_text"):
        for name in ("R@1", "R@5", "R@10", "median_rank"):
            assert 0 <= lines[0][f"eval_{direction}_{name}"] <= 100
        assert lines[0][f"eval_{direction}_gallery"] == 40
    assert int(trainer.model.steps_seen) == 4  # evaluation leaves no trace


def test_a_picture_that_breaks_is_skipped_and_counted(world, tmp_path):
    images = write_images(tmp_path / "images", 16)
    World.write_metadata(images, [{"file_name": name, "caption": text} for name, _, text in all_pairs()[:16]])
    (images / "p03.png").write_bytes(b"<html>")
    _, lines = run(world, tmp_path / "out", train_data=images, max_steps=4, dataloader_num_workers=1)
    assert lines[-1]["broken_images"] == 1
    assert [line["queue_filled"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1, 1], abs=1e-3)
    (line,) = (tmp_path / "out" / "broken_images.jsonl").read_text().splitlines()
    assert json.loads(line)["image"].startswith(str(images / "p03.png"))


def test_a_plain_trainer_trains_the_model(world, tmp_path):
    model = make_trainer(world.flags(tmp_path, {"filter_lambda": None})).model
    before = model.momentum_encoder.visual_projection.weight.clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=10,
        remove_unused_columns=False,
        label_names=["image_ids"],
        save_strategy="no",
        **QUIET,
    )
    pairs = load_pairs(str(world.imagefolder))
    trainer = Trainer(
        model=model, args=arguments, data_collator=COTSCollator(tiny_processor(), model.config), train_dataset=pairs
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert int(model.steps_seen) == 40
    assert int(model.pairs_seen) == 320
    assert not torch.equal(model.momentum_encoder.visual_projection.weight, before)


# ---------------------------------------------------------------------- learning


LEVELS = {"mvm_weight": 0.25, "mlm_weight": 0.25, "task_weight": 0.1, "temperature": 0.07, "filter_lambda": None}


# All levels on; and a queue of eight batches with a high learning rate, whose old keys are easily told from new ones.
LEARNING = {
    "all levels": ({"masked_fraction": 0.5, "learn_temperature": True}, (200, 2e-3, 16), {"R@5": 50, "R@1": 10}),
    "stale keys": ({"mvm_weight": 0, "mlm_weight": 0, "task_weight": 0}, (300, 3e-3, 8), {"R@5": 40}),
}


@pytest.mark.parametrize("name", LEARNING)
def test_the_world_is_learned(world, tmp_path, name):
    """Chance is an R@5 of 12.5 and an R@1 of 2.5."""
    overrides, (steps, rate, size), wanted = LEARNING[name]
    settings = {"max_steps": steps, "learning_rate": rate, "per_device_train_batch_size": size, "min_scale": 0.9}
    settings |= {"eval_data": world.imagefolder, "logging_steps": 100, "warmup_steps": 10}
    results = train(world.flags(tmp_path, LEVELS | {"queue_size": 64} | overrides, **settings))
    for direction in results.values():
        assert all(direction[metric] > least for metric, least in wanted.items())


# ---------------------------------------------------------------------- memory layout


def test_channels_last_changes_the_layout_and_not_the_values(world, tmp_path, monkeypatch):
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic").to_dict()
    layouts, losses = [], {}
    plain = COTSModel.encode_image

    def seen(self, pixels, *args, **kwargs):
        layouts.append(pixels.is_contiguous(memory_format=torch.channels_last))
        return plain(self, pixels, *args, **kwargs)

    monkeypatch.setattr(COTSModel, "encode_image", seen)
    for channels_last in (False, True):
        layouts.clear()
        overrides = {"mvm_weight": 0, "mlm_weight": 0}
        flags = world.flags(
            tmp_path / str(channels_last), overrides, vision=vision, image_size=64, channels_last=channels_last
        )
        trainer = make_trainer(flags)
        trainer.train()
        assert layouts
        assert set(layouts) == {channels_last}
        losses[channels_last] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_momentum_keys_are_computed_in_the_precision_of_the_forward_pass(world, tmp_path, monkeypatch):
    seen = {}
    plain = COTSModel.encode_image

    def watched(self, *args, **kwargs):
        seen.setdefault("keys" if not torch.is_grad_enabled() else "forward", set()).add(
            torch.is_autocast_enabled("cpu")
        )
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(COTSModel, "encode_image", watched)
    for bf16 in (False, True):
        seen.clear()
        make_trainer(world.flags(tmp_path / str(bf16), bf16=bf16)).train()
        assert seen == {"keys": {bf16}, "forward": {bf16}}
