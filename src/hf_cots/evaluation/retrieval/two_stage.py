"""Two-step search: a dual encoder proposes candidates for each query, the judge puts them in order.

What was not proposed stays behind the candidates in the first step's order, so that every metric of one-step search is
defined here, too.
"""

from dataclasses import dataclass

import torch

from .directions import DirectionResult
from .metrics import concatenate, per_query_metrics
from .ranking import Positives, Scores, count_above, groups_of_levels, slices


BLOCK = 256  # queries ranked at a time


@dataclass(frozen=True)
class Candidates:
    """What the first step proposes, best first.

    Args:
        similarities: (n, k) float64.
        index: (n, k) int64, gallery entries.
    """

    similarities: torch.Tensor
    index: torch.Tensor


def rank_two_step(
    query_embeds: torch.Tensor,
    gallery_embeds: torch.Tensor,
    query_ids: torch.Tensor,
    gallery_ids: torch.Tensor,
    candidates: Candidates,
    fused: torch.Tensor,
    depth: torch.Tensor,
) -> DirectionResult:
    """Rank the correct answers of every query after both steps.

    Args:
        query_embeds, gallery_embeds, query_ids, gallery_ids: as for [`hf_cots.evaluation.retrieval.directions.rank_direction`].
        candidates: of each query.
        fused: (n, k) float64 of [`Fusion`]; entries at or beyond the depth are not looked at.
        depth: (n,) int64, how many candidates are reordered.
    """
    scores, answers = Scores(query_embeds, gallery_embeds), Positives(query_ids, gallery_ids)
    columns = []
    for part in slices(len(query_embeds), BLOCK):
        ((_, first),) = scores.tiles(part, len(gallery_embeds))
        judged = torch.arange(candidates.index.shape[1]) < depth[part, None]
        final = lifted(first, candidates.index[part], fused[part], judged)
        row, place, entry = answers.of(part)
        levels = torch.full((len(final), int(answers.count[part].max())), torch.inf, dtype=torch.float64)
        levels[row, place] = final[row, entry]
        levels = levels.sort(dim=1, descending=True).values
        above, at_least = count_above(final, levels)
        groups = groups_of_levels(levels.numpy(), above.numpy(), at_least.numpy())
        columns.append(per_query_metrics(groups, len(final)))
    return DirectionResult.of_one_gallery(concatenate(columns), query_ids.numpy(), gallery_ids.numpy())


def lifted(scores: torch.Tensor, candidates: torch.Tensor, fused: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """(b, m) scores in which judged candidates stand above all others, in the order of their fused scores.

    Args:
        scores: (b, m) of the first step.
        candidates: (b, k) gallery entries; fused: (b, k); judged: (b, k) bool.
    """
    lowest = fused.masked_fill(~judged, torch.inf).amin(dim=1, keepdim=True)
    rows = torch.arange(len(scores))[:, None].expand_as(candidates)[judged]
    others = scores.clone()
    others[rows, candidates[judged]] = -torch.inf
    floor = others.amax(dim=1, keepdim=True)
    floor = torch.where(floor.isinf(), 0.0, floor)  # where all are judged
    final = scores.clone()
    final[rows, candidates[judged]] = (floor + 1 + fused - lowest)[judged]
    return final


def correct_candidates(candidates: Candidates, query_ids: torch.Tensor, gallery_ids: torch.Tensor) -> torch.Tensor:
    """(n, k) bool: which candidates are correct answers."""
    return gallery_ids[candidates.index] == query_ids[:, None]
