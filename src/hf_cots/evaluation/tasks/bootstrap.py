"""Bootstrap intervals of any statistic of independent items; retrieval has its own, which resamples images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..retrieval.significance import LEVEL, RESAMPLES


def bootstrap_intervals(
    statistic: Callable[[np.ndarray], dict[str, float]], items: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Compute the central 95% of a statistic over resamples of the items with replacement (Efron's percentile method).

    Args:
        statistic: takes (items,) int64 indices, returns named values. A resample in which a value is NaN (for example
            a correlation of equal numbers) does not count for that value.
        items: number of items.
        resamples: number of resamples.
        seed: random seed of the resamples.

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
    """Collect a task's metrics with bootstrap intervals, its sizes and its chance level as JSON types.

    Args:
        task: name of the task in the report, such as "zero_shot".
        metrics: computes the metrics of the items at (n,) int64 indices, or of all items without an argument.
        chance: the metrics of guessing.
        items: number of items.
        sizes: numbers of evaluated items.
    """
    intervals = bootstrap_intervals(metrics, items)
    return {task: metrics() | sizes | {"intervals": intervals}, "chance": {task: chance}}
