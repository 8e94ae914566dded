"""Compares training in bf16 and float32: the demo's model, 300 steps, several seeds in each precision.

    python -m benchmarks.precision --output benchmarks/results/precision.json

Needs the extra `demo`. Each run's result is written when it ends; a run recorded in the file is not repeated.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from hf_cots import COTSImageTokenizerConfig
from hf_cots.data.sets.emoji import write_emoji_set
from hf_cots.data.sources import PairDataset, load_pairs, load_table
from hf_cots.demo.recipe import TEST_STYLE, DemoRecipe, text_tower_folder
from hf_cots.demo.run import pretrain
from hf_cots.training.image_tokenizer import train_image_tokenizer

from .machine import machine


LAST = 60  # final steps over which losses are averaged


def measure(recipe: DemoRecipe, data: Path, image_tokenizer, output: Path, seed: int) -> dict[str, float]:
    """Train one run; returns final losses and recall on unseen concepts."""
    pairs = load_pairs(str(data / "train"), "image", "text", "text", seed=seed)
    own_style = load_table(str(data / "test")).filter(lambda row: row["style"] == TEST_STYLE)
    gallery = PairDataset(own_style, "image", "text", "text")
    tokenizer = AutoTokenizer.from_pretrained(text_tower_folder())
    tokenizer.model_max_length = 32
    start = time.perf_counter()
    trainer = pretrain(recipe, pairs, tokenizer, image_tokenizer, output, seed)
    seconds = time.perf_counter() - start
    lines = [line for line in trainer.state.log_history if "loss" in line and line["step"] > recipe.steps - LAST]
    names = [name for name in lines[0] if name.startswith("loss")]
    result = {name: statistics.mean(line[name] for line in lines) for name in names}
    for direction, values in trainer.retrieval(gallery).items():
        result |= {f"{direction}_R@{k}": values[f"R@{k}"] for k in (1, 5, 10)}
    return result | {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    arguments = parser.parse_args()
    recipe = replace(DemoRecipe(), steps=arguments.steps)

    report = {"what": f"the demo's model, {recipe.steps} steps of {recipe.batch_size}", "runs": {}}
    if arguments.output.is_file():
        report["runs"] = json.loads(arguments.output.read_text())["runs"]
    report["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data", Path(folder) / "run"
        write_emoji_set(data, seed=0)
        image_tokenizer = train_image_tokenizer(
            COTSImageTokenizerConfig(**recipe.tokenizer_config),
            load_pairs(str(data / "train"), "image", "text", "text"),
            Path(folder) / "image_tokenizer",
            recipe.tokenizer_steps,
            recipe.tokenizer_batch,
            learning_rate=5e-3,
        )
        for seed in range(arguments.seeds):
            for precision in ("float32", "bf16"):
                if f"{precision}-{seed}" in report["runs"]:
                    continue
                own = replace(recipe, bf16=precision == "bf16")
                result = measure(own, data, image_tokenizer, output, seed)
                report["runs"][f"{precision}-{seed}"] = result
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(report, indent=2) + "\n")
                print(precision, seed, json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
