"""How many candidates are re-ranked, and how the two scores of a candidate become one."""

from dataclasses import dataclass

import numpy as np
import torch


STEPS = 40  # of the weight, from 0 to 1


@dataclass(frozen=True)
class Fusion:
    """One score of two: `weight * similarity / similarity_scale + (1 - weight) * logit / logit_scale`.

    Args:
        weight: share of the first step, in [0, 1]; 0, the default, leaves the word to the judge, as its authors do.
        similarity_scale, logit_scale: what one unit of each is.
    """

    weight: float = 0.0
    similarity_scale: float = 1.0
    logit_scale: float = 1.0

    def __call__(self, similarities: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Fused scores, float64, of any shape that the two share."""
        first, second = similarities.double() / self.similarity_scale, logits.double() / self.logit_scale
        return self.weight * first + (1 - self.weight) * second

    @classmethod
    def fit(cls, similarities: torch.Tensor, logits: torch.Tensor, correct: torch.Tensor) -> "Fusion":
        """The weight that ranks the candidates of validation queries best, by mean reciprocal rank.

        Weights 0 and 1 are among those tried: on its own data the fusion is never worse than either step. Scales are
        the standard deviations over the candidates. Of equally good weights the smallest is taken.

        Args:
            similarities, logits: (n, k).
            correct: (n, k) bool. Queries without a correct candidate say nothing.

        Raises:
            ValueError: if no query has a correct candidate.
        """
        if not bool(correct.any()):
            raise ValueError("no validation query has a correct answer among its candidates: propose more of them")
        scales = [max(float(values.double().std(correction=0)), 1e-12) for values in (similarities, logits)]
        tried = [cls(step / STEPS, *scales) for step in range(STEPS + 1)]
        return max(tried, key=lambda fusion: fusion.reciprocal_rank(similarities, logits, correct))

    def reciprocal_rank(self, similarities: torch.Tensor, logits: torch.Tensor, correct: torch.Tensor) -> float:
        """Mean over queries of 1 / rank of the best correct candidate, ties counted against it."""
        fused = self(similarities, logits)
        best = fused.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
        rank = 1 + ((fused >= best) & ~correct).sum(dim=1)
        return float(torch.where(correct.any(dim=1), 1 / rank, 0.0).mean())


@dataclass(frozen=True)
class CandidateBudget:
    """How many candidates of a query are judged: those that the first step puts within `width` of its best.

    A query whose best candidate leads by more than that is not judged at all.

    Args:
        most: never more than this.
        width: in units of similarity; all candidates by default.
    """

    most: int
    width: float = float("inf")

    def of(self, similarities: torch.Tensor) -> torch.Tensor:
        """(n,) int64 for (n, k) similarities in descending order; 0 where there would be one only."""
        near = similarities[:, :1] - similarities[:, : self.most] <= self.width
        depth = near.sum(dim=1)
        return torch.where(depth > 1, depth, 0)

    @classmethod
    def within_budget(cls, similarities: torch.Tensor, budget: float, most: int) -> "CandidateBudget":
        """The widest margin that judges at most `budget` pairs a query on average.

        It looks at no answers, so that it may be chosen on the very queries that it is used for; on others the average
        is only about the same.

        Args:
            similarities: (n, k) in descending order.
            budget: pairs a query.
            most: pairs of any one query; what a limit of latency allows, see [`depth_within`].

        Raises:
            ValueError: if the budget is negative.
        """
        if budget < 0:
            raise ValueError(f"a budget must not be negative, got {budget}")
        gaps = (similarities[:, :1] - similarities[:, :most]).flatten().unique()
        low, high = 0, len(gaps)  # the first `low` widths are affordable
        while low < high:
            middle = (low + high) // 2
            affordable = cls(most, float(gaps[middle])).of(similarities).double().mean() <= budget
            low, high = (middle + 1, high) if affordable else (low, middle)
        return cls(most, float(gaps[low - 1]) if low else -1.0)


def depth_within(seconds: float, seconds_per_pair: float) -> int:
    """How many pairs fit into a limit of latency."""
    return int(seconds / seconds_per_pair)


def order_of(fused: torch.Tensor, depth: int) -> np.ndarray:
    """(k,) places of one query's candidates after both steps, best first; of equal scores the first step's order."""
    judged = torch.argsort(fused[:depth], descending=True, stable=True)
    return torch.cat([judged, torch.arange(depth, len(fused))]).numpy()
