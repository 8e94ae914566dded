"""How a training step and a search grow: with the queue, the image, the ranks and the gallery.

    python -m benchmarks.growth
    python -m benchmarks.growth --queues 1024 65536 --images 112 --ranks 2 --galleries 1000 --output few.json

The model is a ViT-S/16 beside a BERT of six layers, 384 wide; random weights and data, float32. Each point is measured
in a process of its own with one thread. Times are those of the processor, the least of three: others who use the
machine change them little. Memory is the most that a step took above what stood before it.

    queue     64 pairs whose features are given, so that no tower runs: keys, losses, their gradients, the queue
    image     a whole step of 4 pairs at an image size, with all levels and without the token level
    ranks     processes that train together by gloo: the bytes that one hands over in a step, by collective
    gallery   one exact search for 10 among vectors in memory, as an index does it, and one by signs (1,000 candidates)

Vectors that would take more than 6 GB are left out and named in `left_out`. `projection` is computed, for COTS-base on
more GPUs than we have, from the bytes that were counted and the assumptions beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, ViTConfig

from hf_cots import COTSConfig, COTSForPreTraining, COTSTrainer, COTSTrainingArguments
from hf_cots.search.vectors import nearest, nearest_by_signs, pack, sign_bits
from hf_cots.training.timed_steps import Stepper

from .approximate_search import cpu_milliseconds
from .data_loading import count_operations
from .machine import machine
from .momentum_cost import random_batch


DIM, LENGTH, MOST = 256, 32, 6e9
NO_TOKENS = {"mvm_weight": 0, "mlm_weight": 0}
# What the projection assumes: the maker's dense bf16 peak, and one direction of the links of one GPU.
ASSUMED: dict[str, Any] = {
    "gpu": "A100 SXM",
    "peak_tflops": 312,
    "utilization": 0.35,
    "gpus_of_a_node": 8,
    "gigabytes_per_second_in_a_node": 300,
    "gigabytes_per_second_between_nodes": 25,
    "pairs_of_a_gpu": 64,
}


def small_config(side: int = 224, **fields: Any) -> COTSConfig:
    towers = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    return COTSConfig.from_towers(
        ViTConfig(image_size=side, **towers), BertConfig(num_hidden_layers=6, **towers), **fields
    )


def resident(line: str) -> int:
    """Bytes of this process in memory: `VmRSS` now, `VmHWM` the most since it was reset."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(each.split()[1]) for each in status if each.startswith(f"{line}:"))


def least(call: Callable[[], Any], rounds: int = 3) -> dict[str, float]:
    """Milliseconds of the processor, the least of the rounds, and the most memory above what stood before; one round
    before them pays for allocations."""
    call()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, times = resident("VmRSS"), []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return {
        "cpu_ms": round(1000 * min(times), 1),
        "megabytes_above": round((resident("VmHWM") - before) / 1e6, 1),
    }


# ---------------------------------------------------------------------- one point each


def measure_queue(size: int, pairs: int = 64) -> dict[str, Any]:
    model = COTSForPreTraining(small_config(queue_size=size, **NO_TOKENS)).train()
    for rows in (model.key_queue.image_keys, model.key_queue.text_keys):
        torch.nn.functional.normalize(rows.normal_(), out=rows)
    model.key_queue.filled.fill_(size)
    towers = {"image": model.config.vision_config, "text": model.config.text_config}
    features = {f"{kind}_features": torch.randn(pairs, tower.hidden_size) for kind, tower in towers.items()}
    batch = {"features": features, "image_ids": torch.arange(1, pairs + 1)}

    def step() -> None:
        (begun,) = model.begin_step([batch])
        model(**batch, step=begun).loss.backward()
        model.zero_grad()

    held = sum(buffer.numel() * buffer.element_size() for buffer in model.key_queue.buffers())
    return least(step) | {"queue_megabytes": round(held / 1e6, 1)}


class RandomPairs(torch.utils.data.Dataset):
    """Indices; the collator makes the pairs."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: Any) -> Any:
        return index


def build_stepper(config: COTSConfig, folder: str, **arguments: Any) -> Stepper:
    """Steps of 4 pairs for each process, as training takes them."""
    torch.manual_seed(0)
    arguments |= {"output_dir": folder, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    trainer = COTSTrainer(
        model=COTSForPreTraining(config),
        args=COTSTrainingArguments(dataloader_num_workers=0, **arguments),
        train_dataset=RandomPairs(),
        data_collator=lambda items: random_batch(config, len(items), LENGTH),
    )
    return Stepper(trainer)


def measure_image(side: int) -> dict[str, Any]:
    found = {}
    for name, fields in (("contrast", NO_TOKENS), ("all_levels", {})):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = least(build_stepper(small_config(side, **fields), folder).step)
    return found


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process hands to each kind of collective, DDP's own among them."""

    def __init__(self):
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::").rstrip("_")
            handed = args[1] if name == "allgather" else args[0]  # where what is received comes first
            tensors = [each for each in tree_leaves(handed) if isinstance(each, torch.Tensor)]
            self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return function(*args, **(kwargs or {}))


def measure_ranks(processes: int) -> dict[str, Any] | None:
    """Run by each of the processes; the first one answers."""
    with tempfile.TemporaryDirectory() as folder:
        stepper = build_stepper(small_config(64, **NO_TOKENS), folder, ddp_backend="gloo" if processes > 1 else None)
        times = least(stepper.step)
        with Traffic() as traffic:
            stepper.step()
    if not stepper.trainer.is_world_process_zero():
        return None
    trained = [each.numel() for each in stepper.trainer.model.parameters() if each.requires_grad]
    computed = step_bytes(sum(trained), pairs=4) if processes > 1 else {}
    return {"cpu_ms": times["cpu_ms"], "bytes": traffic.bytes, "computed_bytes": computed}


