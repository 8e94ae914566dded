"""Two-stage search: a dual encoder proposes candidates for each query, and a re-ranker sorts them.

All other gallery entries follow after the candidates in the order of the first stage, so that every metric of
single-stage search is defined.
"""

import numpy as np

from .directions import DirectionResult
from .metrics import concatenate, per_query_metrics
from .ranking import Positives, Scores, group_ties, slices


BLOCK = 256  # queries ranked at a time


def rank_two_stage(
    query_embeds: np.ndarray,
    gallery_embeds: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    candidates: np.ndarray,
    fused: np.ndarray,
    num_candidates: np.ndarray,
) -> DirectionResult:
    """Rank the gallery for every query after both stages.

    Args:
        query_embeds, gallery_embeds, query_ids, gallery_ids: see [`rank_direction`].
        candidates: (n, k) int64, the gallery indices of the first stage's candidates, best first.
        fused: (n, k) float64 scores from [`Fusion`]; entries from `num_candidates` on are ignored.
        num_candidates: (n,) int64, the number of candidates that are re-ranked.
    """
    scores, positives = Scores(query_embeds, gallery_embeds), Positives(query_ids, gallery_ids)
    columns = []
    for part in slices(len(query_embeds), BLOCK):
        ((_, first),) = scores.tiles(part, len(gallery_embeds))
        reranked = np.arange(candidates.shape[1]) < num_candidates[part, None]
        final = lift_candidates(first, candidates[part], fused[part], reranked)
        row, entry = positives.lookup(part)
        columns.append(per_query_metrics(group_ties(row, final[row, entry], [final]), len(final)))
    return DirectionResult.from_single_gallery(concatenate(columns), query_ids, gallery_ids)


def lift_candidates(scores: np.ndarray, candidates: np.ndarray, fused: np.ndarray, reranked: np.ndarray) -> np.ndarray:
    """Lift the scores of re-ranked candidates above all others, in the order of their fused scores.

    Args:
        scores: (b, m) scores of the first stage.
        candidates: (b, k) gallery indices.
        fused: (b, k) fused scores.
        reranked: (b, k) bool, the candidates that are re-ranked.

    Returns:
        (b, m) scores.
    """
    lowest = np.where(reranked, fused, np.inf).min(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(len(scores))[:, None], candidates.shape)[reranked]
    others = scores.copy()
    others[rows, candidates[reranked]] = -np.inf
    floor = others.max(axis=1, keepdims=True)
    floor = np.where(np.isinf(floor), 0.0, floor)  # if all entries are re-ranked
    final = scores.copy()
    final[rows, candidates[reranked]] = (floor + 1 + fused - lowest)[reranked]
    return final
