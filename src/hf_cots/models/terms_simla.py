"""The terms of SIMLA's loss that the text stack computes, each for one micro-batch: ITM, MLM, MIM, PSL.

What they share is two sides, the trained model and its momentum twin, with the same heads. ITC, which needs no pass
through the stack but the queues, is `pretraining_simla.py`'s.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from .configuration_simla import SimlaConfig
from .losses import full_precision
from .losses_simla import (
    distilled_cross_entropy,
    hard_negatives,
    keyword_loss,
    keyword_positions,
    mean_of_masked,
    multi_hot,
)
from .modeling_simla import CrossAttentionCache, SimlaModel, attended


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


class Batch(NamedTuple):
    """A micro-batch of at least one row.

    Args:
        pixel_values: (n, 3, image_size, image_size).
        input_ids, attention_mask: (n, length).
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None


class Side(NamedTuple):
    """The trained model or its momentum twin.

    Args:
        model, heads: its parts.
        memory: what its stack looks at, of the batch's clean images.
    """

    model: SimlaModel
    heads: SimlaHeads
    memory: CrossAttentionCache


def itm_term(
    batch: Batch, online: Side, similarities: tuple[torch.Tensor, torch.Tensor], allowed: torch.Tensor
) -> torch.Tensor:
    """L_itm of each pair: mean over the pair, its text with a hard negative image, and its image with a hard negative
    text; without a negative that does not exist in the batch.

    Args:
        similarities: (n, n) of images with texts and of texts with images.
        allowed: (n, n) bool, which others can be negatives.
    """
    own = torch.arange(len(allowed), device=allowed.device)
    texts, has_text = hard_negatives(similarities[0], allowed)
    images, has_image = hard_negatives(similarities[1], allowed)
    text_rows = torch.cat([own, own, texts])
    mask = None if batch.attention_mask is None else batch.attention_mask[text_rows]
    memory = online.memory.rows(torch.cat([own, images, own]))
    logits = online.model.match(batch.input_ids[text_rows], mask, memory=memory)
    labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    losses = distilled_cross_entropy(logits, labels, None, 0.0).view(3, -1)
    counted = torch.stack([torch.ones_like(has_image), has_image, has_text]).to(losses.dtype)
    return (losses * counted).sum(dim=0) / counted.sum(dim=0)


def mlm_term(
    batch: Batch,
    online: Side,
    twin: Side,
    masked_input_ids: torch.Tensor,
    masked: torch.Tensor,
    share: torch.Tensor,
    softmax_over_text: bool = False,
) -> torch.Tensor:
    """L_mlm of each pair: its masked words from the clean image, mean over them.

    Args:
        masked_input_ids: (n, length); masked: (n, length) bool, the words to predict.
        share: a, the weight of distillation.
        softmax_over_text: the authors' slip in the distilled half, for `match_original_code`.
    """

    def states(side: Side) -> torch.Tensor:
        stack = side.model.text_model
        return stack(stack.embed(masked_input_ids), attended(batch.attention_mask), side.memory)[-1]

    def logits(side: Side, chosen: torch.Tensor) -> torch.Tensor:
        return side.heads.word_logits(chosen, side.model.text_model.word_embeddings)

    hidden = states(online)
    log_probabilities = None
    if softmax_over_text:
        log_probabilities = full_precision(logits(online, hidden)).log_softmax(dim=1)[masked]
    with torch.no_grad():
        teacher = logits(twin, states(twin)[masked])
    losses = distilled_cross_entropy(
        logits(online, hidden[masked]), batch.input_ids[masked], teacher, share, log_probabilities
    )
    return mean_of_masked(losses, masked)


def mim_term(
    batch: Batch, online: Side, twin: Side, masked: torch.Tensor, codes: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """L_mim of each pair: the codes of its masked patches from the text's embeddings, mean over them.

    Args:
        masked: (n, patches) bool; codes: (n, patches) int64.
        share: a.
    """
    logits = code_logits(batch, online, masked)
    with torch.no_grad():
        teacher = code_logits(batch, twin, masked)
    return mean_of_masked(distilled_cross_entropy(logits, codes[masked], teacher, share), masked)


def code_logits(batch: Batch, side: Side, masked: torch.Tensor) -> torch.Tensor:
    """(total masked, codes): the masked image's states look at the text's embedding-layer output."""
    stack = side.model.text_model
    looking = stack.embed(inputs_embeds=side.model.encode_image(batch.pixel_values, bool_masked_pos=masked))
    words = stack.remember(stack.embed(batch.input_ids))
    states = stack(looking, None, words, attended(batch.attention_mask))[-1]
    return side.heads.mim_head(states[:, 1:][masked])


def psl_term(
    batch: Batch,
    online: Side,
    twin: Side,
    image_embeds: torch.Tensor,
    image_keys: torch.Tensor,
    share: torch.Tensor,
    config: SimlaConfig,
) -> torch.Tensor:
    """L_psl of each pair: keywords that the twin's attention picks, predicted from the image's feature.

    Args:
        image_embeds, image_keys: (n, projection_dim) of the two sides, normalised.
        share: a.
    """
    with torch.no_grad():
        labels = multi_hot(batch.input_ids, keywords(batch, twin, config), config.text_config.vocab_size)
        teacher = twin.model.concept_head(image_keys)
    return keyword_loss(online.model.concept_head(image_embeds), labels, teacher, share)


@torch.no_grad()
def keywords(batch: Batch, side: Side, config: SimlaConfig) -> torch.Tensor:
    """Which words of the texts a side attends to in the light of their images: (n, length) bool."""
    stack, mask = side.model.text_model, attended(batch.attention_mask)
    before = stack(stack.embed(batch.input_ids), mask, side.memory)[-2]
    attention = stack.layers[-1].attention
    keys, _ = attention.keys_values(before)
    first_row = attention.probabilities(before[:, :1], keys, mask).squeeze(2)
    may_vote = torch.ones_like(batch.input_ids, dtype=torch.bool)
    if not config.match_original_code:
        may_vote = ~torch.isin(batch.input_ids, batch.input_ids.new_tensor(config.special_token_ids))
        if batch.attention_mask is not None:
            may_vote &= batch.attention_mask != 0
    return keyword_positions(first_row, may_vote, config.votes_per_head, config.num_keywords)


__all__ = ["Batch", "Side", "SimlaHeads", "code_logits", "itm_term", "keywords", "mim_term", "mlm_term", "psl_term"]
