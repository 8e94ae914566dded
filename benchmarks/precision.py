"""Compares training in bf16 and float32: the demo's model, 300 steps, several seeds in each precision.

    python -m benchmarks.precision --output benchmarks/results/precision.json

Needs the extra `demo`. Each run's result is written when it ends; a run recorded in the file is not repeated.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from hf_cots.data.sets.emoji import write_emoji_set
from hf_cots.demo.data import load_gallery
from hf_cots.demo.training import build_cots_trainer, train_image_tokenizer

from .machine import machine


LAST = 60  # final steps over which losses are averaged


def measure(folder: Path, seed: int, steps: int, bf16: bool) -> dict[str, float]:
    """Final losses and recall on unseen concepts of one run."""
    trainer = build_cots_trainer(folder, seed=seed, max_steps=steps, bf16=bf16)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    lines = [line for line in trainer.state.log_history if "loss" in line and line["step"] > steps - LAST]
    names = [name for name in lines[0] if name.startswith("loss")]
    result = {name: statistics.mean(line[name] for line in lines) for name in names}
    for direction, values in trainer.retrieval(load_gallery(folder)).items():
        result |= {f"{direction}_R@{k}": values[f"R@{k}"] for k in (1, 5, 10)}
    return result | {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    arguments = parser.parse_args()

    report: dict[str, Any] = {"what": f"the demo's model, {arguments.steps} steps of 64", "runs": {}}
    if arguments.output.is_file():
        report["runs"] = json.loads(arguments.output.read_text())["runs"]
    report["machine"] = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_emoji_set(folder / "data", seed=0)
        train_image_tokenizer(folder)
        for seed in range(arguments.seeds):
            for precision in ("float32", "bf16"):
                if f"{precision}-{seed}" in report["runs"]:
                    continue
                result = measure(folder, seed, arguments.steps, precision == "bf16")
                report["runs"][f"{precision}-{seed}"] = result
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(report, indent=2) + "\n")
                print(precision, seed, json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
