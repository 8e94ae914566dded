"""Retrieval metrics from counts, with ties broken fairly.

Every value is the expectation over a uniformly random order of the entries that score the same (McSherry and Najork,
"Computing information retrieval performance measures efficiently in the presence of tied scores", ECIR 2008), so that
a model which gives every pair the same score gets exactly the chance level. The formulas need no scores, only the
counts in [`TieGroups`], and no library but numpy.

R@K, MRR, nDCG and mAP are in percent; ranks start at 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


KS = (1, 5, 10)
NDCG_AT = 10

# Column of the per-query table -> name of its mean over queries.
MEANS = {
    **{f"R@{k}": f"R@{k}" for k in KS},
    "rank": "mean_rank",
    "reciprocal_rank": "MRR",
    f"nDCG@{NDCG_AT}": f"nDCG@{NDCG_AT}",
    "average_precision": "mAP",
    **{f"fractional_R@{k}": f"fractional_R@{k}" for k in KS},
}


@dataclass(frozen=True)
class TieGroups:
    """Groups of gallery entries with equal scores and at least one correct answer, for each query from the best score
    down.

    Args:
        query: (groups,) int64, ascending from 0: the query of each group. Every query has at least one.
        above: (groups,) int64, number of gallery entries that score higher, correct or not.
        size: (groups,) int64, number of entries in the group, correct or not.
        correct: (groups,) int64, number of correct answers in the group, at least 1.
    """

    query: np.ndarray
    above: np.ndarray
    size: np.ndarray
    correct: np.ndarray


def hit_probability(above: np.ndarray, size: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Compute the probability that a correct answer is among the first k, for the first group of each query.

    Args:
        above, size, correct: (n,) as in [`TieGroups`].
        k: cut-off.

    Returns:
        (n,) float64: 1 - C(size - correct, m) / C(size, m), where m is the number of the group's ranks among the
        first k.
    """
    within_k = np.clip(k - above, 0, size)
    miss = np.ones(len(size))
    for drawn in range(k):  # m entries drawn without replacement, all of them wrong
        wrong, left = np.maximum(size - correct - drawn, 0), np.maximum(size - drawn, 1)
        miss *= np.where(drawn < within_k, wrong / left, 1.0)
    return 1 - miss


