"""Text-to-video on animated emoji: an image model as it is, and fine-tuned on clips, with 1, 4, 8 and 12 frames.

    python -m benchmarks.video run runs/demo/model --minutes 40
    python -m benchmarks.video summary

Needs the extra `demo`. The clip set (`hf-cots data clips`) is made first, and 165 MB are downloaded.

The 187 clips with the default skin tone are divided into three folds by concept. A model that is fine-tuned on the
clips of two folds is tested on the third, so that each clip is tested once, by models that have not seen its concept
move. The image model has seen pictures of 141 of the 163 concepts in other drawing styles, and none of the other 22:
those are reported apart. Intervals and differences come from drawing concepts with replacement, whose queries in all
seeds stay together. A run that is recorded is not repeated.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_cots.data.sets.clips import SIDES, write_clip_set
from hf_cots.data.sets.packages import EMOJIBASE, FLUENT_ANIMATED, fetch_package
from hf_cots.demo.clips import FRAMES, SETTINGS, ZERO_SHOT, Setting, measure, write_rows

from .ablation.results import Results
from .machine import machine


RESULTS = Path("benchmarks/results/video.jsonl")
FOLDS, SEEDS = 3, 3
# Ten times as expensive, and no better: one seed.
WITH_IMAGE_TOWER = tuple(Setting(frames, "mean", image_tower=True) for frames in (1, 8))
KS = (1, 5, 10)
METRICS = (*(f"R@{k}" for k in KS), "MRR")
RESAMPLES = 5000
DIRECTIONS = {"text_to_image": "text to video", "image_to_text": "video to text"}


# ---------------------------------------------------------------------- runs


def find_fold(concept: str) -> int:
    """The fold of a concept, by its hash."""
    return int(hashlib.sha256(f"fold:{concept}".encode()).hexdigest()[:8], 16) % FOLDS


def write_folds(folder: Path) -> None:
    """Make the clip set, and of each fold `test.parquet` (its clips) and `train.parquet` (those of the other folds),
    all in the default skin tone."""
    write_clip_set(folder / "clips", fetch_package(FLUENT_ANIMATED), fetch_package(EMOJIBASE))
    files = [folder / f"fold-{fold}" / f"{side}.parquet" for fold in range(FOLDS) for side in ("train", "test")]
    if all(file.is_file() for file in files):
        return
    table = pa.concat_tables([pq.read_table(folder / "clips" / f"{side}.parquet") for side in SIDES])
    table = table.filter(pc.equal(table["skin_tone"], ""))
    folds = np.array([find_fold(concept) for concept in table["concept"].to_pylist()])
    for fold in range(FOLDS):
        for side, chosen in (("train", folds != fold), ("test", folds == fold)):
            write_rows(folder / f"fold-{fold}" / f"{side}.parquet", table.filter(pa.array(chosen)))


def list_runs(seeds: int) -> Iterator[tuple[Setting, int, int]]:
    """Setting, seed and fold of each run, the most informative ones first."""
    for seed in range(seeds):
        for setting in (*SETTINGS, *WITH_IMAGE_TOWER):
            if seed == 0 or not (setting.pooling == ZERO_SHOT or setting.image_tower):
                yield from ((setting, seed, fold) for fold in range(FOLDS))


def name_run(setting: Setting, seed: int, fold: int) -> str:
    tower = "-tower" if setting.image_tower else ""
    return f"{setting.num_frames}-{setting.pooling}{tower}-seed{seed}-fold{fold}"


def run(model: str, folder: Path, results: Results, seeds: int, minutes: float | None) -> None:
    """Do the runs that are not recorded yet, until the time is over."""
    start = time.monotonic()
    write_folds(folder)
    for setting, seed, fold in list_runs(seeds):
        name = name_run(setting, seed, fold)
        if name in results.finished():
            continue
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            print("the time is over; the same command goes on")
            return
        own = folder / f"fold-{fold}"
        began, wall = time.process_time(), time.monotonic()
        result, _ = measure(model, own / "train.parquet", own / "test.parquet", folder / "runs", setting, seed)
        taken = time.process_time() - began
        line: dict[str, Any] = {
            "run": name,
            "num_frames": setting.num_frames,
            "pooling": setting.pooling,
            "image_tower": setting.image_tower,
            "seed": seed,
            "fold": fold,
            "ranks": {name: result.directions[name].columns["rank"].tolist() for name in DIRECTIONS},
            "chance": {f"R@{k}": result.chance()["text_to_image"][f"R@{k}"] for k in KS},
            "cpu_seconds": round(taken, 1),
            "seconds": round(time.monotonic() - wall, 1),
            "machine": machine(),
        }
        results.append(line)
        recalls = ", ".join(f"R@{k} {100 * np.mean(np.array(line['ranks']['text_to_image']) <= k):.1f}" for k in KS)
        print(f"{name}: {recalls} ({taken:.0f} CPU s)", flush=True)


# ---------------------------------------------------------------------- summary


def read_queries(folder: Path) -> dict[str, np.ndarray]:
    """Of the 187 queries, fold by fold in the order of the files: `fold`, `concept`, `motion`, `seen`, `change`."""
    held_out = set(pq.read_table(folder / "clips" / "test.parquet", columns=["concept"])["concept"].to_pylist())
    columns: dict[str, list[Any]] = {name: [] for name in ("fold", "concept", "motion", "unseen", "change")}
    for fold in range(FOLDS):
        table = pq.read_table(folder / f"fold-{fold}" / "test.parquet", columns=["concept", "motion", "change"])
        for row in table.to_pylist():
            columns["fold"].append(fold)
            columns["unseen"].append(row["concept"] in held_out)
            for name, value in row.items():
                columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def hits(results: Results, setting: Setting, direction: str) -> np.ndarray:
    """(queries, metrics) of a setting: R@K in percent and the reciprocal rank times 100, the mean over the seeds of
    which all folds are recorded, at least one."""
    lines = {line["run"]: line for line in results.lines()}
    seeds = []
    for seed in range(SEEDS):
        names = [name_run(setting, seed, fold) for fold in range(FOLDS)]
        if all(name in lines for name in names):
            ranks = np.concatenate([lines[name]["ranks"][direction] for name in names])
            seeds.append(100 * np.stack([*(ranks <= k for k in KS), 1 / ranks], axis=1))
    return np.mean(seeds, axis=0)


def count_seeds(results: Results, setting: Setting) -> int:
    finished = results.finished()
    return sum(all(name_run(setting, seed, fold) in finished for fold in range(FOLDS)) for seed in range(SEEDS))


class Resampling:
    """Draws concepts with replacement; the queries of a concept stay together."""

    def __init__(self, concepts: np.ndarray):
        names, groups = np.unique(concepts, return_inverse=True)
        drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
        self.weights = drawn[:, groups]  # (resamples, queries)

    def measure(self, columns: dict[str, np.ndarray]) -> dict[str, Any]:
        """Means of columns (queries,), and below `intervals` their 95% intervals; a resample without any query does
        not count."""
        totals = self.weights.sum(axis=1)
        report: dict[str, Any] = {name: float(values.mean()) for name, values in columns.items()}
        report["intervals"] = {
            name: np.quantile((self.weights @ values)[totals > 0] / totals[totals > 0], [0.025, 0.975]).tolist()
            for name, values in columns.items()
        }
        return report


def parts_of(queries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The queries of each table."""
    still, moving = np.quantile(queries["change"], [1 / 3, 2 / 3])
    return {
        "All clips": np.ones(len(queries["fold"]), dtype=bool),
        "Captions that need motion": queries["motion"],
        "The other captions": ~queries["motion"],
        "Clips that change most, a third": queries["change"] >= moving,
        "Clips that change least, a third": queries["change"] <= still,
        "Concepts that the image model has not seen": queries["unseen"],
    }


