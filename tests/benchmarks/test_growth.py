"""The growth of a step and of a search: what is counted and computed, and that the record agrees with itself."""

import json

import pytest
import torch
import torch.distributed as dist

from benchmarks import growth
from tests.support.paths import ROOT
from tests.support.tiny import tiny_config


@pytest.fixture(scope="module")
def record():
    return json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text(encoding="utf-8"))


def test_a_queue_is_measured_by_what_it_holds(monkeypatch):
    monkeypatch.setattr(growth, "small_config", lambda **fields: tiny_config(**fields))
    small, large = (growth.measure_queue(size, pairs=4) for size in (64, 128))
    dim = tiny_config().projection_dim
    assert small["queue_megabytes"] == round((64 * (2 * 4 * dim + 2 * 8) + 2 * 8) / 1e6, 1)
    assert small["cpu_ms"] > 0
    assert large["queue_megabytes"] >= small["queue_megabytes"]


@pytest.mark.parametrize(("dtype", "bytes_of_a_row"), [("float32", 1024), ("int8", 260), ("binary", 32)])
def test_a_gallery_is_measured_in_each_precision(dtype, bytes_of_a_row):
    found = growth.measure_gallery(2_000, dtype)
    assert found["megabytes"] == round(2_000 * bytes_of_a_row / 1e6, 1)
    assert found["cpu_ms"] > 0


def test_collectives_are_counted_by_what_a_process_hands_over(tmp_path):
    """Not by what it receives, which comes first in a gather."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with growth.Traffic() as traffic:
            dist.all_gather([torch.zeros(5, 3)], torch.ones(5, 3))
            dist.all_reduce(torch.ones(7, dtype=torch.float64))
            dist.all_reduce(torch.ones(1))
    finally:
        dist.destroy_process_group()
    assert traffic.bytes == {"allgather": 60, "allreduce": 60}


def test_the_bytes_of_a_step_are_as_computed(record):
    """DDP hands over four bytes more for each parameter tensor, by which it tells which of them a step used."""
    for processes, found in record["ranks"].items():
        computed = found["computed_bytes"]
        assert found["bytes"].keys() == computed.keys(), processes
        assert all(0 <= found["bytes"][name] - computed[name] < 4 * 1000 for name in computed)
    assert record["ranks"]["1"]["bytes"] == {}


def test_the_projection_follows_from_its_assumptions(record):
    projection = record["projection"]
    assert projection["assumed"] == growth.ASSUMED
    for gpus, row in projection["gpus"].items():
        # What is recorded in whole GFLOP is off by half of one at most.
        again = growth.project(int(gpus), projection["trained_parameters"], 1e9 * projection["gigaflop_of_a_pair"])
        assert again == pytest.approx(row, rel=0.01)


def test_a_projection_by_hand(monkeypatch):
    """16 GPUs of two nodes: 15/16 of the gradients twice, and the keys of 15 others."""
    monkeypatch.setattr(
        growth, "ASSUMED", growth.ASSUMED | {"pairs_of_a_gpu": 10, "peak_tflops": 100, "utilization": 0.5}
    )
    row = growth.project(16, parameters=10**8, flops_of_a_pair=1e12)
    assert row["ms_work"] == 200
    assert row["ms_gradients"] == 30  # 750 MB at 25 GB/s
    assert row["ms_keys"] == round(15 * (10 * 2064 + 8) / 25e9 * 1000, 2)
    assert row["efficiency_one_after_another"] == 0.87
    assert row["efficiency_overlapped"] == 1.0
