"""The small benchmarks, one after another, on the machine that this is started on.

    make bench
    python -m benchmarks.all data_loading comparisons

Each runs in a process of its own, at a size that keeps all of them together at about ten minutes on two cores. What
each of them reports is a ratio, or holds one, of things that were measured side by side in one process: machines
compare by those. A line for each, with the machine and the versions, is appended to `benchmarks/results/bench.jsonl`;
recorded results of the full sizes, in files of their own, stay as they are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .machine import machine


BENCHMARKS = {
    "data_loading": ["--pairs", "32", "--rounds", "3"],
    "comparisons": [],
    "retrieval_scale": ["--size", "200000", "--parts", "128"],
    "approximate_search": ["--vectors", "200000"],
    "momentum_cost": ["--batch_size", "1", "--steps", "2", "--device", "cpu"],
    "image_tokenizer_cost": ["--batch_size", "1", "--repeats", "1", "--device", "cpu"],
    "gradient_cache_memory": ["--pairs", "256"],
    "precision": ["--steps", "20", "--seeds", "1"],
    "growth": ["--queues", "1024", "65536", "--images", "112", "--ranks", "2", "--galleries", "1000", "100000"],
}
LIBRARIES = ("torch", "transformers", "numpy", "pillow", "faiss-cpu", "sentence-transformers", "ranx")


def run(name: str, flags: list[str]) -> dict[str, Any]:
    """Run one benchmark; its report, or the end of what it said if it failed."""
    load, start = round(os.getloadavg()[0], 1), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags, "--output", str(output)]
        ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        seconds = round(time.perf_counter() - start, 1)
        line = {"benchmark": name, "flags": flags, "seconds": seconds, "load_before": load}
        if ended.returncode or not output.is_file():
            return line | {"error": ended.stderr.strip().splitlines()[-1:]}
        return line | {"report": json.loads(output.read_text(encoding="utf-8"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "bench.jsonl")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    facts = machine("cuda" if torch.cuda.is_available() else "cpu")
    facts |= {library: version(library) for library in LIBRARIES}
    failed = []
    for name in options.names or BENCHMARKS:
        line = run(name, BENCHMARKS[name])
        line |= {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": facts}
        with open(options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        failed += [name] if "error" in line else []
        print(f"{name}: {line['seconds']} s" + (f", failed: {line['error']}" if "error" in line else ""), flush=True)
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}\n")


if __name__ == "__main__":
    main()
