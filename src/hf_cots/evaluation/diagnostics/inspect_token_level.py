"""Measure whether the token level uses the other modality, by its losses with shuffled cross-modal features."""

import torch
from accelerate.utils import send_to_device

from ...data.collator import COTSCollator
from ...data.sources import PairDataset
from ...models import COTSForPreTraining, COTSProcessor
from ...search.encoding import batches


@torch.no_grad()
def inspect_token_level(
    model: COTSForPreTraining, processor: COTSProcessor, pairs: PairDataset, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """Measure by how much L_MVM and L_MLM rise when each pair gets the global features of the next pair in its batch.

    Masks, images and texts stay the same, and all pairs are masked regardless of `masked_fraction`; only the
    cross-modal features are shuffled. A rise of zero means that the level learns from its own modality alone.

    Args:
        model: a model with a token level; its state and mode are not changed.
        processor: the model's processor.
        pairs: the data. Pairs that share an image or a caption swap equal features: use data with few of them.
        batch_size: pairs per forward pass; a last batch of one pair, which cannot be shuffled, is skipped.

    Returns:
        For "mvm" and "mlm", if enabled: `{"loss", "shuffled", "rise"}`, means over pairs in nats.

    Raises:
        ValueError: if no token level is on, or there are fewer than two pairs.
    """
    config = model.config
    if config.model_type != "cots" or not config.uses_masks:
        raise ValueError("the model has no token level: mvm_weight and mlm_weight are 0")
    if len(pairs) < 2:
        raise ValueError(f"{pairs.name} has {len(pairs)} pair, but shuffling needs at least 2")
    names = [name for name in ("mvm", "mlm") if getattr(config, f"{name}_weight") > 0]
    totals, seen = {name: torch.zeros(2, dtype=torch.float64) for name in names}, 0
    collate = COTSCollator(processor, config)
    collate.mask_settings |= {"masked_fraction": 1.0}
    was_training = model.training
    model.eval()
    for indices in batches(range(len(pairs)), batch_size):
        if len(indices) < 2:
            continue
        batch = send_to_device(collate([pairs[i] for i in indices]), model.device)
        image = model.cots.encode_image(batch["pixel_values"]).pooler_output
        text = model.cots.encode_text(batch["input_ids"], batch.get("attention_mask")).pooler_output
        features = {"image_features": image, "text_features": text}
        own = model(**batch, features=features)
        shuffled = model(**batch, features={name: rows.roll(1, dims=0) for name, rows in features.items()})
        for name in names:
            # The model divides by `masked_fraction`, as if only this fraction of the pairs were masked.
            both = [config.masked_fraction * float(output[f"loss_{name}"]) for output in (own, shuffled)]
            totals[name] += len(indices) * torch.tensor(both, dtype=torch.float64)
        seen += len(indices)
    model.train(was_training)
    means = {name: (total / seen).tolist() for name, total in totals.items()}
    return {
        name: {"loss": loss, "shuffled": shuffled, "rise": shuffled - loss} for name, (loss, shuffled) in means.items()
    }
