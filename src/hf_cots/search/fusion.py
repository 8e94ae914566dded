"""How many candidates are re-ranked, and how the two scores of a candidate are fused."""

import math
from dataclasses import dataclass

import numpy as np


STEPS = 40  # steps of the weight from 0 to 1


@dataclass(frozen=True)
class Fusion:
    """Fused score: `weight * similarity / similarity_scale + (1 - weight) * logit / logit_scale`.

    Args:
        weight: weight of the first stage's similarity, in [0, 1]; 0, the default, ranks by the re-ranker alone, as its
            authors do.
        similarity_scale, logit_scale: the scale of similarities and of logits.

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
        """Compute the fused scores, float64, for similarities and logits of the same shape."""
        first = np.asarray(similarities, dtype=np.float64) / self.similarity_scale
        second = np.asarray(logits, dtype=np.float64) / self.logit_scale
        return self.weight * first + (1 - self.weight) * second

    @classmethod
    def fit(cls, similarities: np.ndarray, logits: np.ndarray, correct: np.ndarray) -> "Fusion":
        """Choose the weight with the highest mean reciprocal rank on the candidates of validation queries.

        Weights 0 and 1 are among those tried, so on this data the fusion is never worse than either stage. The scales
        are the standard deviations over the candidates. Among equally good weights the smallest is chosen.

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
        """Compute the mean over queries of 1 / rank of the best correct candidate; incorrect candidates with the same
        score rank before it."""
        fused = self(similarities, logits)
        best = np.where(correct, fused, -np.inf).max(axis=1, keepdims=True)
        rank = 1 + ((fused >= best) & ~correct).sum(axis=1)
        return float(np.where(correct.any(axis=1), 1 / rank, 0.0).mean())


@dataclass(frozen=True)
class CandidateBudget:
    """How many candidates of a query are re-ranked: those whose similarity is within `margin` of the best one.

    A query whose best candidate leads by more than the margin is not re-ranked at all.

    Args:
        max_candidates: maximum number of candidates.
        margin: maximum difference in similarity; unlimited by default.

    Raises:
        ValueError: if the number is negative or the margin is not a number.
    """

    max_candidates: int
    margin: float = float("inf")

    def __post_init__(self):
        if self.max_candidates < 0 or math.isnan(self.margin):
            raise ValueError(f"max_candidates must be at least 0 and the margin must not be NaN, got {self}")

    def num_candidates(self, similarities: np.ndarray) -> np.ndarray:
        """Return the (n,) int64 numbers of candidates for (n, k) similarities in descending order; 0 instead of 1."""
        near = similarities[:, :1] - similarities[:, : self.max_candidates] <= self.margin
        count = near.sum(axis=1)
        return np.where(count > 1, count, 0)

    @classmethod
    def from_pairs_per_query(
        cls, similarities: np.ndarray, pairs_per_query: float, max_candidates: int
    ) -> "CandidateBudget":
        """Choose the widest margin that re-ranks at most `pairs_per_query` pairs per query on average.

        Only similarities are used, no labels, so the margin may be chosen on the very queries that it is used for; on
        other queries the average is approximate.

        Args:
            similarities: (n, k) in descending order.
            pairs_per_query: the average.
            max_candidates: maximum per query, for example to bound the latency.

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
    """Return the (k,) positions of one query's candidates after both stages, best first; ties keep their order."""
    reranked = np.argsort(-fused[:num_candidates], kind="stable")
    return np.concatenate([reranked, np.arange(num_candidates, len(fused))])
