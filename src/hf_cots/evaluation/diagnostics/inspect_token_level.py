"""Is the token level alive? Whether its predictions use the other stream at all."""

import torch

from ...data.collator import COTSCollator
from ...data.sources import PairDataset
from ...models import COTSForPreTraining, COTSProcessor
from ...search.encoding import batches


@torch.no_grad()
def inspect_token_level(
    model: COTSForPreTraining, processor: COTSProcessor, pairs: PairDataset, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """By how much L_MVM and L_MLM rise when each pair is given the global features of the next one in its batch.

    Masks, pictures and words stay the same, and all pairs are masked whatever `masked_fraction` is; only what comes from
    the other stream changes. A rise of zero says that the level learns from its own stream alone.

    Args:
        model: with at least one token level; its state and mode are left as they were.
        processor: the model's.
        pairs: the data. Pairs of one picture, and equal captions, are no strangers: use data with few of them.
        batch_size: pairs in a forward pass; a last batch of one pair, which has no stranger, is left out.

    Returns:
        For "mvm" and "mlm", where on: `{"loss", "shuffled", "rise"}`, means over pairs in nats.

    Raises:
        ValueError: if no token level is on, or there are fewer than two pairs.
    """
    config = model.config
    if config.model_type != "cots" or not config.uses_masks:
        raise ValueError("the model has no token level: mvm_weight and mlm_weight are 0")
    if len(pairs) < 2:
        raise ValueError(f"{pairs.name} has {len(pairs)} pair: there is no stranger to ask")
    names = [name for name in ("mvm", "mlm") if getattr(config, f"{name}_weight") > 0]
    totals, seen = {name: torch.zeros(2, dtype=torch.float64) for name in names}, 0
    collate = COTSCollator(processor, config)
    collate.mask_settings |= {"masked_fraction": 1.0}
    was_training = model.training
    model.eval()
    for indices in batches(range(len(pairs)), batch_size):
        if len(indices) < 2:
            continue
        batch = {name: rows.to(model.device) for name, rows in collate([pairs[i] for i in indices]).items()}
        image = model.cots.encode_image(batch["pixel_values"]).pooler_output
        text = model.cots.encode_text(batch["input_ids"], batch["attention_mask"]).pooler_output
        own = model(**batch, image_features=image, text_features=text)
        strange = model(**batch, image_features=image.roll(1, dims=0), text_features=text.roll(1, dims=0))
        for name in names:
            # The model takes its share of the pairs for masked, and divides the sum by it.
            both = [config.masked_fraction * float(output[f"loss_{name}"]) for output in (own, strange)]
            totals[name] += len(indices) * torch.tensor(both, dtype=torch.float64)
        seen += len(indices)
    model.train(was_training)
    gains = {}
    for name, total in totals.items():
        loss, shuffled = (total / seen).tolist()
        gains[name] = {"loss": loss, "shuffled": shuffled, "rise": shuffled - loss}
    return gains
