"""A training step on a GPU waits for nothing between two logs."""

import json

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_cots.models import distributed
from hf_cots.training.full_masks import WITH_FULL_MASK, FullMasks, switch_attention
from tests.support.runs import cookie_flags, make_trainer, simla_flags
from tests.support.steps import data, make
from tests.support.tiny import tiny_batch
from tests.support.waiting import Between, WaitsForDevice
from tests.support.worlds import World


EVERYTHING = {
    "soft_target_alpha": 0.4,
    "soft_target_warmup_steps": 9,
    "momentum_warmup_steps": 9,
    "masked_fraction": 0.5,
}
RUNS = {
    "cots": (World.flags, EVERYTHING, {"ema_decay": 0.9}),
    "cots, CLIP's contrast": (World.flags, {"contrast": "in_batch", "filter_lambda": None}, {"gradient_cache": True}),
    "simla": (simla_flags, {"hard_negative_warmup_steps": 9}, {}),
    "cookie": (cookie_flags, {}, {}),
}


def build(world, folder, kind, **settings):
    """A trainer of four steps of two micro-batches that logs the last one, whose batches were read before."""
    flags, overrides, own = RUNS[kind]
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 4} | settings
    trainer = make_trainer(flags(world, folder, overrides, dropout=0.1, max_steps=4, **own | settings))
    batches = list(trainer.get_train_dataloader())
    trainer.get_train_dataloader = lambda: DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    return trainer


def watch(trainer) -> dict[str, int]:
    """What waited in the second and third step of a run."""
    mode = WaitsForDevice()
    trainer.add_callback(Between(mode, 1, 3))
    trainer.train()
    return dict(mode.found)


@pytest.mark.parametrize("kind", RUNS)
def test_nothing_waits_between_two_logs(world, tmp_path, kind):
    trainer = build(world, tmp_path, kind)
    trainer.add_callback(FullMasks())  # as on a GPU
    assert watch(trainer) == {}
    assert trainer.state.log_history[0]["loss"] > 0


def test_on_a_cpu_only_the_check_for_padding_waits(world, tmp_path):
    """It costs nothing there, and batches without padding have the floats of a text tower without a mask."""
    assert {name.split(":")[0].split("/")[-1] for name in watch(build(world, tmp_path, "cots"))} == {
        "masking_utils.py"
    }


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: (x > 0).nonzero(),
        lambda x: torch.zeros(3).masked_scatter(x > 0, x).sum().backward(),
        lambda x: x.detach().index_put_((x > 0,), torch.zeros(())),
        lambda x: x.repeat_interleave(torch.arange(3)),
        lambda x: x.multinomial(1),
        lambda x: torch.tensor([1.0, 2.0]),
    ],
)
def test_what_waits_is_seen(wait):
    with WaitsForDevice() as mode:
        wait(torch.arange(1.0, 4.0, requires_grad=True))
    assert mode.found


class WithoutSynchronization(TrainerCallback):
    """An error where the host waits for the GPU, in the second and third step."""

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("error" if state.global_step in (1, 2) else "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", RUNS)
def test_on_a_gpu_nothing_synchronizes(world, tmp_path, kind):
    trainer = build(world, tmp_path, kind, use_cpu=None, bf16=True)
    trainer.get_train_dataloader = lambda load=trainer.get_train_dataloader: DataLoader(
        load().dataset, batch_size=None, collate_fn=lambda batch: batch, pin_memory=True
    )
    trainer.add_callback(WithoutSynchronization())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.log_history[0]["loss"] > 0


# ---------------------------------------------------------------------- what takes the place of waiting


@pytest.mark.parametrize("masked_fraction", [1.0, 0.5])
def test_masked_positions_of_the_collator_change_no_bit(world, tmp_path, masked_fraction):
    trainer = make_trainer(world.flags(tmp_path, {"masked_fraction": masked_fraction}))
    batch = next(iter(trainer.get_train_dataloader()))
    found = batch.pop("masked_positions")
    assert len(found["rows"]) == batch["bool_masked_pos"].any(dim=1).sum()
    trainer.model.eval()
    losses = [trainer.model(**batch, masked_positions=positions).loss for positions in (found, None)]
    assert torch.equal(*losses)


def test_full_masks_change_rounding_at_most(world, tmp_path):
    trainer = make_trainer(world.flags(tmp_path))
    model, batch = trainer.model.eval(), next(iter(trainer.get_train_dataloader()))
    assert not batch["attention_mask"].all()
    whole = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    before = [model(**one).loss for one in (batch, whole)]
    switch_attention(model, "sdpa", WITH_FULL_MASK)
    with WaitsForDevice() as mode:
        after = [model(**one).loss for one in (batch, whole)]
    assert not [name for name in mode.found if "masking_utils" in name]
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])


def test_full_masks_end_with_the_training_and_are_not_saved(world, tmp_path):
    trainer = build(world, tmp_path, "cots", save_strategy="steps", save_steps=4)
    trainer.add_callback(FullMasks())
    trainer.train()
    assert trainer.model.cots.text_model.config._attn_implementation == "sdpa"
    assert WITH_FULL_MASK not in (tmp_path / "checkpoint-4" / "config.json").read_text()
    assert json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())["text_config"]["model_type"] == "bert"


def test_the_host_counts_steps_as_the_model_does():
    model, other = (make(momentum_warmup_steps=10, momentum=0.9) for _ in range(2))
    seen = []
    for seed in range(3):
        model.begin_step([data(model, seed=seed)])
        seen.append(model.momentum_now())
    assert seen == pytest.approx([0, 0.09, 0.18])
    other.begin_step([data(other)])
    assert other.momentum_now() == 0
    other.load_state_dict(model.state_dict())
    assert other.momentum_now() == seen[-1]
    other.reset_queues()
    assert other.momentum_now() == 0


def test_a_step_tells_its_pairs():
    model = make()
    model.begin_step([tiny_batch(3) | {"pixel_values": tiny_batch(3)["pixel_values"].double()}, data(model, 5)])
    assert model.step_pairs == 8


def test_gpus_exchange_counts_on_a_group_of_cpus(monkeypatch):
    group = object()
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda everyone: "cuda:nccl")
    monkeypatch.setattr(distributed.dist, "new_group", lambda backend: (group, backend))
    assert distributed._cpu_group("GPUs") == (group, "gloo")
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda everyone: "cpu:gloo,cuda:nccl")
    assert distributed._cpu_group("both") == "both"
    distributed._cpu_group.cache_clear()
