"""Re-scoring that looks at more than one query at a time. Never on by default, always labelled.

Dual softmax sees the whole set of test queries before it answers any of them; querybank normalisation sees a bank of
other queries. A single user's search does not have the first, so that figures with it are not comparable with figures
without, and results carry `label`.

Both take from each similarity a bias of the gallery entry, large for entries that are near to everything ("hubs"):
with c(g) = 1/beta log sum_b exp(beta s(b, g)) over a bank of queries b, ranking by the inverted softmax
exp(beta s(q, g)) / sum_b exp(beta s(b, g)) is ranking by s(q, g) - c(g). So the ranking stays a matter of dot
products, block by block.
"""

from dataclasses import dataclass

import torch

from .ranking import BLOCK, Scores, nearest, slices


@dataclass(frozen=True)
class Rescoring:
    """What is subtracted from the similarities of one direction.

    Args:
        label: what results are marked with.
        bias: (m,) float64, for each gallery entry.
        biased: (n,) bool, the queries it is subtracted for; None means all.
    """

    label: str
    bias: torch.Tensor
    biased: torch.Tensor | None = None


def dual_softmax(query_embeds: torch.Tensor, gallery_embeds: torch.Tensor, beta: float = 20.0) -> Rescoring:
    """The product of the softmax over the gallery and the softmax over the queries (Rocco et al., 2018, section 3.2).

    Its logarithm is 2 beta s(q, g) - beta c(g) - a term of q, with the test queries as bank, and ranks as
    s(q, g) - c(g) / 2. CAMoE (Cheng et al., 2021) multiplies the second softmax by s itself in place of the first
    softmax: another weight of the same bias.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalised embeddings.
        beta: inverse temperature of both softmaxes, above 0.
    """
    bias = gallery_bias(query_embeds, gallery_embeds, beta) / 2
    return Rescoring(f"transductive: dual softmax, beta {beta:g}", bias)


def querybank(
    query_embeds: torch.Tensor, gallery_embeds: torch.Tensor, bank_embeds: torch.Tensor, beta: float = 20.0
) -> Rescoring:
    """Querybank normalisation with the dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3.3).

    A query is re-scored only if the entry nearest to it is the nearest of some query of the bank, too: the others do
    not meet a hub.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalised embeddings.
        bank_embeds: (b, D), queries of the same kind from other data, as a rule from the training set.
        beta: inverse temperature, above 0; the paper's is 20.
    """
    bias = gallery_bias(bank_embeds, gallery_embeds, beta)
    hubs = nearest(bank_embeds, gallery_embeds)[1]
    biased = torch.isin(nearest(query_embeds, gallery_embeds)[1][:, 0], hubs)
    return Rescoring(
        f"transductive: querybank normalisation with {len(bank_embeds)} queries, beta {beta:g}", bias, biased
    )


@torch.inference_mode()
def gallery_bias(
    bank_embeds: torch.Tensor, gallery_embeds: torch.Tensor, beta: float, block: int = BLOCK
) -> torch.Tensor:
    """c(g) = 1/beta log sum over the bank of exp(beta s(b, g)), block by block.

    Args:
        bank_embeds, gallery_embeds: (b, D) and (m, D) normalised embeddings.
        beta: inverse temperature.
        block: bank queries compared at a time.

    Returns:
        (m,) float64.

    Raises:
        ValueError: if beta is not positive, or nothing or no number is to be compared.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    scores = Scores(bank_embeds, gallery_embeds)
    logs = torch.full((len(gallery_embeds),), -torch.inf, dtype=torch.float64)
    for part in slices(len(bank_embeds), block):
        for columns, tile in scores.tiles(part, 4 * block):
            logs[columns] = torch.logaddexp(logs[columns], tile.mul_(beta).logsumexp(dim=0))
    # A vector unit may round the exponential of a number otherwise in the last column than in the first. What is left
    # of 40 binary places is the same for equal entries, so that they go on to tie.
    return (logs / beta * 2.0**40).round_() / 2.0**40
