"""The demo, step by step; every step is a call that a user can make."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.sets.emoji import write_emoji_set
from ..data.sources import PairDataset
from ..evaluation.diagnostics.image_tokenizer import evaluate_image_tokenizer
from ..evaluation.rendering.tables import terminal_table
from ..evaluation.retrieval.directions import chance_level
from ..models import COTSImageTokenizer
from ..training.publish import save_for_inference
from .figures import draw_losses
from .recipe import PLAIN, SMOKE, SMOKE_TOKENIZER, load_gallery, text_tower_folder
from .training import build_cots_trainer, train_image_tokenizer


class Stopwatch:
    """Seconds by name, and a line on the console when each step begins."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, title: str):
        self.console.rule(title)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self.console.print(f"{self.seconds[name]:.0f} s", style="dim")


def run_demo(output: Path, compare: bool = False, smoke: bool = False, seed: int = 0) -> dict[str, Any]:
    """Prepare the emoji set, train image tokenizer and COTS, evaluate on unseen concepts, save, reload and search.

    Writes `model/`, `results.json`, `results.png`, `losses.png` and `dvae.png` into `output`.

    Args:
        output: the folder; an earlier run's files are replaced.
        compare: also train the same towers with plain InfoNCE, for as many steps and for as long.
        smoke: a few steps only.
        seed: of everything random.

    Returns:
        What `results.json` holds.

    Raises:
        ModuleNotFoundError: if the extra `demo` is not installed.
    """
    output = Path(output)
    text_tower_folder()  # fails at once, not after minutes, if the extra is missing
    console = Console()
    watch = Stopwatch(console)
    flags: dict[str, Any] = {"seed": seed} | (SMOKE if smoke else {})

    with watch.step("data", "1/6  The emoji set: images and names, split by concept"):
        counts = write_emoji_set(output / "data", seed=0)
        gallery = load_gallery(output)
        console.print(f"{counts['train']} training pairs, {counts['test']} pairs of unseen concepts")

    with watch.step("image_tokenizer", "2/6  The image tokenizer: a small discrete VAE"):
        folder = train_image_tokenizer(output, seed=seed, **(SMOKE_TOKENIZER if smoke else {}))
        image_tokenizer = COTSImageTokenizer.from_pretrained(folder)
        kept, reconstructions = evaluate_image_tokenizer(image_tokenizer, gallery)
        reconstructions.save(output / "dvae.png")
        codes = image_tokenizer.config.codebook_size
        console.print(f"{kept['used_codes']} of {codes} codes in use on unseen images -> dvae.png")

    with watch.step("pretraining", "3/6  COTS: instance, token and task level, and the filter"):
        trainer = build_cots_trainer(output, **flags)
        trainer.train()
        draw_losses(trainer.state.log_history, output / "losses.png")

    with watch.step("evaluation", "4/6  Evaluation on unseen concepts"):
        results = trainer.retrieval(gallery)
        chance = chance_level(len(gallery), len(gallery.table))
        console.print(terminal_table(results | {"chance": chance}, "COTS, recall in percent"))

    with watch.step("save", "5/6  Saving the model folder"):
        save_for_inference(trainer, results, "the emoji set, training concepts", "unseen emoji concepts")
        console.print(f"{output / 'model'}: AutoModel.from_pretrained loads it")

    with watch.step("search", "6/6  A fresh process loads the model and searches"):
        subprocess.run([sys.executable, "-m", "hf_cots.demo.answer", str(output)], check=True)

    summary: dict[str, Any] = {"cots": results, "chance": {"text_to_image": chance, "image_to_text": chance}}
    if compare:
        summary |= run_comparison(output, gallery, flags, watch)
        rows = {name: values["text_to_image"] for name, values in summary.items()}
        console.print(terminal_table(rows, "text to image, recall in percent"))
    summary["seconds"] = watch.seconds | {"total": round(sum(watch.seconds.values()), 1)}
    summary["pairs"] = counts
    summary["seed"] = seed
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"all in {output}/: results.json, results.png, losses.png, dvae.png, model/")
    return summary


def run_comparison(
    output: Path, gallery: PairDataset, flags: dict[str, Any], watch: Stopwatch
) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate plain InfoNCE on the same towers: after as many steps as COTS, and after as many seconds."""
    results = {}

    def train_plain(name: str, **more: int) -> int:
        trainer = build_cots_trainer(output, PLAIN, image_tokenizer=None, **(flags | more))
        trainer.train()
        results[name] = trainer.retrieval(gallery)
        return trainer.args.max_steps

    with watch.step("clip_same_steps", "Plain InfoNCE for the same number of steps"):
        steps = train_plain("clip_same_steps")
    affordable = round(steps * watch.seconds["pretraining"] / watch.seconds["clip_same_steps"])
    with watch.step("clip_same_time", f"Plain InfoNCE for the same time: {affordable} steps"):
        train_plain("clip_same_time", max_steps=affordable)
    return results
