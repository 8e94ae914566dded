"""The cost of a training step of each row: a few steps of it and of the baseline in turn, in one process."""

import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from .measure import WatchedTrainer, create_trainer
from .plan import Recipes, Run
from .sets import AblationSet


ROUNDS, WARM_UP = 9, 2  # at least so many, of which the first ones pay for allocations and do not count
SECONDS = 4.0  # that the rounds take at least: steps on stored features are short, and their medians need many


class Stepper:
    """Runs a row's trainer step by step: data, begin_step, forward, backward, optimizer, end_step."""

    def __init__(self, trainer: WatchedTrainer):
        self.trainer = trainer
        self.optimizer = trainer.create_optimizer()
        self.batches = itertools.chain.from_iterable(itertools.repeat(trainer.get_train_dataloader()))
        trainer.model.train()

    def step(self) -> float:
        """Run one step and return its seconds."""
        model, start = self.trainer.model, time.perf_counter()
        batch = self.trainer._prepare_inputs(next(self.batches))
        (begun,) = model.begin_step([batch])
        model(**batch, step=begun).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        model.end_step()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


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
            taken.append([stepper.step() for stepper in steppers])
        taken = taken[WARM_UP:]
        known[key] = {
            "seconds": statistics.median(row[-1] for row in taken),
            "ratio": statistics.median(row[-1] / row[0] for row in taken),
        }
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known[key]