def compared() -> list[tuple[Setting, Setting]]:
    """Settings and those that they are compared with: more frames, fine-tuning, attention."""

    def one(pooling: str, tower: bool = False) -> dict[int, Setting]:
        return {frames: Setting(frames, pooling, tower) for frames in FRAMES}

    zero_shot, mean, attention, tower = one(ZERO_SHOT), one("mean"), one("attention"), one("mean", True)
    more = [(each[frames], each[1]) for each in (zero_shot, mean, tower) for frames in FRAMES[1:]]
    tuned = [(each[n], other[n]) for each, other in ((mean, zero_shot), (tower, mean)) for n in FRAMES]
    attended = [(attention[frames], mean[frames]) for frames in FRAMES]
    return [*more, *tuned, *attended]


def collect(results: Results, folder: Path) -> dict[str, Any]:
    """All figures: of each part of the queries, metrics of the settings and of their differences, text to video (and
    R@1 back), each as mean and 95% interval."""
    queries, lines = read_queries(folder), results.lines()
    report: dict[str, Any] = {
        "clips": len(queries["fold"]),
        "concepts": len(np.unique(queries["concept"])),
        "unseen_concepts": len(np.unique(queries["concept"][queries["unseen"]])),
        "galleries": [int((queries["fold"] == fold).sum()) for fold in range(FOLDS)],
        "chance": {f"R@{k}": float(np.mean([line["chance"][f"R@{k}"] for line in lines])) for k in KS},
        "machine": lines[0]["machine"],
        "parts": {},
    }
    settings = [each for each in (*SETTINGS, *WITH_IMAGE_TOWER) if count_seeds(results, each)]
    found = {(each, way): hits(results, each, way) for each in settings for way in DIRECTIONS}
    for part, chosen in parts_of(queries).items():
        resampling = Resampling(queries["concept"][chosen])

        def measured(values: np.ndarray, chosen=chosen, resampling=resampling) -> dict[str, Any]:
            return resampling.measure({name: values[chosen, i] for i, name in enumerate(METRICS)})

        report["parts"][part] = {
            "clips": int(chosen.sum()),
            "concepts": len(np.unique(queries["concept"][chosen])),
            "settings": {
                str(each): measured(found[each, "text_to_image"])
                | {"back": measured(found[each, "image_to_text"]), "seeds": count_seeds(results, each)}
                for each in settings
            },
            "differences": {
                f"{one} less {other}": measured(found[one, "text_to_image"] - found[other, "text_to_image"])
                for one, other in compared()
                if one in settings and other in settings
            },
        }
    return report


