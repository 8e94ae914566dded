"""The cost of the momentum update and the queues, as a percentage of a training step of COTS-base.

    python -m benchmarks.momentum_cost --batch_size 4

Random weights and data of the right shapes; one process, the parts measured in turn, medians. The result is written
to `benchmarks/results/momentum_cost.json`.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate.utils import send_to_device

from hf_cots import COTSConfig, COTSForPreTraining

from .machine import machine


def random_batch(config: COTSConfig, size: int, length: int) -> dict[str, torch.Tensor]:
    side = config.vision_config.image_size
    ids = torch.randint(1000, 20_000, (size, length))
    return {
        "pixel_values": torch.rand(size, 3, side, side) * 2 - 1,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_ids": torch.arange(size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--text_length", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "momentum_cost.json")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = COTSForPreTraining(COTSConfig()).to(arguments.device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name, call):
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - start)
        return result

    def one_by_one():
        """Update parameter by parameter, without grouping."""
        online = dict(model.cots.named_parameters())
        with torch.no_grad():
            for name, parameter in model.momentum_encoder.named_parameters():
                parameter.lerp_(online[name], 1 - model.config.momentum)

    keys = torch.randn(2, arguments.batch_size, model.config.projection_dim, device=arguments.device)
    numbers = torch.arange(arguments.batch_size, device=arguments.device)
    for step in range(arguments.steps + 1):
        batch = random_batch(model.config, arguments.batch_size, arguments.text_length)
        batch = send_to_device(batch, arguments.device)

        def train_step(batch=batch):
            (begun,) = model.begin_step([batch])
            model(**batch, step=begun).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        timed("step_without_update", train_step)
        for _ in range(5):
            timed("momentum_update", model.update_momentum)
            timed("momentum_update_one_by_one", one_by_one)
            timed("enqueue", lambda: model.key_queue.enqueue(*keys, image_ids=numbers, pair_index=numbers))
        print(f"step {step} of {arguments.steps}: {seconds['step_without_update'][-1]:.1f} s", flush=True)
        if step == 0:
            seconds.clear()  # the first step pays for allocations

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    extra = medians["momentum_update"] + medians["enqueue"]
    result = {
        "what": "COTS-base, float32, seconds, medians",
        "batch_size": arguments.batch_size,
        "queue_size": model.config.queue_size,
        "seconds": medians,
        "share_of_the_step_percent": 100 * extra / (medians["step_without_update"] + extra),
        "machine": machine(arguments.device),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
