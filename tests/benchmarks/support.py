"""Lines of a results file as runs write them, and the ablation's command."""

import numpy as np

from benchmarks.ablation.__main__ import app
from tests.support.cli import succeed


DIRECTIONS = ("text_to_image", "image_to_text")


def recorded_line(row, seed, ranks, tasks=None, **recipe):
    """One run whose queries, all of different names, have the given ranks in both directions."""
    fixed = {"set": "emoji", "init": "text", "batch": 32, "steps": 10, "noise": 0, "budget": "steps"}
    metrics = {f"R@{k}": 100 * float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
    return {
        "run": f"{row}{seed}",
        "recipe": fixed | {"row": row, "seed": seed} | recipe,
        "trained_steps": 10,
        "seconds": 1.0,
        "machine": {"processor": "one", "cores": 2},
        "metrics": dict.fromkeys(DIRECTIONS, metrics),
        "ranks": dict.fromkeys(DIRECTIONS, ranks),
        "query_ids": {direction: list(range(len(ranks))) for direction in DIRECTIONS},
        "tasks": tasks,
    }


def run_command(*arguments):
    """Run `python -m benchmarks.ablation` in this process; returns what it printed."""
    done = succeed(*arguments, app=app)
    return done.output