def expected_rank(above: np.ndarray, size: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Compute the (n,) float64 expected rank of the first correct answer: the smallest of `correct` random ranks out
    of `size` is (size + 1) / (correct + 1) on average."""
    return above + (size + 1) / (correct + 1)


def expected_reciprocal_rank(above: np.ndarray, size: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Compute the (n,) float64 expectation of 1 / rank of the first correct answer; arguments as for
    [`hit_probability`]."""

    def tied(above: int, size: int, correct: int) -> float:
        taken = np.arange(size - correct + 1)  # wrong entries before the first correct one
        still_wrong = np.cumprod(np.r_[1.0, (size - correct - taken[:-1]) / (size - taken[:-1])])
        return float((still_wrong * correct / (size - taken) / (above + taken + 1)).sum())

    return _sum_over_ties(tied, 1 / (above + 1.0), above, size, correct)


def expected_precisions(above: np.ndarray, size: np.ndarray, correct: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Compute the (n,) float64 expected sum of the precisions at the ranks of a group's correct answers, the terms of
    AP.

    Rank i within the group is correct with probability correct / size; then, of the i - 1 before it,
    (correct - 1) (i - 1) / (size - 1) are expected to be correct (McSherry and Najork, section 2.5).

    Args:
        above, size, correct: (n,) as in [`TieGroups`].
        before: (n,) number of correct answers in better groups.
    """

    def tied(above: int, size: int, correct: int, before: int) -> float:
        ranks = np.arange(1, size + 1)
        so_far = before + 1 + (correct - 1) * (ranks - 1) / (size - 1)
        return float((so_far / (above + ranks)).sum()) * correct / size

    return _sum_over_ties(tied, (before + 1) / (above + 1.0), above, size, correct, before)


def _sum_over_ties(tied: Callable[..., float], untied: np.ndarray, above, size, *counts) -> np.ndarray:
    """Return `untied` for groups of one entry, else the sum `tied`, computed once per distinct set of counts.

    The groups of one query are disjoint, so all sums together have at most queries x gallery terms, which is less work
    than the dot products that found the ties.
    """
    values = untied.astype(np.float64)
    where = np.flatnonzero(size > 1)
    if len(where):
        rows, inverse = np.unique(np.stack([above, size, *counts], axis=1)[where], axis=0, return_inverse=True)
        values[where] = np.array([tied(*row) for row in rows.tolist()])[inverse.reshape(-1)]
    return values


def per_query_metrics(groups: TieGroups, queries: int) -> dict[str, np.ndarray]:
    """Compute each query's metrics.

    Args:
        groups: the tie groups of queries 0 to `queries` - 1.
        queries: number of queries.

    Returns:
        Columns (queries,) float64. `R@K`: hit@K, any correct answer among the first K. `rank`: expected rank of the
        first correct answer. `reciprocal_rank`, `nDCG@10` (binary relevance, log2 discount, ideal order of *all* its
        correct answers), `average_precision` (over the whole gallery). `fractional_R@K`: the fraction of its
        correct answers among the first K. All but `rank` in percent.
    """
    query, above, size, correct = groups.query, groups.above, groups.size, groups.correct
    first = np.searchsorted(query, np.arange(queries))
    so_far = np.cumsum(correct)
    before = so_far - correct
    before = before - before[first][query]  # within the query
    relevant = np.bincount(query, correct, queries)
    best = above[first], size[first], correct[first]

    discounts = np.cumsum(np.r_[0.0, 1 / np.log2(np.arange(2, NDCG_AT + 2))])
    gains = discounts[np.minimum(above + size, NDCG_AT)] - discounts[np.minimum(above, NDCG_AT)]
    ideal = discounts[np.minimum(relevant, NDCG_AT).astype(np.int64)]
    precisions = expected_precisions(above, size, correct, before)

    columns = {f"R@{k}": 100 * hit_probability(*best, k) for k in KS}
    columns["rank"] = expected_rank(*best)
    columns["reciprocal_rank"] = 100 * expected_reciprocal_rank(*best)
    columns[f"nDCG@{NDCG_AT}"] = 100 * np.bincount(query, gains * correct / size, queries) / ideal
    columns["average_precision"] = 100 * np.bincount(query, precisions, queries) / relevant
    for k in KS:
        found = np.clip(k - above, 0, size) * correct / size
        columns[f"fractional_R@{k}"] = 100 * np.bincount(query, found, queries) / relevant
    return columns


def concatenate(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the columns of [`per_query_metrics`] for several sets of queries."""
    empty = np.empty(0, dtype=np.int64)
    parts = [per_query_metrics(TieGroups(empty, empty, empty, empty), 0), *parts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summarize(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Average the columns of [`per_query_metrics`] over queries, under the names in papers; adds `median_rank`."""
    metrics = {name: float(columns[column].mean()) for column, name in MEANS.items()}
    return metrics | {"median_rank": float(np.median(columns["rank"]))}


def rsum(results: dict[str, dict[str, float]]) -> float:
    """Sum R@1, R@5 and R@10 over the directions; at most 600 for two."""
    return sum(values[f"R@{k}"] for values in results.values() for k in KS)


def chance_level(queries: int, gallery: int, positives: int | np.ndarray = 1) -> dict[str, float]:
    """Compute the metrics of guessing, where all gallery entries of a query tie.

    Args:
        queries: number of queries.
        gallery: number of entries in the gallery.
        positives: number of correct answers per query, one for all or (queries,) int64.

    Returns:
        The metrics of [`summarize`], with `queries` and `gallery`.
    """
    correct = np.broadcast_to(np.asarray(positives, dtype=np.int64), (queries,))
    groups = TieGroups(np.arange(queries), np.zeros_like(correct), np.full_like(correct, gallery), correct)
    return summarize(per_query_metrics(groups, queries)) | {"queries": queries, "gallery": gallery}
