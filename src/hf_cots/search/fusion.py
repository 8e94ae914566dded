"""How many candidates are re-ranked, and how the two scores of a candidate are fused."""

import math
from dataclasses import dataclass

import numpy as np


STEPS = 40  # of the weight, from 0 to 1


@dataclass(frozen=True)
class Fusion:
    """Fused score: `weight * similarity / similarity_scale + (1 - weight) * logit / logit_scale`.

    Args:
        weight: of the first stage's similarity, in [0, 1]; 0, the default, ranks by the re-ranker alone, as its
            authors do.
        similarity_scale, logit_scale: what one unit of each is.

    Raises:
        ValueError: if the weight or a scale is out of range.
    """

    weight: float = 0.0
    similarity_scale: float = 1.0
    logit_scale: float = 1.0

    def __post_init__(self):
        if not 0 <= self.weight <= 1 or not self.similarity_scale > 0 or not self.logit_scale > 0:
            raise ValueError(f"the fusion weight must be in [0, 1] and the scales must be positive, got {self}")

    def __call__(self, similarities: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Fused scores, float64, of any shape that the two share."""
        first = np.asarray(similarities, dtype=np.float64) / self.similarity_scale
        second = np.asarray(logits, dtype=np.float64) / self.logit_scale
        return self.weight * first + (1 - self.weight) * second

    @classmethod
    def fit(cls, similarities: np.ndarray, logits: np.ndarray, correct: np.ndarray) -> "Fusion":
        """Choose the weight that ranks the candidates of validation queries best, by mean reciprocal rank.

        Weights 0 and 1 are among those tried: on its own data the fusion is never worse than either stage. Scales are
        the standard deviations over the candidates. Of equally good weights the smallest is taken.

        Args:
            similarities, logits: (n, k).
            correct: (n, k) bool. Queries without a correct candidate do not count.

        Raises:
            ValueError: if no query has a correct candidate.
        """
        if not correct.any():
            raise ValueError("no validation query has a correct answer among its candidates: use more candidates")
        scales = [max(float(np.std(values, dtype=np.float64)), 1e-12) for values in (similarities, logits)]
        tried = [cls(step / STEPS, *scales) for step in range(STEPS + 1)]
        return max(tried, key=lambda fusion: fusion.reciprocal_rank(similarities, logits, correct))

    def reciprocal_rank(self, similarities: np.ndarray, logits: np.ndarray, correct: np.ndarray) -> float:
        """Mean over queries of 1 / rank of the best correct candidate, ties counted against it."""
        fused = self(similarities, logits)
        best = np.where(correct, fused, -np.inf).max(axis=1, keepdims=True)
        rank = 1 + ((fused >= best) & ~correct).sum(axis=1)
        return float(np.where(correct.any(axis=1), 1 / rank, 0.0).mean())


@dataclass(frozen=True)
class CandidateBudget:
    """How many candidates of a query are re-ranked: those within `margin` of the first stage's best.

    A query whose best candidate leads by more than the margin is not re-ranked at all.

    Args:
        max_candidates: at most so many.
        margin: in units of similarity; all candidates by default.

    Raises:
        ValueError: if the number is negative or the margin is not a number.
    """

    max_candidates: int
    margin: float = float("inf")

    def __post_init__(self):
        if self.max_candidates < 0 or math.isnan(self.margin):
            raise ValueError(f"max_candidates must be at least 0 and the margin must not be NaN, got {self}")

    def num_candidates(self, similarities: np.ndarray) -> np.ndarray:
        """(n,) int64 for (n, k) similarities in descending order; 0 where there would be only one."""
        near = similarities[:, :1] - similarities[:, : self.max_candidates] <= self.margin
        count = near.sum(axis=1)
        return np.where(count > 1, count, 0)

    @classmethod
    def from_pairs_per_query(
        cls, similarities: np.ndarray, pairs_per_query: float, max_candidates: int
    ) -> "CandidateBudget":
        """Choose the widest margin that re-ranks at most `pairs_per_query` pairs a query on average.

        Only similarities are used, no answers, so that the margin may be chosen on the very queries that it is used
        for; on others the average is approximate.

        Args:
            similarities: (n, k) in descending order.
            pairs_per_query: the average.
            max_candidates: of any one query, such as those that fit into a latency.

        Raises:
            ValueError: if the average is negative.
        """
        if pairs_per_query < 0:
            raise ValueError(f"pairs_per_query must not be negative, got {pairs_per_query}")
        gaps = np.unique(similarities[:, :1] - similarities[:, :max_candidates])
        low, high = 0, len(gaps)  # the first `low` margins are affordable
        while low < high:
            middle = (low + high) // 2
            counts = cls(max_candidates, float(gaps[middle])).num_candidates(similarities)
            low, high = (middle + 1, high) if counts.mean() <= pairs_per_query else (low, middle)
        return cls(max_candidates, float(gaps[low - 1]) if low else -1.0)


def rerank_order(fused: np.ndarray, num_candidates: int) -> np.ndarray:
    """(k,) positions of one query's candidates after both stages, best first; equal scores keep their order."""
    reranked = np.argsort(-fused[:num_candidates], kind="stable")
    return np.concatenate([reranked, np.arange(num_candidates, len(fused))])
