"""The terms of SIMLA's loss, each for one micro-batch of n pairs, (n,): ITC, ITM, MLM, MIM, PSL.

Most of them need two sides, the trained model and the momentum model, with the same heads. A batch is a dictionary of
what `SimlaForPreTraining.forward` takes, of at least one row.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from .configuration_simla import SimlaConfig
from .losses import contrast_logits, full_precision, mean_of_masked, true_positions
from .losses_simla import (
    distilled_cross_entropy,
    hard_negatives,
    in_batch_similarities,
    keyword_loss,
    keyword_positions,
    multi_hot,
)
from .modeling_simla import CrossAttentionCache, SimlaModel, expand_attention_mask
from .queues import KeyQueue
from .step import Batch, Keys, Step
from .token_level import take_masked


class SimlaHeads(nn.Module):
    """The classifiers over masked words and codes; those of weight 0 do not exist.

    Args:
        config ([`SimlaConfig`]).
    """

    def __init__(self, config: SimlaConfig):
        super().__init__()
        width, words = config.text_config.hidden_size, config.text_config.vocab_size
        self.word_transform: Any = None
        self.mim_head: Any = None
        if config.mlm_weight > 0:
            self.word_transform = BertPredictionHeadTransform(config.text_config)
            # The weight is the word embeddings' own.
            self.word_bias = nn.Parameter(torch.zeros(words))
        if config.mim_weight > 0:
            self.mim_head = nn.Linear(width, config.image_tokenizer_config.codebook_size)

    def word_logits(self, hidden: torch.Tensor, embeddings: nn.Embedding) -> torch.Tensor:
        """(..., hidden) states to (..., vocabulary)."""
        return nn.functional.linear(self.word_transform(hidden), embeddings.weight, self.word_bias)


class Side(NamedTuple):
    """The trained model or the momentum model.

    Args:
        model, heads: its parts.
        image_cache: keys and values of the batch's clean images for the cross-attention of its stack.
    """

    model: SimlaModel
    heads: SimlaHeads
    image_cache: CrossAttentionCache


def bounded(temperature: torch.Tensor, config: SimlaConfig) -> torch.Tensor:
    """tau within its bounds, for a step that begins with one out of them."""
    return temperature.clamp(config.min_temperature, config.max_temperature)


def itc_term(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    step: Step,
    current: Keys,
    queue: KeyQueue,
    temperature: torch.Tensor,
    weight: torch.Tensor,
    config: SimlaConfig,
) -> torch.Tensor:
    """L_itc of each pair: `s = f T_all / tau` against `a softmax(s') + (1 - a) onehot`, mean of both directions.

    `T_all` holds the whole step's momentum features and the queue; empty slots, and unless `match_original_code`
    other captions of the same image, have probability 0 in prediction and target.

    Args:
        image_embeds, text_embeds: (n, D) normalized.
        temperature: the learned tau, within its bounds or not yet.
        current: the momentum features of all pairs of the optimizer step.
        queue: those of earlier steps.
        weight: a, the weight of distillation.
    """
    keys = step.keys
    own = keys.pair_index[:, None] == current.pair_index[None, :]  # (n, pairs of the step)
    if config.match_original_code:
        empty = torch.arange(len(queue), device=own.device) >= queue.filled
        left_out = torch.cat([own, empty.expand(len(own), -1)], dim=1)  # (n, pairs of the step + Q)
    else:
        same = keys.image_ids[:, None] == current.image_ids[None, :]
        left_out = torch.cat([own | same, queue.invalid_negatives(keys.image_ids)], dim=1)
    images = torch.cat([current.image_keys, queue.image_keys.to(current.image_keys.dtype)])
    texts = torch.cat([current.text_keys, queue.text_keys.to(current.text_keys.dtype)])
    target = torch.zeros_like(keys.pair_index)  # the own positive is in column 0
    losses = []
    for queries, momentum_queries, positives, entries in (
        (image_embeds, keys.image_keys, keys.text_keys, texts),
        (text_embeds, keys.text_keys, keys.image_keys, images),
    ):
        tau = bounded(temperature, config)
        logits = contrast_logits(queries, positives, entries, left_out, tau)
        teacher = contrast_logits(momentum_queries, positives, entries, left_out, tau).detach()
        losses.append(distilled_cross_entropy(logits, target, teacher, weight))
    return (losses[0] + losses[1]) / 2


def itm_term(
    batch: Batch,
    online: Side,
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    step: Step,
    temperature: torch.Tensor,
    hardness: torch.Tensor,
    config: SimlaConfig,
    draws: torch.Tensor | None = None,
) -> torch.Tensor:
    """L_itm of each pair: mean over the pair, its text with a hard negative image, and its image with a hard negative
    text; without a negative that does not exist in the batch.

    Args:
        image_embeds, text_embeds: (n, D) normalized; with the momentum features they give the similarities by which
            negatives are drawn,
        hardness: times this.
        draws: (n, 2) random numbers for the text and the image of each pair; by default torch's generator draws.
    """
    ids, tau = step.image_ids, bounded(temperature, config)
    similarities = in_batch_similarities(image_embeds, text_embeds, step.image_keys, step.text_keys, tau)
    own = torch.arange(len(ids), device=ids.device)
    allowed = ids[:, None] != ids[None, :]  # (n, n) which others can be negatives
    if config.match_original_code:
        allowed = own[:, None] != own[None, :]
    for_text, for_image = ((), ()) if draws is None else ((draws[:, 0],), (draws[:, 1],))
    texts, has_text = hard_negatives(hardness * similarities[0], allowed, *for_text)
    images, has_image = hard_negatives(hardness * similarities[1], allowed, *for_image)
    text_rows = torch.cat([own, own, texts])
    mask = None if batch["attention_mask"] is None else batch["attention_mask"][text_rows]
    cache = online.image_cache.rows(torch.cat([own, images, own]))
    logits = online.model.match(batch["input_ids"][text_rows], mask, image_cache=cache)  # (3 n, 2)
    labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    losses = distilled_cross_entropy(logits, labels, None, 0.0).view(3, -1)
    counted = torch.stack([torch.ones_like(has_image), has_image, has_text]).to(losses.dtype)
    return (losses * counted).sum(dim=0) / counted.sum(dim=0)


def mlm_term(batch: Batch, online: Side, momentum: Side, weight: torch.Tensor, config: SimlaConfig) -> torch.Tensor:
    """L_mlm of each pair: its masked words from the clean image, mean over them.

    With `match_original_code` the softmax of the distilled half runs over the text and not over the vocabulary.

    Args:
        weight: a, the weight of distillation.
    """
    masked, positions = batch["bool_masked_words"], batch["masked_positions"]["words"]  # (n, length), (total masked,)

    def chosen(states: torch.Tensor) -> torch.Tensor:
        return take_masked(states, positions)[0]

    def states(side: Side) -> torch.Tensor:
        stack, mask = side.model.text_model, expand_attention_mask(batch["attention_mask"])
        return stack(stack.embed(batch["masked_input_ids"]), mask, side.image_cache)[-1]

    def logits(side: Side, states: torch.Tensor) -> torch.Tensor:
        return side.heads.word_logits(states, side.model.text_model.word_embeddings)

    hidden = states(online)
    log_probabilities = None
    if config.match_original_code:
        log_probabilities = chosen(full_precision(logits(online, hidden)).log_softmax(dim=1))
    with torch.no_grad():
        teacher = logits(momentum, chosen(states(momentum)))
    losses = distilled_cross_entropy(
        logits(online, chosen(hidden)), chosen(batch["input_ids"]), teacher, weight, log_probabilities
    )
    return mean_of_masked(losses, masked, positions)


def mim_term(batch: Batch, online: Side, momentum: Side, codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L_mim of each pair: the codes of its masked patches from the text's embeddings, mean over them.

    Args:
        codes: (n, patches) int64.
        weight: a, the weight of distillation.
    """
    masked, positions = batch["bool_masked_pos"], batch["masked_positions"]["patches"]  # (n, patches), (total masked,)
    logits = code_logits(batch, online, masked, positions)
    with torch.no_grad():
        teacher = code_logits(batch, momentum, masked, positions)
    targets, _ = take_masked(codes, positions)
    return mean_of_masked(distilled_cross_entropy(logits, targets, teacher, weight), masked, positions)


