"""The cost of a training step of each row: a few steps of it and of the baseline in turn, in one process."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

from hf_cots.training.timed_steps import Stepper

from .measure import create_trainer
from .plan import Recipes, Run
from .sets import AblationSet


ROUNDS, WARM_UP = 9, 2  # at least so many, of which the first ones pay for allocations and do not count
SECONDS = 4.0  # that the rounds take at least: steps on stored features are short, and their medians need many


def measure_cost(recipes: Recipes, run: Run, data: AblationSet, work: Path, smoke: bool = False) -> dict[str, float]:
    """Measure a step of the run's row with its set, towers and batch: median `seconds`, and the median `ratio` to a
    step of the baseline.

    Steps of both rows alternate, so that other load on the machine affects both alike. Measured once and kept in
    `work/timing.json`.
    """
    path, key = work / "timing.json", f"{run.set}, {run.init}, batch {run.batch}, {run.row}"
    known = json.loads(path.read_text()) if path.is_file() else {}
    if key not in known:
        rows = dict.fromkeys((recipes.baseline, run.row))
        alike = (replace(run, row=row, budget="steps", noise=0, seed=0) for row in rows)
        steppers = [Stepper(create_trainer(recipes, one, data, work / "timing", one.steps, smoke)) for one in alike]
        taken: list[list[float]] = []
        while len(taken) < ROUNDS or sum(map(sum, taken)) < SECONDS:
            taken.append([stepper.step().total for stepper in steppers])
        taken = taken[WARM_UP:]
        known[key] = {
            "seconds": statistics.median(row[-1] for row in taken),
            "ratio": statistics.median(row[-1] / row[0] for row in taken),
        }
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known[key]
