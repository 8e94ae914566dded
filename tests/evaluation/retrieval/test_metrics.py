"""The closed forms against the enumeration of all orders, against ranx, and at chance."""

import itertools
import math

import numpy as np
import pytest

from hf_cots.evaluation.retrieval import metrics
from tests.support.brute import expected_metrics, shuffled_metrics


def groups_of(tasks):
    """[`TieGroups`] by loops; `tasks` are (scores, correct) lists."""
    rows = []
    for query, (scores, correct) in enumerate(tasks):
        for level in sorted(set(scores), reverse=True):
            size = sum(score == level for score in scores)
            right = sum(score == level and bool(c) for score, c in zip(scores, correct))
            if right:
                rows.append((query, sum(score > level for score in scores), size, right))
    return metrics.TieGroups(*np.array(rows, dtype=np.int64).T)


def random_tasks(count, entries, levels, seed=0):
    generator = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        correct = generator.random(entries) < 0.4
        correct[generator.integers(entries)] = True
        tasks.append((generator.integers(levels, size=entries).tolist(), correct.astype(int).tolist()))
    return tasks


@pytest.mark.parametrize("levels", [1, 2, 3, 50])
def test_every_metric_is_its_mean_over_all_orders_of_ties(levels):
    tasks = random_tasks(30, entries=7, levels=levels, seed=levels)
    columns = metrics.per_query_metrics(groups_of(tasks), len(tasks))
    for query, task in enumerate(tasks):
        expected = expected_metrics(*task)
        assert columns.keys() == expected.keys()
        for name, value in expected.items():
            assert columns[name][query] == pytest.approx(value, abs=1e-10), (name, task)


@pytest.mark.parametrize("levels", [2, 8])
def test_cut_offs_inside_a_large_tie_agree_with_random_orders(levels):
    tasks = random_tasks(4, entries=40, levels=levels, seed=9)
    columns = metrics.per_query_metrics(groups_of(tasks), len(tasks))
    generator = np.random.default_rng(1)
    for query, task in enumerate(tasks):
        for name, (mean, error) in shuffled_metrics(*task, draws=3000, generator=generator).items():
            assert abs(columns[name][query] - mean) <= 4.5 * error + 1e-9, name


@pytest.mark.parametrize("positives", [1, 2, 3])
@pytest.mark.parametrize("tied", [0, 1, 2, 4])
@pytest.mark.parametrize("above", [0, 1, 3])
def test_hit_and_reciprocal_rank_equal_the_enumeration_of_places(above, tied, positives):
    choices = list(itertools.combinations(range(above, above + tied + positives), positives))
    arguments = [np.array([value]) for value in (above, tied + positives, positives)]
    for k in (1, 2, 3, 5):
        expected = sum(min(chosen) < k for chosen in choices) / len(choices)
        assert metrics.hit_probability(*arguments, k)[0] == pytest.approx(expected, abs=1e-12)
    expected = sum(1 / (1 + min(chosen)) for chosen in choices) / len(choices)
    assert metrics.expected_reciprocal_rank(*arguments)[0] == pytest.approx(expected, abs=1e-12)


def test_a_million_tied_entries_are_exact():
    """One answer among a million: a mean of harmonic numbers, to all digits."""
    n = 1_000_000
    values = metrics.chance_level(3, n)
    harmonic = math.fsum(1 / i for i in range(1, n + 1))
    assert values["R@10"] == pytest.approx(1000 / n, rel=1e-12)
    assert values["MRR"] == pytest.approx(100 * harmonic / n, rel=1e-12)
    assert values["mAP"] == pytest.approx(100 * harmonic / n, rel=1e-12)
    assert values["mean_rank"] == values["median_rank"] == (n + 1) / 2


