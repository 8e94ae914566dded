"""Recall against cost: what a re-ranker adds to a dual encoder, for increasing numbers of candidates."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...data.hashes import weights_fingerprint
from ...data.sources import PairDataset
from ...search.encoders import DIRECTIONS, EncodedPairs, Encoder, Side, encode_pairs
from ...search.fusion import CandidateBudget, Fusion
from ...search.loading import load_reranker
from ...search.rerank import Cost, Reranker, image_bytes
from .directions import DirectionResult
from .ranking import nearest
from .report import RetrievalResult
from .significance import RESAMPLES, bootstrap_samples, compare, intervals
from .two_stage import rank_two_stage


KS = (0, 16, 64, 256)
PROTOCOL = (
    "The cost of the first stage is one matrix product over the gallery and the selection of the best, for a query "
    "that is encoded already. The cost of the second stage is the passes of the re-ranker, the candidates of "
    "many queries in common batches; an image's keys and values are computed once, count per image and not per query, "
    "and are reported separately. Candidates of a smaller k are among those of a larger one and are scored once: the "
    "time of k is the sum up to k."
)


@dataclass
class ScoredCandidates:
    """The candidates of one direction of one gallery, with the re-ranker's logits.

    Args:
        side: queries and gallery.
        similarities: (n, K) float64 of the first stage's candidates, best first; K is the largest k.
        candidates: (n, K) int64, their gallery indices.
        logits: (n, K) float32.
        search_seconds: time of the first stage for all queries.
        pair_seconds: time of the re-ranker for all queries, by k.
    """

    side: Side
    similarities: np.ndarray
    candidates: np.ndarray
    logits: np.ndarray
    search_seconds: float
    pair_seconds: dict[int, float]

    def correct(self) -> np.ndarray:
        """Return which candidates are correct answers, (n, K) bool."""
        return self.side.gallery_ids[self.candidates] == self.side.query_ids[:, None]

    def rank(self, fusion: Fusion, budget: CandidateBudget) -> DirectionResult:
        """Rank the gallery with the candidates within the budget re-ranked."""
        fused = fusion(self.similarities, self.logits)
        counts = budget.num_candidates(self.similarities)
        return rank_two_stage(*self.side, self.candidates, fused, counts)


def score_candidates(
    encoded: EncodedPairs, pairs: PairDataset, direction: str, reranker: Reranker, ks: Sequence[int]
) -> ScoredCandidates:
    """Find the candidates of every query with the first stage, and score them with the re-ranker.

    Args:
        encoded: the data as encoded by the first stage.
        pairs: the data.
        direction: "text_to_image" or "image_to_text".
        reranker: a re-ranker with the rows of `pairs` as its gallery.
        ks: ascending numbers of candidates; larger ones than the gallery's size mean all of it.
    """
    side = encoded.side(direction)
    most = min(max(ks), len(side.gallery_embeds))
    clock = time.perf_counter()
    similarities, index = nearest(side.query_embeds, side.gallery_embeds, most)
    search_seconds = time.perf_counter() - clock
    captions = [pairs.caption(caption) for caption in encoded.captions]
    rows = np.array(encoded.rows)
    logits = np.empty(index.shape, np.float32)
    pair_seconds: dict[int, float] = {}
    before, start = reranker.cost.pair_seconds, 0
    for k in ks:
        stop = min(k, most)
        entries = index[:, start:stop].flatten()
        queries = np.repeat(np.arange(len(index)), stop - start)
        text, image = (queries, entries) if direction == "text_to_image" else (entries, queries)
        logits[:, start:stop] = reranker.score(captions, text, rows[image]).reshape(len(index), stop - start)
        pair_seconds[k] = reranker.cost.pair_seconds - before
        start = stop
    return ScoredCandidates(side, similarities, index, logits, search_seconds, pair_seconds)


class RerankEvaluation:
    """Re-rank the results of an encoder, and measure recall and cost; see [`EvaluationRun`].

    Args:
        reranker: Hub id or folder of a SIMLA model.
        k: number of candidates of the operating point, which is compared with the first stage alone.
        validation: pairs to fit the weight of the first stage on; if None, candidates are ranked by the re-ranker
            alone.
        budget: average number of pairs per query, for a further row in which k varies with the query.
        latency: maximum milliseconds per query, for the same row.
        batch_size: pairs per forward pass.
        resamples, seed: bootstrap resamples, and random seed of intervals and test.
        ks: numbers of candidates of the other rows.

    Raises:
        OSError, ValueError: as for [`load_reranker`], or if a number is out of range.
    """

    def __init__(
        self,
        reranker: str,
        k: int = 64,
        validation: PairDataset | None = None,
        budget: float | None = None,
        latency: float | None = None,
        batch_size: int = 64,
        resamples: int = RESAMPLES,
        seed: int = 0,
        ks: Sequence[int] = KS,
    ):
        if k < 2:
            raise ValueError(f"--k must be at least 2 for re-ranking, got {k}")
        if (budget is not None and budget < 0) or (latency is not None and latency <= 0):
            raise ValueError("--budget must not be negative, and --latency must be positive")
        self.name, (self.model, self.processor) = reranker, load_reranker(reranker)
        self.ks = sorted({*ks, k})
        self.k, self.validation, self.budget, self.latency = k, validation, budget, latency
        self.batch_size, self.resamples, self.seed = batch_size, resamples, seed

    def run(self, encoder: Encoder, result: RetrievalResult, pairs: PairDataset) -> dict[str, Any]:
        """Evaluate both stages.

        Args:
            encoder: the first stage.
            result: its result, with the encoded data.
            pairs: the data.

        Returns:
            JSON types: `rows`, the cost and the metrics with intervals for each k in both directions; `comparison` of
            `k` with the first stage alone; `reranker_alone`, metrics at `k` without the first stage's scores;
            `fusion`; `reranker`; `images`, the cost of their keys and values; `protocol`.
        """
        fusions = self._fit_fusions(encoder)
        reranker = self._reranker(pairs)
        scored = {
            name: [score_candidates(part, pairs, name, reranker, self.ks) for part in result.parts]
            for name in DIRECTIONS
        }
        ranked = {k: self._rank(scored, fusions, CandidateBudget(k)) for k in self.ks}
        rows = [self._fixed_row(k, ranked[k], scored) for k in self.ks]
        if self.budget is not None or self.latency is not None:
            rows.append(self._varying_row(scored, fusions))
        alone = self._rank(scored, dict.fromkeys(DIRECTIONS, Fusion()), CandidateBudget(self.k))
        return {
            "reranker": {"name": self.name, "fingerprint": weights_fingerprint(self.model)},
            "k": self.k,
            "rows": rows,
            "comparison": compare(ranked[self.k], ranked[0], self.resamples, seed=self.seed),
            "reranker_alone": self._metrics(alone),
            "fusion": {name: asdict(fusion) for name, fusion in fusions.items()},
            "fitted_on": None if self.validation is None else self.validation.name,
            "images": self._image_cost(reranker.cost),
            "protocol": PROTOCOL,
        }

    def _reranker(self, pairs: PairDataset) -> Reranker:
        return Reranker(self.model, self.processor, pairs.read_row, batch_size=self.batch_size)

    def _fit_fusions(self, encoder: Encoder) -> dict[str, Fusion]:
        """Fit the fusion of each direction on the validation pairs, if there are any."""
        if self.validation is None:
            return dict.fromkeys(DIRECTIONS, Fusion())
        encoded, reranker = encode_pairs(encoder, self.validation), self._reranker(self.validation)
        scored = {name: score_candidates(encoded, self.validation, name, reranker, [self.k]) for name in DIRECTIONS}
        return {name: Fusion.fit(part.similarities, part.logits, part.correct()) for name, part in scored.items()}

    @staticmethod
    def _rank(
        scored: dict[str, list[ScoredCandidates]], fusions: dict[str, Fusion], budget: CandidateBudget
    ) -> dict[str, DirectionResult]:
        return {
            name: DirectionResult.from_folds([part.rank(fusions[name], budget) for part in parts])
            for name, parts in scored.items()
        }

    def _metrics(self, directions: dict[str, DirectionResult]) -> dict[str, dict[str, Any]]:
        spreads = intervals(bootstrap_samples(directions, self.resamples, self.seed))
        return {name: direction.metrics() | {"intervals": spreads[name]} for name, direction in directions.items()}

    def _fixed_row(
        self, k: int, directions: dict[str, DirectionResult], scored: dict[str, list[ScoredCandidates]]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"k": k} | self._metrics(directions)
        for name, parts in scored.items():
            seconds = sum(part.search_seconds + part.pair_seconds[k] for part in parts)
            row[name] |= _cost_per_query(
                parts, sum(min(k, part.logits.shape[1]) * len(part.logits) for part in parts), seconds
            )
        return row

    def _varying_row(self, scored: dict[str, list[ScoredCandidates]], fusions: dict[str, Fusion]) -> dict[str, Any]:
        """Build the row in which k varies by query with the margins of the first stage, which need no labels.

        Its time is estimated from the time per pair of the other rows.
        """
        ranked: dict[str, DirectionResult] = {}
        costs: dict[str, dict[str, float]] = {}
        for name, parts in scored.items():
            total_seconds = sum(part.pair_seconds[max(self.ks)] for part in parts)
            seconds_per_pair = total_seconds / sum(part.logits.size for part in parts)
            budget = self._choose_budget(parts, seconds_per_pair)
            ranked |= self._rank({name: parts}, fusions, budget)
            pairs = sum(int(budget.num_candidates(part.similarities).sum()) for part in parts)
            seconds = sum(part.search_seconds for part in parts) + pairs * seconds_per_pair
            costs[name] = _cost_per_query(parts, pairs, seconds) | asdict(budget)
        row: dict[str, Any] = {"k": "varying"} | self._metrics(ranked)
        for name, cost in costs.items():
            row[name] |= cost
        return row

    def _choose_budget(self, parts: list[ScoredCandidates], seconds_per_pair: float) -> CandidateBudget:
        most = min(part.logits.shape[1] for part in parts)
        if self.latency is not None:
            most = min(most, int(self.latency / 1000 / seconds_per_pair))
        if self.budget is None:
            return CandidateBudget(most)
        similarities = np.concatenate([part.similarities[:, :most] for part in parts])
        return CandidateBudget.from_pairs_per_query(similarities, self.budget, most)

    def _image_cost(self, cost: Cost) -> dict[str, float]:
        return {
            "encoded": cost.images,
            "milliseconds_each": 1000 * cost.image_seconds / max(1, cost.images),
            "bytes_each": image_bytes(self.model),
        }


def _cost_per_query(parts: list[ScoredCandidates], pairs: int, seconds: float) -> dict[str, float]:
    queries = sum(len(part.logits) for part in parts)
    return {"pairs_per_query": pairs / queries, "milliseconds_per_query": 1000 * seconds / queries}
