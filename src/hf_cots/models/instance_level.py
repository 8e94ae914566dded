"""The instance level: what a query is compared with, and the loss that each contrast makes of the comparison.

Every contrast sees a row of logits per query, `[ own positive, entry 1, ..., entry Q ]`, whose column j stands for the
same pair in both directions. They differ in the entries (the batches of all ranks, or a queue of momentum keys) and in
the loss of a row:

    "momentum"   cross-entropy against the queue (COTS; He et al. 2020); with `soft_target_alpha` the image-text
                 contrast of ALBEF (Li et al. 2021)
    "in_batch"   cross-entropy within the batch (CLIP; Radford et al. 2021)
    "sigmoid"    one yes or no per entry (SigLIP; Zhai et al. 2023)

Another pair of the query's own image is no negative: left out, or one more positive (`config.same_image`).
"""

from dataclasses import dataclass

import torch

from .configuration_cots import COTSConfig
from .distributed import gather_rows, gather_rows_with_gradient, own_index, row_counts
from .losses import (
    contrast_logits,
    contrast_targets,
    hardest_negative_loss,
    instance_loss,
    l2_normalize,
    sigmoid_loss,
    soft_targets,
)
from .queues import KeyQueue
from .step import Step


@dataclass
class ContrastRows:
    """The comparisons of n queries of each modality.

    Args:
        image_to_text, text_to_image: (n, 1 + Q) logits; the own positive is in column 0.
        positives: (n, 1 + Q) bool, column 0 and every other positive of the query; None where there is no other.
        keys_image_to_text, keys_text_to_image: (n, 1 + Q) logits of the momentum keys in place of the queries, without
            gradient, where soft targets are wanted.
    """

    image_to_text: torch.Tensor
    text_to_image: torch.Tensor
    positives: torch.Tensor | None = None
    keys_image_to_text: torch.Tensor | None = None
    keys_text_to_image: torch.Tensor | None = None