def test_chance_with_one_answer_is_the_closed_form():
    values = metrics.chance_level(queries=20, gallery=50)
    for k in metrics.KS:
        assert values[f"R@{k}"] == pytest.approx(100 * k / 50, abs=1e-12)
        assert values[f"fractional_R@{k}"] == pytest.approx(100 * k / 50, abs=1e-12)
    assert values["median_rank"] == 25.5
    assert (values["queries"], values["gallery"]) == (20, 50)
    assert metrics.chance_level(queries=3, gallery=4)["R@5"] == 100


def test_chance_with_unlike_numbers_of_answers_is_the_mean_over_queries():
    values = metrics.chance_level(queries=3, gallery=12, positives=np.array([1, 5, 12]))
    for k in metrics.KS:
        each = [1 - math.comb(12 - p, k) / math.comb(12, k) for p in (1, 5, 12)]
        assert values[f"R@{k}"] == pytest.approx(100 * np.mean(each), abs=1e-12)
        assert values[f"fractional_R@{k}"] == pytest.approx(100 * k / 12, abs=1e-12)
    assert values["median_rank"] == pytest.approx(13 / 6)


def test_means_median_and_rsum():
    tasks = [([3, 2, 1, 0], [0, 1, 0, 0]), ([3, 2, 1, 0], [0, 0, 0, 1])]
    values = metrics.summarize(metrics.per_query_metrics(groups_of(tasks), 2))
    assert values.keys() == {*metrics.MEANS.values(), "median_rank"}
    assert (values["R@1"], values["R@5"], values["mean_rank"], values["median_rank"]) == (0, 100, 3, 3)
    assert values["MRR"] == pytest.approx(37.5)
    assert metrics.rsum({"text_to_image": values, "image_to_text": values}) == 400


def test_the_best_possible_order_gives_full_marks():
    """Twelve correct answers on top: nDCG@10 is 100 though ten places cannot hold them."""
    values = metrics.summarize(metrics.per_query_metrics(groups_of([(list(range(20, 0, -1)), [1] * 12 + [0] * 8)]), 1))
    for name in ("R@1", "MRR", "nDCG@10", "mAP"):
        assert values[name] == pytest.approx(100, abs=1e-12)
    assert values["fractional_R@10"] == pytest.approx(100 * 10 / 12)


def test_parts_put_together_are_the_whole():
    tasks = random_tasks(9, entries=8, levels=3)
    whole = metrics.per_query_metrics(groups_of(tasks), 9)
    parts = [metrics.per_query_metrics(groups_of(tasks[:4]), 4), metrics.per_query_metrics(groups_of(tasks[4:]), 5)]
    for name, column in metrics.concatenate(parts).items():
        np.testing.assert_array_equal(column, whole[name])


@pytest.mark.filterwarnings("ignore")
def test_metrics_agree_with_ranx():
    """Without ties, an independent implementation says the same of every metric."""
    from ranx import Qrels, Run, evaluate

    generator = np.random.default_rng(5)
    tasks, qrels, run = [], {}, {}
    for query in range(40):
        scores, correct = generator.permutation(30) / 30 + 0.01, generator.random(30) < 0.15
        correct[generator.integers(30)] = True
        tasks.append((scores.tolist(), correct.tolist()))
        qrels[f"q{query}"] = {f"d{i}": 1 for i in np.flatnonzero(correct)}
        run[f"q{query}"] = {f"d{i}": float(score) for i, score in enumerate(scores)}
    names = {"hit_rate": "R", "recall": "fractional_R"}
    wanted = {f"{theirs}@{k}": f"{ours}@{k}" for theirs, ours in names.items() for k in metrics.KS}
    wanted |= {"mrr": "MRR", "ndcg@10": "nDCG@10", "map": "mAP"}
    theirs = evaluate(Qrels(qrels), Run(run), list(wanted))
    ours = metrics.summarize(metrics.per_query_metrics(groups_of(tasks), 40))
    for name, value in theirs.items():
        assert ours[wanted[name]] == pytest.approx(100 * float(value), abs=1e-9), name
