"""The losses of COTS: pure functions, one per equation of Lu et al. 2022 (arXiv 2204.07441).

All of them work in float32 or float64 whatever the autocast dtype, return one value per pair, and leave the weighting
and the sum to the caller: a pair that the filter drops is a pair of weight 0. Notation: n queries, Q queue slots,
D joint dimension, tau temperature.
"""

import torch
import torch.nn.functional as F


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def l2_normalize(features: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Rows of unit length, in full precision."""
    return F.normalize(full_precision(features), dim=-1, eps=eps)


def contrast_logits(
    queries: torch.Tensor,
    positive_keys: torch.Tensor,
    queued_keys: torch.Tensor,
    invalid_negatives: torch.Tensor,
    temperature: torch.Tensor | float,
) -> torch.Tensor:
    """`[ f_i . k_i, f_i . q_1, ..., f_i . q_Q ] / tau`: each query against its positive and the queue.

    Args:
        queries: (n, D) normalized online embeddings of one modality.
        positive_keys: (n, D) normalized momentum keys of the other modality, row i of the same pair.
        queued_keys: (Q, D) queued keys of the other modality.
        invalid_negatives: (n, Q) bool, true where slot j must not serve as a negative of query i: not yet filled, or
            of the same image. Such an entry gets the lowest finite logit, so that its probability is exactly 0.
        temperature: tau.

    Returns:
        (n, 1 + Q) logits; column 0 is the positive.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, positive_keys = full_precision(queries), full_precision(positive_keys)
        positive = (queries * positive_keys).sum(dim=-1, keepdim=True) / temperature  # (n, 1)
        negative = queries @ queued_keys.to(queries.dtype).t() / temperature  # (n, Q)
        negative = negative.masked_fill(invalid_negatives, torch.finfo(negative.dtype).min)
        return torch.cat([positive, negative], dim=1)


def instance_loss(logits: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    """`-sum_j y_j log softmax(logits)_j` per query: L_I2T or L_T2I before the mean over the batch.

    Args:
        logits: (n, 1 + Q) of [`contrast_logits`].
        targets: (n, 1 + Q) distributions y, 0 where an entry is masked; by default all of it on column 0.

    Returns:
        (n,) losses.
    """
    if targets is None:
        return torch.logsumexp(logits, dim=1) - logits[:, 0]
    return torch.logsumexp(logits, dim=1) - (targets * logits.masked_fill(targets == 0, 0.0)).sum(dim=1)


def contrast_targets(positives: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n, 1 + Q) target distributions in which the positives share equally (Khosla et al. 2020, eq. 2).

    Args:
        positives: (n, 1 + Q) bool, at least one a row.
        dtype: of the result.
    """
    return positives.to(dtype) / positives.sum(dim=1, keepdim=True)


def soft_targets(targets: torch.Tensor, key_logits: torch.Tensor | None, alpha: torch.Tensor | float) -> torch.Tensor:
    """`(1 - alpha) y + alpha softmax(s)`: momentum distillation (Li et al. 2021, ALBEF, eq. 6).

    Args:
        targets: (n, 1 + Q) distributions y.
        key_logits: (n, 1 + Q) the momentum model's own logits s, without gradient; None leaves y as it is.
        alpha: weight of the momentum model's distribution, 0 to 1.
    """
    return targets if key_logits is None else targets.lerp(key_logits.softmax(dim=1), alpha)


def sigmoid_loss(logits: torch.Tensor, positives: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`-sum_j log sigmoid( z_j (logits_j + b) )`, z_j = 1 for positives and -1 otherwise (Zhai et al. 2023, SigLIP).

    The mean of both directions over the batch is SigLIP's loss, whose t is 1 / tau. A masked entry adds exactly 0.

    Args:
        logits: (n, 1 + Q) of [`contrast_logits`].
        positives: (n, 1 + Q) bool.
        bias: (1,) learned b.

    Returns:
        (n,) losses.
    """
    with torch.autocast(logits.device.type, enabled=False):
        shifted = logits + full_precision(bias)
        return F.softplus(torch.where(positives, -shifted, shifted)).sum(dim=1)


def hardest_negative_loss(logits: torch.Tensor, margin: float) -> torch.Tensor:
    """`[ margin - s_i0 + max_{j > 0} s_ij ]_+` per query: one direction of VSE++'s loss (Faghri et al. 2018, eq. 6).

    Args:
        logits: (n, 1 + Q) of [`contrast_logits`] at temperature 1, the own positive in column 0. A query whose other
            entries are all masked has a loss of 0.
        margin: how far the positive must lie above every other.

    Returns:
        (n,) losses.
    """
    others = torch.cat([torch.full_like(logits[:, :1], torch.finfo(logits.dtype).min), logits[:, 1:]], dim=1)
    return (margin - logits[:, 0] + others.amax(dim=1)).clamp(min=0)


def task_loss(image_to_text: torch.Tensor, text_to_image: torch.Tensor) -> torch.Tensor:
    """Alignment of the two retrieval tasks: `1/2 ( KL(D_T2I || D_I2T) + KL(D_I2T || D_T2I) )` per pair.

    Entry j of both distributions must stand for the same pair, which is why the queues are index-aligned.

    Args:
        image_to_text, text_to_image: (n, 1 + Q) logits of the two directions.

    Returns:
        (n,) divergences in nats.
    """
    log_i2t = full_precision(image_to_text).log_softmax(dim=1)
    log_t2i = full_precision(text_to_image).log_softmax(dim=1)
    return (kl_divergence(log_t2i, log_i2t) + kl_divergence(log_i2t, log_t2i)) / 2


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) per row of two (n, Q) log-probabilities; entries of probability 0 in both add 0."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def true_positions(mask: torch.Tensor) -> torch.Tensor:
    """(total,) int64: where a mask of any shape is true, as indices of the flattened mask.

    Their number depends on the mask's values, for which the host waits if the mask is on a GPU.
    """
    return mask.flatten().nonzero().squeeze(1)


def masked_token_loss(
    logits: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """`-1/|M_i| sum_{j in M_i} log p(target_ij)`: L_MVM or L_MLM of each pair (MVLM, the token level).

    Args:
        logits: (total masked, vocabulary), the heads' output at the masked positions only, in row-major order.
        targets: (total masked,) int64 codes or word ids.
        masked: (n, positions) bool, where those positions lie. A row without any adds 0.
        positions: [`true_positions`] of `masked`, if they are known.

    Returns:
        (n,) losses, each the mean over the row's own masked positions.
    """
    return mean_of_masked(F.cross_entropy(full_precision(logits), targets, reduction="none"), masked, positions)


def mean_of_masked(losses: torch.Tensor, masked: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """(n,) the mean of the losses of each row's own masked positions.

    Args:
        losses: (total masked,), in row-major order.
        masked: (n, positions) bool, where those positions lie. A row without any has 0.
        positions: [`true_positions`] of `masked`, if they are known.
    """
    positions = true_positions(masked) if positions is None else positions
    spread = losses.new_zeros(masked.numel()).index_copy(0, positions, losses).view(masked.shape)  # (n, positions)
    return spread.sum(dim=1) / masked.sum(dim=1).clamp(min=1)


def pair_scores(image_keys: torch.Tensor, text_keys: torch.Tensor) -> torch.Tensor:
    """`s_i = k^I_i . k^T_i`, (n,): the score of the adaptive momentum filter, of keys not yet centered."""
    return (image_keys * text_keys).sum(dim=-1)


def key_mean(keys: torch.Tensor) -> torch.Tensor:
    """The mean (D,) of a step's (N, D) keys; zero for a step of one pair, whose centered key would vanish."""
    return keys.mean(dim=0) if len(keys) > 1 else keys.new_zeros(keys.shape[1:])


def center_keys(keys: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of the step's keys and normalize again: the cure of the staleness shortcut.

    A fast-moving model makes its current keys differ from the queued ones by a common drift, and the age of a key then
    gives the positive away. Keys that all agree become (nearly) zero, not amplified rounding noise: hence the eps.

    Args:
        keys: (n, D) normalized keys.
        mean: (D,) of [`key_mean`] over the whole optimizer step.
    """
    return l2_normalize(keys - mean, eps=1e-3)
