"""Bootstrap intervals of any statistic of independent items; retrieval has its own, over pictures."""

from collections.abc import Callable

import numpy as np

from ..retrieval.significance import LEVEL, RESAMPLES


def bootstrap_intervals(
    statistic: Callable[[np.ndarray], dict[str, float]], items: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """The central 95% of a statistic's values on draws of the items with replacement (Efron's percentile method).

    Args:
        statistic: takes (items,) int64 indices, gives named values. A draw for which a value is not finite (a
            correlation of equal numbers, say) does not count for that value.
        items: their number.
        resamples: draws.
        seed: of the draws.

    Returns:
        `{name: [low, high]}`.
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(items, size=items)) for _ in range(resamples)]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: np.nanquantile([values[name] for values in drawn], tails).tolist() for name in drawn[0]}
