"""Transductive re-scoring, which uses more than one query. Never on by default, always labeled.

Dual softmax uses the complete set of test queries before it answers any of them; querybank normalization uses a bank
of other queries. A real search does not have the former, so results with it are not comparable with results without,
and carry a `label`.

Both subtract from each similarity a bias of the gallery entry, which is large for entries that are similar to
everything ("hubs"): with c(g) = 1/beta log sum_b exp(beta s(b, g)) over a bank of queries b, ranking by the inverted
softmax exp(beta s(q, g)) / sum_b exp(beta s(b, g)) is ranking by s(q, g) - c(g). So ranking still needs only dot
products, block by block.
"""

from dataclasses import dataclass

import numpy as np

from .ranking import BLOCK, Scores, nearest, slices


@dataclass(frozen=True)
class Rescoring:
    """A bias that is subtracted from the similarities of one direction.

    Args:
        label: name of the method in results.
        bias: (m,) float64, one per gallery entry.
        biased: (n,) bool, the queries for which it is subtracted; all if None.
    """

    label: str
    bias: np.ndarray
    biased: np.ndarray | None = None


def dual_softmax(query_embeds: np.ndarray, gallery_embeds: np.ndarray, beta: float = 20.0) -> Rescoring:
    """Rank by the softmax over the gallery times the softmax over the queries (Rocco et al., 2018, section 3.2).

    Its logarithm is 2 beta s(q, g) - beta c(g) minus a term that depends only on q, with the test queries as bank, so
    it ranks as s(q, g) - c(g) / 2. CAMoE (Cheng et al., 2021) multiplies the second softmax by s itself instead of the
    first softmax, which is another weight of the same bias.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings.
        beta: inverse temperature of both softmaxes, above 0.
    """
    bias = gallery_bias(query_embeds, gallery_embeds, beta) / 2
    return Rescoring(f"transductive: dual softmax, beta {beta:g}", bias)


def querybank(
    query_embeds: np.ndarray, gallery_embeds: np.ndarray, bank_embeds: np.ndarray, beta: float = 20.0
) -> Rescoring:
    """Querybank normalization with the dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3.3).

    A query is re-scored only if its nearest entry is also the nearest of some query of the bank, since otherwise it is
    not affected by a hub.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings.
        bank_embeds: (b, D), queries of the same kind from other data, usually the training set.
        beta: inverse temperature, above 0; 20 in the paper.
    """
    bias = gallery_bias(bank_embeds, gallery_embeds, beta)
    hubs = nearest(bank_embeds, gallery_embeds)[1]
    biased = np.isin(nearest(query_embeds, gallery_embeds)[1][:, 0], hubs)
    return Rescoring(
        f"transductive: querybank normalisation with {len(bank_embeds)} queries, beta {beta:g}", bias, biased
    )


def gallery_bias(bank_embeds: np.ndarray, gallery_embeds: np.ndarray, beta: float, block: int = BLOCK) -> np.ndarray:
    """Compute c(g) = 1/beta log sum over the bank of exp(beta s(b, g)), block by block.

    Args:
        bank_embeds, gallery_embeds: (b, D) and (m, D) normalized embeddings.
        beta: inverse temperature.
        block: bank queries compared at a time.

    Returns:
        (m,) float64.

    Raises:
        ValueError: if beta is not positive, there is nothing to compare, or an embedding is not finite.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    scores = Scores(bank_embeds, gallery_embeds)
    logs = np.full(len(gallery_embeds), -np.inf)
    for part in slices(len(bank_embeds), block):
        for columns, tile in scores.tiles(part, 4 * block):
            tile *= beta
            highest = tile.max(axis=0)
            added = np.log(np.exp(tile - highest).sum(axis=0)) + highest
            logs[columns] = np.logaddexp(logs[columns], added)
    # SIMD code may round the exponential of a number differently in the last columns than in the first. Rounding to 40
    # fraction bits makes it the same for equal entries, so that they still tie.
    return np.rint(logs / beta * 2.0**40) / 2.0**40
