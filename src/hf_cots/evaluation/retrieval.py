"""Recall@K in both directions, as papers on image-text retrieval count it: hit@K, in percent.

A query is hit at K if *any* of its correct answers is among the first K. Ties are broken fairly: a tied answer counts
with the probability that a random order of the tied entries would put it among the first K, so that a model which
gives every pair the same score gets exactly the chance level.
"""

import torch

from ..data.sources import PairDataset
from ..models import COTSModel, COTSProcessor
from .encoders import DualEncoder, encode_pairs


KS = (1, 5, 10)


def hit_probability(better: torch.Tensor, tied: torch.Tensor, positives: torch.Tensor, k: int) -> torch.Tensor:
    """Probability that a correct answer is among the first k, if ties are broken at random.

    Args:
        better: (n,) wrong answers that score above the best correct one.
        tied: (n,) wrong answers that score the same.
        positives: (n,) correct answers with that score, at least 1.
        k: cut-off.

    Returns:
        (n,) float64: 1 - C(tied, m) / C(tied + positives, m) with m = k - better places left.
    """
    places = (k - better).clamp(min=0).double()
    tied, positives = tied.double(), positives.double()
    # log C(tied, m) - log C(tied + positives, m), with m! cancelled; impossible draws (m > tied) hit for certain.
    possible = places.minimum(tied)
    log_miss = (
        torch.lgamma(tied + 1)
        - torch.lgamma(tied - possible + 1)
        - torch.lgamma(tied + positives + 1)
        + torch.lgamma(tied + positives - possible + 1)
    )
    return torch.where(places > tied, torch.ones_like(places), 1 - log_miss.exp())


def retrieval_metrics(
    query_embeds: torch.Tensor,
    gallery_embeds: torch.Tensor,
    query_ids: torch.Tensor,
    gallery_ids: torch.Tensor,
    block: int = 1024,
) -> dict[str, float]:
    """R@1, R@5, R@10 in percent and the median rank of one direction.

    Memory grows with `block` x gallery, never with queries x gallery.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalised embeddings.
        query_ids, gallery_ids: (n,) and (m,) int64; equal ids belong together.
        block: queries compared at a time.

    Returns:
        `{"R@1", "R@5", "R@10", "median_rank", "queries", "gallery"}`; ranks start at 1 and are expected ranks under
        ties.

    Raises:
        ValueError: if there is nothing to compare, an embedding is not finite (NaN would win every comparison), or a
            query has no correct answer in the gallery.
    """
    for name, embeds in (("query", query_embeds), ("gallery", gallery_embeds)):
        broken = (~torch.isfinite(embeds).all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ValueError(f"{len(broken)} {name} embeddings are not finite, the first is number {int(broken[0])}")
    if len(query_embeds) == 0 or len(gallery_embeds) == 0:
        raise ValueError(f"nothing to compare: {len(query_embeds)} queries, {len(gallery_embeds)} gallery entries")
    hits: dict[int, list[torch.Tensor]] = {k: [] for k in KS}
    ranks = []
    for start in range(0, len(query_embeds), block):
        scores = query_embeds[start : start + block] @ gallery_embeds.t()  # (block, m)
        correct = query_ids[start : start + block, None] == gallery_ids[None, :]
        if not bool(correct.any(dim=1).all()):
            missing = start + int((~correct.any(dim=1)).nonzero()[0])
            raise ValueError(f"query {missing} has no correct answer in the gallery")
        best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
        better = ((scores > best) & ~correct).sum(dim=1)
        tied = ((scores == best) & ~correct).sum(dim=1)
        positives = ((scores == best) & correct).sum(dim=1)
        for k in KS:
            hits[k].append(hit_probability(better, tied, positives, k))
        ranks.append(better + (tied + positives + 1) / (positives + 1))
    metrics = {f"R@{k}": 100 * float(torch.cat(hits[k]).mean()) for k in KS}
    # torch.median takes the lower of the two middle ranks; the usual median is their mean.
    metrics["median_rank"] = float(torch.cat(ranks).double().quantile(0.5))
    return metrics | {"queries": len(query_embeds), "gallery": len(gallery_embeds)}


def chance_level(queries: int, gallery: int) -> dict[str, float]:
    """What guessing reaches when each query has one correct answer."""
    chance = {f"R@{k}": 100 * min(1.0, k / gallery) for k in KS}
    return chance | {"median_rank": (gallery + 1) / 2, "queries": queries, "gallery": gallery}


def evaluate_retrieval(
    model: COTSModel, processor: COTSProcessor, pairs: PairDataset, batch_size: int = 64, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Both directions on a data set: all its pictures against all its captions.

    A file that several rows name, one caption each, is one picture. Pictures that cannot be read are named in a
    warning and left out with their captions.

    Args:
        model, processor: an encoder in evaluation mode and its processor.
        pairs: the data. A caption's correct answers are the pictures with the same image id, and vice versa.
        batch_size: pictures in a forward pass.
        progress: show a progress bar.

    Returns:
        `{"text_to_image": ..., "image_to_text": ...}`, each as [`retrieval_metrics`] says.
    """
    encoded = encode_pairs(DualEncoder(model, processor), pairs, batch_size, progress)
    images, texts = (encoded.image_embeds, encoded.image_ids), (encoded.text_embeds, encoded.text_ids)
    return {
        "text_to_image": retrieval_metrics(texts[0], images[0], texts[1], images[1]),
        "image_to_text": retrieval_metrics(images[0], texts[0], images[1], texts[1]),
    }
