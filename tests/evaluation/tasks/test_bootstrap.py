"""Intervals of a known statistic."""

import numpy as np
import pytest

from hf_cots.evaluation.tasks.bootstrap import bootstrap_intervals


def test_the_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_intervals(lambda index: {"mean": values[index].mean()}, 400)["mean"]
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)  # 1,000 draws know a tail to a tenth
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_the_seed_decides():
    values = np.arange(30.0)
    first, again, other = (
        bootstrap_intervals(lambda index: {"mean": values[index].mean()}, 30, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_draws_without_a_value_do_not_count():
    """Of two items, half of all draws are one item twice, for which a spread of 0 is turned into NaN here."""
    values = np.array([1.0, 3.0])

    def spread(index):
        return {"spread": np.ptp(values[index]) or np.nan}

    assert bootstrap_intervals(spread, 2) == {"spread": [2.0, 2.0]}
