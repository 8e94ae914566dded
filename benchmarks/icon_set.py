"""What 150,000 icons cost: making the set, opening it, comparing it with test data, and a frozen text tower beside it.

    python -m benchmarks.icon_set

Downloads the packages first, unless `make icons` has. Parts that the output has are not repeated. Each part runs in a
process of its own, whose processor time and largest memory are reported; the memory of workers counts one by one, as
the largest of them.

    make          `hf-cots data icons`, from downloaded packages
    open          `load_pairs` of the parquet file, and the first pair
    open_folder   the same of a folder with an image file for each icon and a metadata.csv
    overlap       `check_overlap` of the test set with the training set; `overlap_again`, with cached hashes
    steps         the recipe of cots-icons with and without `feature_cache`, step by step in turn
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from hf_cots import load_pairs
from hf_cots.data.sources import PairDataset
from hf_cots.demo.recipe import text_tower_folder
from hf_cots.evaluation.retrieval.overlap import check_overlap
from hf_cots.train import build_trainer
from hf_cots.training.arguments import parse_recipe
from hf_cots.training.timed_steps import Stepper

from .machine import machine


RECIPE = Path("model_cards/cots-icons/recipe.yaml")
ROUNDS, WARM_UP = 16, 4  # of the timed steps


def load(path: Path) -> PairDataset:
    return load_pairs(str(path), caption_column="name", image_id_column="name")


def write_folder(parquet: Path, folder: Path) -> None:
    """Write each icon as a PNG file, and their names to `metadata.csv`."""
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "name"])
        number = 0
        for batch in pq.ParquetFile(parquet).iter_batches(columns=["image", "name"]):
            for row in batch.to_pylist():
                (folder / f"{number}.png").write_bytes(row["image"]["bytes"])
                writer.writerow([f"{number}.png", row["name"]])
                number += 1


def measure_steps(data: Path, work: Path) -> dict[str, Any]:
    """Milliseconds of the processor for a step of the recipe, with stored text features and without."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe |= {"text": text_tower_folder(), "train_data": str(data / "train.parquet"), "output_dir": str(work / "run")}
    del recipe["eval_data"]
    steppers = {
        "stored": Stepper(build_trainer(*parse_recipe(recipe | {"feature_cache": str(work / "features")}))),
        "computed": Stepper(build_trainer(*parse_recipe({k: v for k, v in recipe.items() if k != "feature_cache"}))),
    }
    taken: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(ROUNDS):
        for name, stepper in steppers.items():
            start = time.process_time()
            stepper.step()
            taken[name].append(1000 * (time.process_time() - start))
    return {f"step_ms_{name}": round(statistics.median(times[WARM_UP:])) for name, times in taken.items()}


def run_part(part: str, data: Path, work: Path) -> dict[str, Any]:
    """Do one part in this process."""
    if part == "open":
        pairs = load(data / "train.parquet")
        return {"pairs": len(pairs), "first": pairs[0]["caption"]}
    if part == "open_folder":
        pairs = load(work / "folder")
        return {"pairs": len(pairs), "first": pairs[0]["caption"]}
    if part == "steps":
        return measure_steps(data, work)
    found = check_overlap(load(data / "test.parquet"), load(data / "train.parquet"))
    return {"near_duplicates": len(found.pictures), "captions": len(found.captions)}


def measure(command: list[str], cache: Path | None = None) -> dict[str, Any]:
    """Run a command; reports the processor's seconds, its own and its workers', and its largest memory."""
    environment = os.environ | ({"HF_COTS_CACHE": str(cache)} if cache else {})
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    report = json.loads(printed.splitlines()[-1]) if "--part" in command else {}
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_megabytes": round(usage.ru_maxrss * 1024 / 1e6),
    } | report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/icon_set"), help="missing folder, for times of all parts"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/icon_set.json"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work, data = arguments.work, arguments.work / "icons"
    if arguments.part:
        print(json.dumps(run_part(arguments.part, data, work)))
        return
    output = arguments.output
    results: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {"machine": machine("cpu")}
    for name in ("make", "open", "open_folder", "overlap", "overlap_again", "steps"):
        if name in results:
            continue
        if name == "open_folder" and not (work / "folder").is_dir():
            write_folder(data / "train.parquet", work / "folder")
        part = name.removesuffix("_again")
        command = [sys.executable, "-m", "benchmarks.icon_set", "--part", part, "--work", str(work)]
        if name == "make":
            command = [sys.executable, "-m", "hf_cots", "data", "icons", str(data)]
        results[name] = measure(command, work / "cache" if part == "overlap" else None)
        print(name, results[name], flush=True)
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
