"""Signs of a training run going wrong although its loss falls: pure functions, computed and logged per micro-batch."""

import torch

from ..models import COTSForPreTraining


@torch.no_grad()
def batch_accuracy(image_embeds: torch.Tensor, text_embeds: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """Fraction of the queries of both directions whose own positive scores highest within the micro-batch.

    Other captions of the same image do not compete. Chance is 1 / n: a loss that falls while this stays at chance
    has found a shortcut.

    Args:
        image_embeds, text_embeds: (n, D) normalized.
        image_ids: (n,).
    """
    if len(image_ids) == 0:
        return image_embeds.new_zeros(())
    other_captions = (image_ids[:, None] == image_ids[None, :]) & ~torch.eye(
        len(image_ids), dtype=torch.bool, device=image_ids.device
    )
    scores = (image_embeds @ text_embeds.t()).masked_fill(other_captions, -torch.inf)
    own = torch.arange(len(scores), device=scores.device)
    return ((scores.argmax(dim=1) == own).float().mean() + (scores.argmax(dim=0) == own).float().mean()) / 2


@torch.no_grad()
def embedding_variance(embeds: torch.Tensor) -> torch.Tensor:
    """`1 - |mean embedding|^2`: 0 if all embeddings agree (collapse), close to 1 if they fill the sphere."""
    return 1 - (embeds.sum(dim=0) / max(1, len(embeds))).square().sum()


@torch.no_grad()
def similarity_to_queue(
    model: COTSForPreTraining, image_embeds: torch.Tensor, image_ids: torch.Tensor, step_pairs: int
) -> dict[str, torch.Tensor]:
    """Mean similarity of images to this step's and to older negatives in the text queue.

    The two agree in a healthy run. Where they differ, the age of a key tells positives from negatives: the staleness
    shortcut.

    Args:
        model: with a key queue that this step's keys have entered.
        image_embeds: (n, D) normalized; image_ids: (n,).
        step_pairs: pairs of the whole optimizer step.
    """
    queue = model.key_queue
    if queue is None:
        raise ValueError("the model has no queue: it does not use the momentum contrast")
    scores = image_embeds.float() @ queue.text_keys.float().t()  # (n, N_Q)
    age = (queue.pointer - 1 - torch.arange(len(queue), device=queue.pointer.device)) % len(queue)
    usable = ~queue.invalid_negatives(image_ids)
    current, older = usable & (age < step_pairs)[None, :], usable & (age >= step_pairs)[None, :]
    return {
        name: (scores * chosen).sum() / chosen.sum().clamp(min=1)
        for name, chosen in (("sim_current_keys", current), ("sim_queued_keys", older))
    }