def cell(values: dict[str, Any], name: str, sign: str = "") -> str:
    low, high = values["intervals"][name]
    return f"{values[name]:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def write_markdown(report: dict[str, Any]) -> str:
    """The tables of a report."""
    chance = [f"{report['chance'][f'R@{k}']:.1f}" for k in KS]
    sizes = ", ".join(map(str, report["galleries"]))
    text = ["# Text to video on animated emoji", "", INTRODUCTION.format(sizes=sizes, **report)]
    for part, found in report["parts"].items():
        text += ["", f"## {part}: {found['clips']} clips of {found['concepts']} concepts", ""]
        text += ["| | R@1 | R@5 | R@10 | MRR | R@1 back | seeds |", "|---|---|---|---|---|---|---|"]
        for name, values in found["settings"].items():
            cells = [*(cell(values, metric) for metric in METRICS), cell(values["back"], "R@1")]
            text.append(f"| {name} | {' | '.join(cells)} | {values['seeds']} |")
        if part == "All clips":
            text.append(f"| chance | {' | '.join(chance)} | | {chance[0]} | |")
        text += ["", "| difference, text to video | R@1 | R@5 | R@10 | MRR |", "|---|---|---|---|---|"]
        for name, values in found["differences"].items():
            text.append(f"| {name} | {' | '.join(cell(values, metric, '+') for metric in METRICS)} |")
    return "\n".join(text) + "\n"


INTRODUCTION = """{clips} clips of {concepts} concepts in three folds by concept, galleries of {sizes} clips: each
clip is tested once, by models that were fine-tuned on the clips of the other two folds. The image model has seen
pictures of all but {unseen_concepts} of the concepts, in other drawing styles. Percent, means over seeds, with 95%
intervals over concepts. "Back" is from video to text. Measured on {machine[processor]}, one thread, by
`make video` ([benchmarks/video.py](../video.py))."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running, summary = verbs.add_parser("run"), verbs.add_parser("summary")
    running.add_argument("model", help="the image model: that of make demo")
    running.add_argument("--seeds", type=int, default=SEEDS)
    running.add_argument("--minutes", type=float, help="start no run after so long")
    summary.add_argument("--output", type=Path, default=RESULTS.with_suffix(".md"))
    summary.add_argument("--card", type=Path, default=Path("model_cards/cots-video/results.json"))
    for verb in (running, summary):
        verb.add_argument("--work", type=Path, default=Path("runs/video"))
        verb.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = Results(arguments.results)
    if arguments.verb == "run":
        run(arguments.model, arguments.work, results, arguments.seeds, arguments.minutes)
    else:
        write_folds(arguments.work)
        report = collect(results, arguments.work)
        arguments.output.write_text(write_markdown(report), encoding="utf-8")
        arguments.card.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
