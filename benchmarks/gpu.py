"""Training COTS-base on one GPU: pairs a second, utilization, memory, and the largest batch.

    make bench-gpu
    python -m benchmarks.gpu --image_sizes 224 --peak_tflops 312

All levels, bf16, fused AdamW, random pixels that are on the device already, 32 tokens, with and without torch.compile.
The batch is doubled until the memory ends; each case is measured in a process of its own, and all of them twice, so
that the difference of the two readings shows how far a figure can be trusted. `mfu` is the operations of a step
(counted without computing them, once each) over what the GPU can do, of `--peak_tflops` or the maker's figure. At the
smallest batch a profile names the three costliest operations that are no matrix products, with their share of the
device's time.

A line with the GPU and the versions is appended to `benchmarks/results/gpu.jsonl`.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hf_cots import COTSConfig, COTSForPreTraining
from hf_cots.models.masking import draw_masks
from hf_cots.models.token_level import find_masked, mask_settings

from .data_loading import PEAKS, count_operations
from .machine import machine


LENGTH = 32
PRODUCTS = re.compile(r"::(\w*mm|matmul|linear|\w*conv\w*|\w*attention\w*)$")  # names of operations
PEAKS = PEAKS | {"H200": 989, "B200": 2250, "A10": 125, "T4": 65}


def make_batch(config: COTSConfig, pairs: int, device: str) -> dict[str, Any]:
    """Random pixels and words with masks, on the device."""
    words = config.text_config.vocab_size
    ids = np.random.default_rng(0).integers(words // 2, words, (pairs, LENGTH))
    masks = draw_masks(list(range(pairs)), ids, None, **mask_settings(config))
    drawn = {name: torch.from_numpy(mask) for name, mask in masks.items()}
    side = config.vision_config.image_size
    batch = {"input_ids": torch.from_numpy(ids), "image_ids": torch.arange(pairs)} | drawn
    moved: dict[str, Any] = {name: rows.to(device) for name, rows in batch.items()}
    moved["masked_positions"] = {name: rows.to(device) for name, rows in find_masked(config, drawn).items()}
    return moved | {"pixel_values": torch.randn(pairs, 3, side, side, device=device)}


class Training:
    """Steps of a new model on one batch over and over."""

    def __init__(self, config: COTSConfig, pairs: int, device: str, compiled: bool):
        torch.manual_seed(0)
        self.device, self.batch = device, make_batch(config, pairs, device)
        self.model = COTSForPreTraining(config).to(device).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step(self) -> None:
        with torch.autocast(self.device, torch.bfloat16):
            (step,) = self.model.begin_step([self.batch])
            loss = self.forward(**self.batch, step=step).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.end_step()

    def seconds(self, steps: int) -> float:
        """Of one step, the mean."""
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._synchronize()
        return (time.perf_counter() - start) / steps

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure(config: COTSConfig, pairs: int, device: str, compiled: bool, steps: int = 10) -> dict[str, Any]:
    """Pairs a second and peak memory of training at one batch size.

    Raises:
        torch.OutOfMemoryError: if the batch is too large.
    """
    training = Training(config, pairs, device, compiled)
    training.seconds(3)
    seconds = training.seconds(steps)
    facts = {"batch_size": pairs, "pairs_per_second": round(pairs / seconds, 1)}
    if device == "cuda":
        facts["peak_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return facts


def find_costliest(training: Training, count: int = 3) -> dict[str, float]:
    """The costliest operations of a step that are no matrix products, and the share of the device's time that each
    takes."""
    on_gpu = training.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as recorded:
        training.seconds(2)
    events = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    # A kernel's time counts for the operation that launched it.
    taken = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    others = sorted((name for name in taken if not PRODUCTS.search(name)), key=lambda name: -taken[name])
    return {name: round(taken[name] / sum(taken.values()), 3) for name in others[:count]}


def find_peak(name: str) -> float | None:
    """The maker's dense bf16 TFLOPS of a GPU, longer names first."""
    return next((PEAKS[known] for known in sorted(PEAKS, key=len, reverse=True) if known in name), None)


def run_case(side: int, compiled: bool, first: int) -> list[dict[str, Any]]:
    """Batches of `first` pairs and twice as many, and so on, until one is too large."""
    config, found, pairs = COTSConfig().at_image_size(side), [], first
    while True:
        try:
            found.append(measure(config, pairs, "cuda", compiled))
            if pairs == first:
                found[0]["costliest"] = find_costliest(Training(config, first, "cuda", compiled))
        except torch.OutOfMemoryError:
            return found
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        pairs *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--first_batch", type=int, default=64)
    parser.add_argument("--peak_tflops", type=float)
    parser.add_argument("--case", nargs=2, metavar=("SIZE", "COMPILED"), help="run one case, print its line")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.jsonl")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "no GPU that PyTorch can use: `make bench` measures what runs on a CPU\n")
    if options.case:
        side, compiled = int(options.case[0]), options.case[1] == "compiled"
        print(json.dumps(run_case(side, compiled, options.first_batch)))
        return
    peak = options.peak_tflops or find_peak(torch.cuda.get_device_name())
    cases: dict[str, Any] = {}
    for reading in (1, 2):
        for side in options.image_sizes:
            flops = count_operations(COTSConfig().at_image_size(side), length=LENGTH)
            for how in ("plain", "compiled"):
                flags = ["--case", str(side), how, "--first_batch", str(options.first_batch)]
                command = [sys.executable, "-m", "benchmarks.gpu", *flags]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(output.splitlines()[-1])
                for facts in found:
                    facts["mfu"] = peak and round(facts["pairs_per_second"] * flops / (peak * 1e12), 3)
                cases.setdefault(f"{side} {how}", []).append(found)
                print(reading, side, how, json.dumps(found), flush=True)
    report = {"what": __doc__.splitlines()[0], "peak_tflops": peak, "readings": cases, "machine": machine("cuda")}
    with open(options.output, "a", encoding="utf-8") as file:
        file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