def step_bytes(parameters: int, pairs: int) -> dict[str, int]:
    """What a process hands over in a step: gradients in float32; both keys, image id and index of each pair, and how
    many pairs there are."""
    return {"allreduce": 4 * parameters, "allgather": pairs * (2 * 4 * DIM + 2 * 8) + 8}


def measure_gallery(count: int, dtype: str) -> dict[str, Any]:
    draws, parts = np.random.default_rng(0), []
    for start in range(0, count, 100_000):
        rows = draws.standard_normal((min(100_000, count - start), DIM), dtype=np.float32)
        parts.append(pack(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype))
    rows = np.empty(count, dtype=parts[0].dtype) if parts[0].ndim == 1 else np.empty((count, DIM), parts[0].dtype)
    for start in range(0, count, 100_000):  # one after another, so that two copies are never there at once
        rows[start : start + 100_000] = parts.pop(0)
    queries = draws.standard_normal((max(3, min(50, 5_000_000 // count)), DIM), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    bits = sign_bits(rows) if dtype == "binary" else np.empty(0)

    def search(query: np.ndarray) -> Any:
        if dtype == "binary":
            return nearest_by_signs(rows, bits, query, 10, candidates=1_000)
        return nearest(rows, query, 10)

    search(queries[0])
    searched = bits.nbytes or rows.nbytes  # by signs the rows themselves stay on the disk
    return {"cpu_ms": cpu_milliseconds(search, queries), "megabytes": round(searched / 1e6, 1)}


# ---------------------------------------------------------------------- the projection


def project(gpus: int, parameters: int, flops_of_a_pair: float) -> dict[str, float]:
    """Seconds of a step of COTS-base, computed: the work, and what is exchanged by rings."""
    pairs = ASSUMED["pairs_of_a_gpu"]
    handed = step_bytes(parameters, pairs)
    where = "in_a_node" if gpus <= ASSUMED["gpus_of_a_node"] else "between_nodes"
    rate = ASSUMED[f"gigabytes_per_second_{where}"] * 1e9
    work = pairs * flops_of_a_pair / (ASSUMED["utilization"] * ASSUMED["peak_tflops"] * 1e12)
    sums, keys = 2 * (gpus - 1) / gpus * handed["allreduce"] / rate, (gpus - 1) * handed["allgather"] / rate
    return {
        "pairs_of_a_step": pairs * gpus,
        "gigabytes_sent_by_a_gpu": round((sums + keys) * rate / 1e9, 3),
        "ms_work": round(1000 * work, 1),
        "ms_gradients": round(1000 * sums, 1),
        "ms_keys": round(1000 * keys, 2),
        "efficiency_one_after_another": round(work / (work + sums + keys), 3),
        # DDP sums gradients while the rest of the backward pass, two thirds of the work, is computed.
        "efficiency_overlapped": round(work / (work + keys + max(0.0, sums - 2 / 3 * work)), 3),
    }


def project_base(counts: list[int]) -> dict[str, Any]:
    config = COTSConfig()
    with torch.device("meta"):
        model = COTSForPreTraining(config).train()
    parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
    flops = count_operations(config, length=LENGTH)
    facts = {
        "trained_parameters": parameters,
        "gigaflop_of_a_pair": round(flops / 1e9),
        "queue_size": config.queue_size,
    }
    return {"assumed": ASSUMED, **facts, "gpus": {str(each): project(each, parameters, flops) for each in counts}}


# ---------------------------------------------------------------------- all points


def run_point(kind: str, *values: str) -> dict[str, Any]:
    """One point, in a process of its own, or in as many as train together."""
    command = [sys.executable, "-m"]
    if kind == "ranks" and values[0] != "1":
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", values[0], "-m"]
    command += ["benchmarks.growth", "--point", kind, *values]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{kind} {' '.join(values)}: {ended.stderr[-2000:]}")
    print(kind, *values, lines[-1], flush=True)
    return json.loads(lines[-1])


def answer_point(kind: str, *values: str) -> None:
    """Measure, print, and end at once: gloo aborts now and then while the interpreter shuts down."""
    torch.set_num_threads(1)
    measures: dict[str, Any] = {"queue": measure_queue, "image": measure_image, "ranks": measure_ranks}
    found = measure_gallery(int(values[0]), values[1]) if kind == "gallery" else measures[kind](int(values[0]))
    if found is not None:
        print(json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queues", type=int, nargs="*", default=[2**10, 2**12, 2**14, 2**16, 2**18, 2**20])
    parser.add_argument("--images", type=int, nargs="*", default=[112, 224, 384])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--galleries", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--point", nargs="+", metavar="KIND", help="measure one point in this process")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "growth.json")
    options = parser.parse_args()
    if options.point:
        answer_point(*options.point)
    report: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 1), "machine": machine()}
    for kind, points in (("queue", options.queues), ("image", options.images), ("ranks", options.ranks)):
        report[kind] = {str(point): run_point(kind, str(point)) for point in points}
    sizes = {"float32": 4 * DIM, "int8": DIM + 4, "binary": DIM + 4 + DIM // 8}
    left_out = [(n, dtype) for dtype, size in sizes.items() for n in options.galleries if n * size > MOST]
    report["gallery"] = {
        dtype: {str(n): run_point("gallery", str(n), dtype) for n in options.galleries if (n, dtype) not in left_out}
        for dtype in sizes
    }
    report |= {"left_out": left_out, "projection": project_base([8, 64, 512])}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
