"""The losses of SIMLA: pure functions of Khan et al. 2022 (arXiv 2203.14395), beside those that `losses.py` has.

As there, they work in float32 or float64 whatever the autocast dtype, return one value per row, and nothing in them
waits for the device. Notation: n pairs, V vocabulary, `a` the distillation weight.
"""

import torch
import torch.nn.functional as F

from .losses import full_precision


def distilled_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    weight: torch.Tensor | float,
    log_probabilities: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(1 - a) CE(logits, targets) + a CE(logits, softmax(teacher))` of each row: ITC, MLM and MIM.

    Args:
        logits: (rows, classes).
        targets: (rows,) int64.
        teacher_logits: (rows, classes) of the momentum model, without gradient; None is a = 0.
        weight: a.
        log_probabilities: (rows, classes) to distil into instead of `log_softmax(logits)`.

    Returns:
        (rows,) losses.
    """
    own = full_precision(logits).log_softmax(dim=-1)
    hard = -own.gather(-1, targets[:, None]).squeeze(-1)
    if teacher_logits is None:
        return hard
    student = own if log_probabilities is None else log_probabilities
    soft = -(full_precision(teacher_logits).softmax(dim=-1) * student).sum(dim=-1)
    return (1 - weight) * hard + weight * soft


def keyword_loss(
    logits: torch.Tensor,
    keywords: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    weight: torch.Tensor | float,
) -> torch.Tensor:
    """L_psl of each pair: `(1 - a) BCE(logits, y) + a BCE(logits, sigmoid(teacher))`, mean over the vocabulary.

    Args:
        logits: (n, V) of the concept head on the image.
        keywords: (n, V) multi-hot y, as floats.
        teacher_logits: (n, V) of the momentum model; None is a = 0.
        weight: a.

    Returns:
        (n,) losses.
    """
    logits, keywords = full_precision(logits), keywords.to(full_precision(logits).dtype)
    if teacher_logits is not None:  # the loss is linear in its targets
        keywords = (1 - weight) * keywords + weight * full_precision(teacher_logits).sigmoid()
    return F.binary_cross_entropy_with_logits(logits, keywords, reduction="none").mean(dim=-1)


@torch.no_grad()
def in_batch_similarities(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_keys: torch.Tensor,
    text_keys: torch.Tensor,
    temperature: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The in-batch part (n, n) of ITC's similarities: images with momentum texts, texts with momentum images."""
    with torch.autocast(image_embeds.device.type, enabled=False):
        return (
            full_precision(image_embeds) @ text_keys.to(image_embeds.dtype).t() / temperature,
            full_precision(text_embeds) @ image_keys.to(text_embeds.dtype).t() / temperature,
        )


def hard_negatives(
    similarities: torch.Tensor, allowed: torch.Tensor, draws: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row one other entry, drawn with the probability that the softmax of its similarities gives it.

    Where all allowed entries have lost their probability to rounding, the draw is uniform over them.

    Args:
        similarities: (n, n) logits of each query with the batch, over the temperature.
        allowed: (n, n) bool, false for the query's own positive and others of the same image.
        draws: (n,) one random number in [0, 1) for each row; by default torch's generator draws.

    Returns:
        (n,) int64 entries, and (n,) bool: whether there was any to draw. Where not, the entry means nothing.
    """
    weights = full_precision(similarities).detach().softmax(dim=1).masked_fill(~allowed, 0)
    lost = weights.sum(dim=1, keepdim=True) < torch.finfo(weights.dtype).tiny
    weights = torch.where(lost, allowed.to(weights.dtype), weights)
    exists = allowed.any(dim=1)
    weights = weights.masked_fill(~exists[:, None], 1)
    if draws is None:
        # torch.multinomial's own way to draw one entry, without its check of the weights, which waits for the device.
        return (weights / torch.empty_like(weights).exponential_()).argmax(dim=1), exists
    sums = weights.cumsum(dim=1)
    whole = sums[:, -1:]
    drawn = torch.minimum(draws.to(whole.dtype)[:, None] * whole, whole.nextafter(torch.zeros_like(whole)))
    # The first entry whose sum is beyond what was drawn: one of weight 0 is passed over.
    return torch.searchsorted(sums, drawn, right=True).squeeze(1), exists


def keyword_positions(
    attention: torch.Tensor, may_vote: torch.Tensor, votes_per_head: int = 4, num_keywords: int = 5
) -> torch.Tensor:
    """The words of a text that its first token attends to: each head votes for its top positions, the most voted win.

    Equal votes are told apart by the mean attention. A position without a vote is no keyword, so that a text of few
    words has few.

    Args:
        attention: (n, heads, length) probabilities, the first token's row of a self-attention.
        may_vote: (n, length) bool, the positions that can be voted for.
        votes_per_head, num_keywords: 4 and 5 in the paper.

    Returns:
        (n, length) bool, true at the keywords.
    """
    attention = full_precision(attention)
    length = attention.shape[-1]
    ranked = attention.masked_fill(~may_vote[:, None, :], -1)
    voted = ranked.topk(min(votes_per_head, length), dim=-1).indices.flatten(1)  # (n, heads * votes)
    votes = torch.zeros_like(attention[:, 0]).scatter_add_(1, voted, may_vote.gather(1, voted).to(attention.dtype))
    score = votes + attention.mean(dim=1) / 2  # a mean below 1/2 never overturns a vote
    best = score.topk(min(num_keywords, length), dim=-1).indices
    return torch.zeros_like(may_vote).scatter_(1, best, True) & (votes > 0)


def multi_hot(input_ids: torch.Tensor, chosen: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """(n, V) float32: 1 for each word of a text that is chosen somewhere in it.

    Args:
        input_ids: (n, length).
        chosen: (n, length) bool.
        vocab_size: V.
    """
    counts = torch.zeros(len(input_ids), vocab_size, device=input_ids.device)
    return counts.scatter_add_(1, input_ids, chosen.float()).clamp_(max=1)
