"""Bootstrap intervals of any statistic of independent items; retrieval has its own, which resamples images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..retrieval.significance import LEVEL, RESAMPLES


def bootstrap_intervals(
    statistic: Callable[[np.ndarray], dict[str, float]], items: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Compute the central 95% of a statistic over draws of the items with replacement (Efron's percentile method).

    Args:
        statistic: takes (items,) int64 indices, returns named values. A draw for which a value is not finite (a
            correlation of equal numbers, for example) does not count for that value.
        items: the number of items.
        resamples: the number of draws.
        seed: seed of the draws.

    Returns:
        `{name: [low, high]}`.
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(items, size=items)) for _ in range(resamples)]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: np.nanquantile([values[name] for values in drawn], tails).tolist() for name in drawn[0]}


def task_metrics(
    task: str,
    metrics: Callable[..., dict[str, float]],
    chance: dict[str, float],
    items: int,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """Collect a task's metrics with their bootstrap intervals, its sizes and its chance level, for JSON.

    Args:
        task: their name in a report, such as "zero_shot".
        metrics: computes them, of all items without an argument, or of those at (n,) int64 indices.
        chance: the metrics of guessing.
        items: the number of items.
        sizes: how much was evaluated.
    """
    intervals = bootstrap_intervals(metrics, items)
    return {task: metrics() | sizes | {"intervals": intervals}, "chance": {task: chance}}