def code_logits(batch: Batch, side: Side, masked: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """(total masked, codes): the masked image's states attend to the text's embedding-layer output.

    Args:
        masked: (n, patches) bool; positions: where it is true, if that is known.
    """
    stack = side.model.text_model
    image = side.model.encode_image(batch["pixel_values"], bool_masked_pos=masked).last_hidden_state
    queries = stack.embed(inputs_embeds=image)
    words = stack.cache_cross_attention(stack.embed(batch["input_ids"]))
    states = stack(queries, None, words, expand_attention_mask(batch["attention_mask"]))[-1]
    chosen, _ = take_masked(states[:, 1:], true_positions(masked) if positions is None else positions)
    return side.heads.mim_head(chosen)


def psl_term(
    batch: Batch,
    online: Side,
    momentum: Side,
    image_embeds: torch.Tensor,
    step: Step,
    weight: torch.Tensor,
    config: SimlaConfig,
) -> torch.Tensor:
    """L_psl of each pair: keywords that the momentum model's attention picks, predicted from the image's feature.

    Args:
        image_embeds: (n, projection_dim) normalized.
        weight: a, the weight of distillation.
    """
    with torch.no_grad():
        labels = multi_hot(batch["input_ids"], keywords(batch, momentum, config), config.text_config.vocab_size)
        teacher = momentum.model.concept_head(step.image_keys)
    return keyword_loss(online.model.concept_head(image_embeds), labels, teacher, weight)


@torch.no_grad()
def keywords(batch: Batch, side: Side, config: SimlaConfig) -> torch.Tensor:
    """Which words of the texts a side attends to in the light of their images: (n, length) bool."""
    stack, mask = side.model.text_model, expand_attention_mask(batch["attention_mask"])
    before = stack(stack.embed(batch["input_ids"]), mask, side.image_cache)[-2]
    attention = stack.layers[-1].attention
    keys, _ = attention.keys_values(before)
    first_row = attention.probabilities(before[:, :1], keys, mask).squeeze(2)  # (n, heads, length)
    may_vote = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if not config.match_original_code:
        # One by one: a tensor of a list would be copied to the device, and waited for.
        for token in config.special_token_ids:
            may_vote &= batch["input_ids"] != token
        if batch["attention_mask"] is not None:
            may_vote &= batch["attention_mask"] != 0
    return keyword_positions(first_row, may_vote, config.votes_per_head, config.num_keywords)
