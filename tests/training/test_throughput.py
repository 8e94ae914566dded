"""What the log says of a run's speed, and the processes that read its data."""

import os
import time

import pytest
import torch

from hf_cots.train import train
from hf_cots.training.arguments import COTSTrainingArguments, default_workers, parse_arguments
from hf_cots.training.throughput import Throughput
from tests.support.runs import make_trainer
from tests.support.tiny import QUIET
from tests.support.worlds import World


class Clock:
    """A clock that is moved by hand, in place of `time.perf_counter`."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_waiting_is_a_share_of_the_time(clock):
    throughput = Throughput()
    for _ in range(2):
        with throughput.waiting():
            clock.move(3)
        clock.move(1)
        throughput.end_step(8, 8)
    assert throughput.log() == {"pairs_per_second": 2.0, "data_wait_share": 0.75}
    clock.move(4)
    assert throughput.log() == {"pairs_per_second": 0.0, "data_wait_share": 0.0}  # since the last log


def test_utilization_is_the_operations_of_all_pairs_over_the_peak(clock):
    throughput = Throughput(peak_tflops=1e-3, world_size=2)  # 10^9 a second, twice
    layer = torch.nn.Linear(100, 50, bias=False)
    for _ in range(3):  # the first step alone is counted: forward, and backward by the weight
        with throughput.counting():
            layer(torch.randn(10, 100)).sum().backward()
        throughput.end_step(pairs=20, own_pairs=10)
    assert throughput.flops_per_pair == 2 * 2 * 100 * 50
    clock.move(0.5)
    assert throughput.log()["mfu"] == round(60 * 20_000 / 0.5 / 2e9, 4)


def test_a_run_logs_them_and_computes_the_same(world, tmp_path):
    plain, counted = (make_trainer(world.flags(tmp_path / n, peak_tflops=p)) for n, p in (("a", None), ("b", 0.1)))
    for trainer in (plain, counted):
        torch.manual_seed(0)
        trainer.train()
    assert all(0 <= line["data_wait_share"] <= 1 for line in plain.state.log_history[:3])
    assert not [line for line in plain.state.log_history if "mfu" in line]
    assert all(line["mfu"] > 0 for line in counted.state.log_history[:3])
    assert [line.get("loss") for line in plain.state.log_history] == [
        line.get("loss") for line in counted.state.log_history
    ]


def test_operations_of_a_step_are_those_of_its_towers(world, tmp_path):
    """Towers alone: forward, twice that backward, and forward of the momentum encoder, 2 operations a weight."""
    overrides = {"mvm_weight": 0, "mlm_weight": 0, "task_weight": 0, "filter_lambda": None, "queue_size": 1}
    flags = world.flags(tmp_path, overrides, image_tokenizer=None, max_steps=1, peak_tflops=1)
    trainer = make_trainer(flags)
    words = next(iter(trainer.get_train_dataloader()))["input_ids"].shape[1]
    trainer.train()

    def weights(tower):
        return sum(p.numel() for name, p in tower.named_parameters() if p.ndim == 2 and "embeddings" not in name)

    cots = trainer.model.cots
    patches = 3 * 8 * 8 * cots.config.vision_config.hidden_size * 16
    layers = 17 * weights(cots.vision_model) + words * weights(cots.text_model)
    expected = 2 * (4 * layers + 3 * patches)
    # The first layer needs no gradient by its input, and attention adds little at 17 tokens.
    assert trainer.throughput.flops_per_pair == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_peak_is_above_0(world, tmp_path, value):
    with pytest.raises(ValueError, match="--peak_tflops must be above 0"):
        parse_arguments(world.flags(tmp_path, peak_tflops=value))


# ---------------------------------------------------------------------- the processes that read data


@pytest.mark.parametrize(("cores", "local", "workers"), [(64, 1, 8), (8, 1, 7), (16, 8, 1), (2, 1, 1), (1, 1, 1)])
def test_beside_a_gpu_cores_read_data(monkeypatch, cores, local, workers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert default_workers(use_cpu=False) == workers
    assert default_workers(use_cpu=True) == 0


def test_on_a_cpu_no_process_is_started(tmp_path):
    arguments = COTSTrainingArguments(output_dir=str(tmp_path), **QUIET)
    assert arguments.dataloader_num_workers == 0
    assert (
        COTSTrainingArguments(output_dir=str(tmp_path), dataloader_num_workers=3, **QUIET).dataloader_num_workers == 3
    )


def batches(world: World, folder, workers: int, **settings) -> list[dict]:
    trainer = make_trainer(world.flags(folder, dataloader_num_workers=workers, flip=0.5, **settings))
    loader = trainer.get_train_dataloader()
    read = []
    for epoch in range(2):
        trainer.batches.set_epoch(epoch)
        read += list(loader)
    return read


def flat(batch: dict) -> dict[str, torch.Tensor]:
    return {k: v for k, v in batch.items() if k != "masked_positions"} | batch["masked_positions"]


def test_the_number_of_workers_changes_no_bit(world, tmp_path):
    alone, *others = (batches(world, tmp_path, workers) for workers in (0, 1, 3))
    assert len(alone) == 10
    for other in others:
        for ours, theirs in zip(alone, other, strict=True):
            assert flat(ours).keys() == flat(theirs).keys()
            assert all(torch.equal(rows, flat(theirs)[name]) for name, rows in flat(ours).items())


def test_a_stage_of_training_reads_with_workers(world, tmp_path):
    weights = []
    for workers in (0, 2):
        train(world.flags(tmp_path / str(workers), max_steps=2, dataloader_num_workers=workers))
        weights.append((tmp_path / str(workers) / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
