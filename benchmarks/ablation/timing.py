"""The cost of a training step of each row: a few steps of it and of the baseline in turn, in one process."""

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_cots.training.timed_steps import Stepper

from .measure import create_trainer
from .plan import Recipes, Run
from .sets import AblationSet


ROUNDS, WARM_UP = 10, 2  # at least so many, of which the first ones pay for allocations and do not count
GROUP = 8  # steps among which equally many have the token level, whatever a row's `token_every`
SECONDS = 20.0  # that the rounds take at least: steps on stored features are short, and their means need many


class Step(NamedTuple):
    """Seconds of one step, by two clocks."""

    wall: float
    processor: float


def measure_cost(recipes: Recipes, run: Run, data: AblationSet, work: Path, smoke: bool = False) -> dict[str, Any]:
    """Measure a step of the run's row with its set, towers and batch: median `seconds`, and the `ratio` of its mean to
    that of a step of the baseline (steps of one row may differ: `token_every`).

    Steps of both rows alternate, so that other load on the machine affects both alike. With one thread the ratio is
    that of processor time, which other load hardly changes. Measured once and kept in `work/timing.json`, with the
    `clock` that was read.
    """
    path, key = work / "timing.json", f"{run.set}, {run.init}, batch {run.batch}, {run.row}"
    known = json.loads(path.read_text()) if path.is_file() else {}
    if key not in known:
        rows = dict.fromkeys((recipes.baseline, run.row))
        alike = (replace(run, row=row, budget="steps", noise=0, seed=0) for row in rows)
        steppers = [Stepper(create_trainer(recipes, one, data, work / "timing", one.steps, smoke)) for one in alike]
        clock = "processor" if torch.get_num_threads() == 1 and not torch.cuda.is_available() else "wall"
        taken: list[list[Step]] = []
        while (
            len(taken) < ROUNDS
            or (len(taken) - WARM_UP) % GROUP
            or sum(seconds for row in taken for seconds, _ in row) < SECONDS
        ):
            taken.append([timed_step(stepper) for stepper in steppers])
        taken = taken[WARM_UP:]
        known[key] = {
            "seconds": statistics.median(row[-1].wall for row in taken),
            "ratio": sum(getattr(row[-1], clock) for row in taken) / sum(getattr(row[0], clock) for row in taken),
            "clock": clock,
        }
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known[key]


def timed_step(stepper: Stepper) -> Step:
    start = time.process_time()
    wall = stepper.step().total
    return Step(wall, time.process_time() - start)
