"""The figures of cots-icons' card, against slow loops."""

import numpy as np
import pytest

from benchmarks.icon_search import rank_best, recalls


def test_the_rank_is_that_of_the_best_correct_answer_and_ties_count_against_it():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, (30, 9)).astype(float)
    correct = generator.random((30, 9)) < 0.3
    correct[:, 0] = True
    for row, rank in enumerate(rank_best(scores, correct)):
        best = max(score for score, right in zip(scores[row], correct[row]) if right)
        assert rank == 1 + sum(score >= best and not right for score, right in zip(scores[row], correct[row]))


def test_recalls_and_intervals_count_names():
    ranks, names = np.array([1, 3, 7, 20]), ["star", "star", "home", "cat"]
    found = recalls(ranks, names)
    assert [found[f"R@{k}"] for k in (1, 5, 10)] == [25.0, 50.0, 75.0]
    low, high = found["intervals"]["R@5"]
    assert low == 0, "a draw without the two stars"
    assert high == pytest.approx(100)