def negative_mask(
    own: torch.Tensor, same_image: torch.Tensor, treatment: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which entries are left out, and which are positives beside column 0.

    Args:
        own, same_image: (n, Q) bool; the query's own positive, which column 0 holds already, and its image's entries.
        treatment: `config.same_image`.

    Returns:
        (n, Q) bool `left_out`, and (n, 1 + Q) bool `positives` or None, as in [`ContrastRows`].
    """
    if treatment != "positive":
        return own | same_image, None
    first = own.new_ones(len(own), 1)
    return own, torch.cat([first, same_image & ~own], dim=1)


def truncate(embeds: torch.Tensor, dim: int | None) -> torch.Tensor:
    """The first `dim` dimensions of (n, D) embeddings, normalized again; with None the embeddings themselves."""
    return embeds if dim is None else l2_normalize(embeds[:, :dim])


def compare_with_queue(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    step: Step,
    queue: KeyQueue,
    temperature: torch.Tensor | float,
    config: COTSConfig,
    dim: int | None = None,
) -> ContrastRows:
    """Each of this rank's pairs against its own momentum keys and the queue.

    Args:
        image_embeds, text_embeds: (n, D) normalized online embeddings.
        step: has the pairs' keys, image ids and index.
        queue: with the keys of Q pairs.
        temperature: tau.
        config: says whether soft targets are wanted and what pairs of one image are to each other.
        dim: compare the first dimensions alone, see [`truncate`].
    """
    keys = step.keys
    filled = torch.arange(len(queue), device=queue.filled.device) < queue.filled  # (Q,)
    own = filled & (queue.pair_index[None, :] == keys.pair_index[:, None])  # (n, Q)
    same_image = filled & (queue.image_ids[None, :] == keys.image_ids[:, None])  # (n, Q)
    left_out, positives = negative_mask(own, same_image, config.same_image)
    left_out = left_out | ~filled
    # Clones, because the queue may be written before a delayed backward.
    images, texts = truncate(queue.image_keys.clone(), dim), truncate(queue.text_keys.clone(), dim)  # (Q, D)
    image_keys, text_keys = truncate(keys.image_keys, dim), truncate(keys.text_keys, dim)
    image_embeds, text_embeds = truncate(image_embeds, dim), truncate(text_embeds, dim)
    rows = ContrastRows(
        contrast_logits(image_embeds, text_keys, texts, left_out, temperature),
        contrast_logits(text_embeds, image_keys, images, left_out, temperature),
        positives,
    )
    if config.soft_target_alpha > 0:
        with torch.no_grad():
            rows.keys_image_to_text = contrast_logits(image_keys, text_keys, texts, left_out, temperature)
            rows.keys_text_to_image = contrast_logits(text_keys, image_keys, images, left_out, temperature)
    return rows


def compare_in_batch(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_ids: torch.Tensor,
    temperature: torch.Tensor | float,
    same_image: str = "excluded",
) -> ContrastRows:
    """Each of this rank's n pairs against the N pairs of the batches of all ranks, with gradient to both sides.

    The two sides need not be images and texts: two views of either are compared in the same way.

    Args:
        image_embeds, text_embeds: (n, D) normalized embeddings of this rank's pairs.
        image_ids: (n,).
        temperature: tau.
        same_image: `config.same_image`.
    """
    counts = row_counts(len(image_ids))
    all_images, all_texts = (gather_rows_with_gradient(e, counts) for e in (image_embeds, text_embeds))  # (N, D)
    all_ids = gather_rows(image_ids, counts)  # (N,)
    own = own_index(counts, image_ids.device)  # (n,) which of the N
    is_own = own[:, None] == torch.arange(len(all_ids), device=own.device)[None, :]  # (n, N)
    left_out, positives = negative_mask(is_own, image_ids[:, None] == all_ids[None, :], same_image)
    return ContrastRows(
        contrast_logits(image_embeds, all_texts[own], all_texts, left_out, temperature),
        contrast_logits(text_embeds, all_images[own], all_images, left_out, temperature),
        positives,
    )


def instance_losses(
    rows: ContrastRows, config: COTSConfig, alpha: torch.Tensor | float = 0.0, logit_bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The instance loss of each pair, (n,).

    The momentum contrast adds its two directions, as COTS does; CLIP's and SigLIP's losses are the mean of theirs.

    Args:
        rows: the comparisons.
        config: says which contrast.
        alpha: weight of the soft targets.
        logit_bias: (1,) the sigmoid loss's bias.
    """
    if config.contrast == "sigmoid":
        i2t = sigmoid_loss(rows.image_to_text, _positives(rows), logit_bias)
        t2i = sigmoid_loss(rows.text_to_image, _positives(rows), logit_bias)
        return (i2t + t2i) / 2
    i2t = instance_loss(rows.image_to_text, _targets(rows, rows.keys_image_to_text, alpha))
    t2i = instance_loss(rows.text_to_image, _targets(rows, rows.keys_text_to_image, alpha))
    return (i2t + t2i) / 2 if config.contrast == "in_batch" else i2t + t2i


def _targets(rows: ContrastRows, key_logits: torch.Tensor | None, alpha: torch.Tensor | float) -> torch.Tensor | None:
    """(n, 1 + Q) target distributions, or None where all of it is on column 0."""
    if rows.positives is None and key_logits is None:
        return None
    return soft_targets(contrast_targets(_positives(rows), rows.image_to_text.dtype), key_logits, alpha)


def _positives(rows: ContrastRows) -> torch.Tensor:
    """(n, 1 + Q) bool."""
    if rows.positives is not None:
        return rows.positives
    first = torch.zeros_like(rows.image_to_text, dtype=torch.bool)
    first[:, 0].fill_(True)  # assigned, the value would be copied to a GPU, and waited for
    return first


def instance_term(
    rows: ContrastRows, step: Step, config: COTSConfig, alpha: float, logit_bias: torch.Tensor | None
) -> torch.Tensor:
    """`L_I2T + L_T2I` of a micro-batch, scalar; arguments as for [`instance_losses`]."""
    return (step.weights * instance_losses(rows, config, alpha, logit_bias)).sum()


def info_nce(rows: ContrastRows) -> torch.Tensor:
    """(n,) cross-entropy with the own positive, mean of both directions."""
    return (instance_loss(rows.image_to_text) + instance_loss(rows.text_to_image)) / 2


def hinge(rows: ContrastRows, margin: float) -> torch.Tensor:
    """(n,) hinge loss of the hardest negative, sum of both directions, of rows at temperature 1."""
    return hardest_negative_loss(rows.image_to_text, margin) + hardest_negative_loss(rows.text_to_image, margin)
