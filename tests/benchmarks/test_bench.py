"""The benchmarks that `make bench` and `make bench-gpu` run, as far as seconds allow."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import all as bench
from benchmarks import data_loading, gpu
from tests.support.tiny import tiny_config


def test_each_benchmark_is_a_module_that_takes_an_output(monkeypatch, tmp_path):
    """What a run appends: flags, machine, versions and the report; a failure is told and does not end the rest."""

    def end(command, **options):
        name = command[2].removeprefix("benchmarks.")
        if name == "precision":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nno such thing\n")
        Path(command[command.index("--output") + 1]).write_text(json.dumps({"of": name}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", end)
    monkeypatch.setattr(sys, "argv", ["all", "--output", str(tmp_path / "bench.jsonl")])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    lines = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == list(bench.BENCHMARKS)
    assert lines[0]["report"] == {"of": "data_loading"}
    assert lines[0]["machine"].keys() >= {"processor", "cores", *bench.LIBRARIES}
    assert [line["error"] for line in lines if "error" in line] == [["no such thing"]]


class ParsedError(Exception):
    """The flags are good, and what follows is not to run."""


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_a_benchmark_has_the_flags_that_it_is_started_with(name, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser):
        parse(parser)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    monkeypatch.setattr(sys, "argv", [name, *bench.BENCHMARKS[name], "--output", "report.json"])
    with pytest.raises(ParsedError):
        importlib.import_module(f"benchmarks.{name}").main()


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["all", "speed"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "no benchmark speed: choose from data_loading" in capsys.readouterr().err


def test_operations_grow_with_the_image_and_need_no_memory():
    small, large = (data_loading.count_operations(tiny_config().at_image_size(side), 4) for side in (32, 64))
    assert 1e6 < small < large


def test_8_bit_pixels_are_normalized_as_the_processor_does():
    """To rounding, not to the bit: another reason for which the collator does it."""
    processor = data_loading.processor_of(32)
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    wanted = processor.image_processor(list(image.numpy()), do_resize=False, return_tensors="pt")["pixel_values"]
    config = tiny_config(
        image_mean=processor.image_processor.image_mean, image_std=processor.image_processor.image_std
    )
    torch.testing.assert_close(data_loading.normalize(image, config), wanted)


def test_training_is_measured_at_a_batch_size():
    facts = gpu.measure(tiny_config(), 4, "cpu", compiled=False, steps=1)
    assert facts["batch_size"] == 4
    assert facts["pairs_per_second"] > 0


def test_the_costliest_operations_are_no_matrix_products():
    costliest = gpu.find_costliest(gpu.Training(tiny_config(), 4, "cpu", compiled=False))
    assert len(costliest) == 3
    assert not [name for name in costliest if name.startswith("aten::") and ("mm" in name or "conv" in name)]
    assert 0 < min(costliest.values()) <= sum(costliest.values()) < 1


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4", 312), ("other", None)]
)
def test_peaks_are_the_makers(name, peak):
    assert gpu.find_peak(name) == peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "no GPU that PyTorch can use: `make bench` measures what runs on a CPU\n"
