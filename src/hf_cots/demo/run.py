"""The demo, step by step; every step is a call that a user could make."""

import json
import logging
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ViTModel, set_seed

from ..data.augmentation import RandomCropFlip
from ..data.collator import COTSCollator
from ..data.sets.emoji import write_emoji_set
from ..data.sources import PairDataset, load_pairs, load_table
from ..evaluation.diagnostics.image_tokenizer import evaluate_image_tokenizer
from ..evaluation.rendering.tables import terminal_table
from ..evaluation.retrieval.directions import chance_level
from ..models import COTSForPreTraining, COTSImageTokenizer, COTSImageTokenizerConfig
from ..training.arguments import COTSTrainingArguments
from ..training.build_model import build_processor, freeze_towers
from ..training.image_tokenizer import train_image_tokenizer
from ..training.publish import save_for_inference
from ..training.trainer import COTSTrainer
from .figures import draw_losses
from .recipe import PLAIN, TEST_STYLE, DemoRecipe, text_tower_folder, vision_config


logger = logging.getLogger(__name__)


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
    recipe = DemoRecipe.smoke() if smoke else DemoRecipe()
    console = Console()
    watch = Stopwatch(console)

    with watch.step("data", "1/6  The emoji set: pictures and names, split by concept"):
        counts = write_emoji_set(output / "data", seed=0)
        console.print(f"{counts['train']} training pairs, {counts['test']} pairs of unseen concepts")
        # Both styles of an emoji have one name: equal names count as the same picture.
        report = output / "broken_images.jsonl"
        train_pairs = load_pairs(str(output / "data" / "train"), "image", "text", "text", seed=seed, report=report)
        held_out = load_table(str(output / "data" / "test"))
        own_style = held_out.filter(lambda row: row["style"] == TEST_STYLE)
        gallery = PairDataset(own_style, "image", "text", "text", name="unseen concepts")

    with watch.step("image_tokenizer", "2/6  The image tokenizer: a small discrete VAE"):
        tokenizer_config = COTSImageTokenizerConfig(**recipe.tokenizer_config)
        image_tokenizer = train_image_tokenizer(
            tokenizer_config,
            train_pairs,
            output / "image_tokenizer",
            recipe.tokenizer_steps,
            recipe.tokenizer_batch,
            learning_rate=5e-3,
            seed=seed,
        )
        kept, reconstructions = evaluate_image_tokenizer(image_tokenizer, gallery)
        reconstructions.save(output / "dvae.png")
        console.print(
            f"{kept['used_codes']} of {tokenizer_config.codebook_size} codes in use on unseen pictures -> dvae.png"
        )

    tokenizer = AutoTokenizer.from_pretrained(text_tower_folder())
    tokenizer.model_max_length = 32
    with watch.step("pretraining", "3/6  COTS: instance, token and task level, and the filter"):
        trainer = pretrain(recipe, train_pairs, tokenizer, image_tokenizer, output, seed)
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
        summary |= run_comparison(recipe, train_pairs, gallery, tokenizer, output, seed, watch)
        rows = {name: values["text_to_image"] for name, values in summary.items()}
        console.print(terminal_table(rows, "text to image, recall in percent"))
    summary["seconds"] = watch.seconds | {"total": round(sum(watch.seconds.values()), 1)}
    summary["pairs"] = counts
    summary["seed"] = seed
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"all in {output}/: results.json, results.png, losses.png, dvae.png, model/")
    return summary


def pretrain(
    recipe: DemoRecipe,
    pairs: PairDataset,
    tokenizer: PreTrainedTokenizerBase,
    image_tokenizer: COTSImageTokenizer | None,
    output: Path,
    seed: int,
    **config_fields,
) -> COTSTrainer:
    """Train the demo's towers with its recipe; `config_fields` replace fields of the COTS config.

    Towers, data order, augmentation and learning rates are the same whatever the objective.
    """
    set_seed(seed)
    model = COTSForPreTraining.from_vision_text_pretrained(
        ViTModel(vision_config(), add_pooling_layer=False),
        text_tower_folder(),
        image_tokenizer,
        **(recipe.config | config_fields),
    )
    freeze_towers(model, list(recipe.freeze))
    arguments = COTSTrainingArguments(
        output_dir=str(output),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=recipe.logging_steps,
        bf16=recipe.bf16,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=seed,
    )
    processor = build_processor(model.config, tokenizer)
    augmentation = RandomCropFlip(model.config.vision_config.image_size, recipe.min_scale, recipe.flip)
    trainer = COTSTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        data_collator=COTSCollator(processor, model.config, augmentation),
        processing_class=processor,
    )
    trainer.train()
    return trainer


def run_comparison(
    recipe: DemoRecipe,
    pairs: PairDataset,
    gallery: PairDataset,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    seed: int,
    watch: Stopwatch,
) -> dict[str, dict[str, dict[str, float]]]:
    """The same towers under plain InfoNCE: for as many steps as COTS, and for as many seconds."""
    results = {}
    with watch.step("clip_same_steps", "Plain InfoNCE for the same number of steps"):
        trainer = pretrain(recipe, pairs, tokenizer, None, output, seed, **PLAIN)
        results["clip_same_steps"] = trainer.retrieval(gallery)
    affordable = round(recipe.steps * watch.seconds["pretraining"] / watch.seconds["clip_same_steps"])
    with watch.step("clip_same_time", f"Plain InfoNCE for the same time: {affordable} steps"):
        trainer = pretrain(replace(recipe, steps=affordable), pairs, tokenizer, None, output, seed, **PLAIN)
        results["clip_same_time"] = trainer.retrieval(gallery)
    return results
