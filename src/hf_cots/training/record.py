"""The record of a finished training, for the model card: `training.json` and two images."""

import json
import logging
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..data.frozen_features import StoredFeaturePairs
from ..data.report import DATA_REPORT
from ..data.sources import PairDataset
from ..evaluation.rendering.panels import as_picture, draw_queries
from ..evaluation.retrieval.ranking import nearest
from ..evaluation.retrieval.report import PACKAGES, RetrievalResult
from .pair_trainer import PairTrainer


logger = logging.getLogger(__name__)

TRAINING, LOSSES, QUERIES = "training.json", "losses.png", "queries.png"
SHOWN_QUERIES, SHOWN_IMAGES = 8, 5
CLIP_SIDE = 208  # pixels of the square into which some frames of a clip are drawn
OVERLAP = ("pairs", "captions", "images", "streamed")  # of the report, which has paths of this machine
LAST = 10  # log entries over which the filter's share is averaged


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Describe processor, cores, threads, the GPU if one is used, and versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.+)", text)
    facts: dict[str, str | int] = {
        "processor": model[1] if model else platform.processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def record_training(trainer: PairTrainer, train_data: str) -> dict[str, Any]:
    """Collect what the model card says about the training, for JSON.

    Args:
        trainer: a trainer that has finished.
        train_data: name of the data, without local paths.

    Returns:
        `data` (name, license, and sizes as far as they are known), `overlap` with the evaluation data, `seconds`,
        `seed`, `precision`, `processes`, `machine`, `packages`, and `filter` (the fraction of pairs that it dropped
        at the end) if there was one.
    """
    args, history = trainer.args, trainer.state.log_history
    reported = read_data_report(Path(args.output_dir))
    sizes = {
        name: reported.get("train", {}).get(name) for name in ("pairs", "images", "captions_per_image", "dropped")
    }
    overlap = reported.get("overlap")
    dropped = [entry["filter_drop_rate"] for entry in history if "filter_drop_rate" in entry][-LAST:]
    seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    record = {
        "data": {"name": train_data, "license": find_license(trainer.train_dataset)} | sizes,
        "overlap": None if overlap is None else {name: overlap[name] for name in OVERLAP},
        # Of a resumed training only the last part was timed.
        "seconds": None if args.resume_from_checkpoint or not seconds else round(seconds[-1], 1),
        "seed": args.seed,
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "processes": args.world_size,
        "machine": machine(str(args.device)),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return record | ({"filter": sum(dropped) / len(dropped)} if dropped else {})


def read_data_report(output_dir: Path) -> dict[str, Any]:
    """Read a run's report about its data; empty if there is none."""
    path = output_dir / DATA_REPORT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def find_license(data: Any) -> str | None:
    """The license that a data set names, or the license file in its folder; None if there is neither."""
    pairs = data.pairs if isinstance(data, StoredFeaturePairs) else data
    named = getattr(getattr(getattr(pairs, "table", None), "info", None), "license", None)
    root = Path(getattr(pairs, "root", "."))
    files = sorted(path.name for path in root.glob("LICENSE*")) if root.resolve() != Path.cwd() else []
    return named or (f"see {files[0]} of the data" if files else None)


def write_record(folder: Path, trainer: PairTrainer, train_data: str) -> dict[str, Any]:
    """Write `training.json`, and `losses.png` if matplotlib is installed; returns the contents of the former."""
    record = record_training(trainer, train_data)
    (folder / TRAINING).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    try:
        from ..evaluation.rendering.training_curves import draw_losses
    except ModuleNotFoundError as error:
        logger.warning("the card has no loss curves: %s", error)
    else:
        draw_losses(trainer.state.log_history, folder / LOSSES)
    return record


def write_queries(folder: Path, result: RetrievalResult, pairs: PairDataset) -> None:
    """Write `queries.png`: captions of the evaluation data, evenly spaced, and what the model finds for each."""
    encoded = result.parts[0]
    count = min(SHOWN_QUERIES, len(encoded.captions))
    chosen = np.linspace(0, len(encoded.captions) - 1, count).astype(np.int64)
    scores, best = nearest(encoded.text_embeds[chosen], encoded.image_embeds, SHOWN_IMAGES)
    rows = []
    for query, values, images in zip(chosen.tolist(), scores.tolist(), best.tolist()):
        right = [bool(encoded.image_ids[image] == encoded.text_ids[query]) for image in images]
        found = [as_picture(pairs.read_row(encoded.rows[image]), CLIP_SIDE) for image in images]
        titles = [f"{value:.2f}" for value in values]
        rows.append((pairs.captions(np.array([encoded.captions[query]]))[0], list(zip(titles, found, right))))
    draw_queries(rows).save(folder / QUERIES)
