"""SIMLA for inference (Khan et al. 2022): a dual encoder, and a re-ranker that reads text and image together.

As a dual encoder it is searched with dot products like COTS. `match` costs one pass through the text stack for each
pair, but nearly nothing for the image: its keys and values are computed once ([`CrossAttentionCache`]). Pre-training
lives in `pretraining_simla.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfOutput
from transformers.utils import can_return_tuple

from .configuration_simla import SimlaConfig
from .losses import full_precision, l2_normalize
from .modeling_cots import COTSModel, COTSOutput, COTSPreTrainedModel, contrastive_output
from .towers import at_least_one_row, build_tower, copy_tower, load_tower


class SimlaAttention(nn.Module):
    """BERT's attention, whose keys and values may come from other states and may have been computed before."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = BertSelfOutput(config)

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """(n, length, hidden) to (n, heads, length, hidden / heads)."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (n, heads, length, hidden / heads) of states (n, length, hidden)."""
        return self.heads(self.key(states)), self.heads(self.value(states))

    def forward(
        self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(n, length, hidden) after attention, residual and LayerNorm; mask (n, 1, 1, keys), false on padding."""
        mixed = F.scaled_dot_product_attention(
            self.heads(self.query(hidden)),
            keys.expand(hidden.shape[0], -1, -1, -1),
            values.expand(hidden.shape[0], -1, -1, -1),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(mixed.transpose(1, 2).flatten(2), hidden)

    def probabilities(self, hidden: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(n, heads, length, keys): the attention of the queries `hidden` to the keys; each row sums to 1."""
        queries = self.heads(self.query(hidden))
        scores = full_precision(queries @ keys.transpose(-1, -2)) / queries.shape[-1] ** 0.5
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


class SimlaLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention if there are keys for it, feed-forward; post-norm."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.attention = SimlaAttention(config)
        self.crossattention = SimlaAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        cross_keys: torch.Tensor | None = None,
        cross_values: torch.Tensor | None = None,
        cross_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden = self.attention(hidden, *self.attention.keys_values(hidden), mask)
        if cross_keys is not None:
            hidden = self.crossattention(hidden, cross_keys, cross_values, cross_mask)
        return self.output(self.intermediate(hidden), hidden)


@dataclass(frozen=True)
class CrossAttentionCache:
    """Keys and values of n inputs for the cross-attention of every layer: a pass over a pair need not compute them.

    Args:
        keys, values: for each layer (m, heads, tokens, hidden / heads).
        index: (n,) int64, which of the m, in any order, repeated or left out; all of them if None.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    index: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys[0]) if self.index is None else len(self.index)

    def rows(self, index: torch.Tensor) -> "CrossAttentionCache":
        """The cache of chosen inputs (rows,) int64. Only a forward pass copies, one layer at a time."""
        return CrossAttentionCache(self.keys, self.values, index if self.index is None else self.index[index])

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (n, heads, tokens, hidden / heads) of one layer."""
        keys, values = self.keys[index], self.values[index]
        return (keys, values) if self.index is None else (keys[self.index], values[self.index])


def expand_attention_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """A tokenizer's (n, length) mask as (n, 1, 1, length) bool. A row of padding alone attends to itself, which avoids
    NaN."""
    if attention_mask is None:
        return None
    present = attention_mask != 0
    return (present | ~present.any(dim=1, keepdim=True))[:, None, None, :]


class SimlaStack(nn.Module):
    """The upper half of the stream: BERT with cross-attention in each layer and without token types.

    The same weights read a text alone, a text that attends to an image, and an image that attends to a text.

    Args:
        config (`BertConfig`): its sizes.
    """

    _supports_sdpa = True  # and nothing else, whatever the config asks for

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        if config._attn_implementation is None:  # as transformers' own towers set it
            config._attn_implementation = "sdpa"
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(SimlaLayer(config) for _ in range(config.num_hidden_layers))

    def embed(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """The embedding layer's output (n, length, hidden) for words, or for other states in their place.

        Raises:
            ValueError: if there are fewer positions than inputs.
        """
        embeds = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if embeds.shape[1] > len(self.position_embeddings.weight):
            raise ValueError(
                f"{embeds.shape[1]} inputs exceed the {len(self.position_embeddings.weight)} positions of the "
                "text stack"
            )
        positions = self.position_embeddings.weight[: embeds.shape[1]]
        return self.dropout(self.layer_norm(embeds + positions))

    def cache_cross_attention(self, states: torch.Tensor) -> CrossAttentionCache:
        """Keys and values of states (n, tokens, hidden) for the cross-attention of each layer."""
        made = [layer.crossattention.keys_values(states) for layer in self.layers]
        return CrossAttentionCache([keys for keys, _ in made], [values for _, values in made])

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: CrossAttentionCache | None = None,
        cache_mask: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Each layer's input and, last, the output of all: (n, length, hidden) each.

        Args:
            hidden: of [`embed`].
            mask: of [`expand_attention_mask`], for the inputs.
            cache: what the inputs attend to; None skips the cross-attention. One entry serves all inputs.
            cache_mask: of [`expand_attention_mask`], for the cached inputs.
        """
        states = [hidden]
        for index, layer in enumerate(self.layers):
            cross = () if cache is None else (*cache.layer(index), cache_mask)
            states.append(layer(states[-1], mask, *cross))
        return states

    def self_attentions(self, states: list[torch.Tensor], mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Each layer's self-attention (n, heads, length, length) from the states of [`forward`], before dropout."""
        attentions = (layer.attention for layer in self.layers)
        return tuple(
            attention.probabilities(hidden, attention.keys_values(hidden)[0], mask)
            for attention, hidden in zip(attentions, states)
        )


class SimlaPreTrainedModel(COTSPreTrainedModel):
    """What the SIMLA classes share; saving, loading and what Trainer must know are as for COTS."""

    config: SimlaConfig  # type: ignore[assignment]
    config_class = SimlaConfig  # type: ignore[assignment]
    base_model_prefix = "simla"
    auto_classes = {
        "AutoConfig": "configuration_simla.SimlaConfig",
        "AutoModel": "modeling_simla.SimlaModel",
        "AutoModelForZeroShotImageClassification": "modeling_simla.SimlaModel",
    }
    # The text stack has its own attention, on torch's kernels; the choice among them concerns the image encoder.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _no_split_modules = ["ViTEmbeddings", "ViTLayer", "SimlaLayer"]
    _keys_to_ignore_on_load_unexpected = [
        r"^(momentum_encoder|momentum_heads|heads|key_queue|image_tokenizer|steps_seen|pairs_seen)",
        r"vision_model\..*mask_token$",
        r"concept_head",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SimlaModel):
            init.constant_(module.temperature, self.config.temperature)


class SimlaModel(SimlaPreTrainedModel):
    """Image encoder, text stack, two projections, the head for image-text matching and, unless `psl_weight` is 0, the
    one for keywords: what people deploy.

    `SimlaModel(SimlaConfig(mim_weight=0, vision_config={"model_type": "vit", "image_size": 384, "layer_norm_eps":
    1e-6}, psl_weight=0))` has the 223,742,723 parameters of the authors' retrieval model.

    Args:
        config ([`SimlaConfig`]).
        use_mask_token (`bool`, defaults to `False`): give the image encoder a mask token, for pre-training.
    """

    def __init__(self, config: SimlaConfig, use_mask_token: bool = False):
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config, add_pooling_layer=False, use_mask_token=use_mask_token)
        self.text_model = SimlaStack(config.text_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.concept_head: Any = None
        if config.psl_weight > 0:
            self.concept_head = nn.Linear(config.projection_dim, config.text_config.vocab_size)
        self.temperature = nn.Parameter(torch.tensor([float(config.temperature)]))  # FSDP shards no scalars
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, **config_fields
    ) -> "SimlaModel":
        """Start from a pretrained image encoder and a BERT; cross-attention, projections and head are new.

        BERT's embedding of token type 0, which it adds to every word, becomes part of the positions: the stack then
        reads a text alone as the BERT did.

        Args:
            vision: Hub id, folder or model of a ViT or DeiT.
            text: Hub id, folder or model of a BERT.
            config_fields: any field of [`SimlaConfig`]. The image tokenizer's input size follows the patch grid.

        Raises:
            ValueError: if a tower is of another kind, or the widths differ.
        """
        vision_tower, text_tower = load_tower(vision, "image"), load_tower(text, "text")
        if text_tower.config.model_type != "bert":
            raise ValueError(f"SIMLA's text stack must start from a BERT, not from '{text_tower.config.model_type}'")
        model = cls(SimlaConfig.from_towers(vision_tower.config, text_tower.config, **config_fields))
        copy_tower(model.vision_model, vision_tower)
        copy_bert(model.text_model, text_tower)
        return model

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back within its bounds."""
        self.temperature.clamp_(self.config.min_temperature, self.config.max_temperature)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_model.word_embeddings

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.word_embeddings = value

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """As in transformers; the classifier over keywords follows."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.resize_concepts(embeddings.num_embeddings)
        return embeddings

    @torch.no_grad()
    def resize_concepts(self, words: int) -> None:
        """Make the classifier over keywords one over so many words; a new one is as likely as the mean of the old."""
        head = self.concept_head
        if head is None or head.out_features == words:
            return
        for name in ("weight", "bias"):
            old = getattr(head, name)
            grown = torch.cat([old, old.mean(dim=0, keepdim=True).expand(max(0, words - len(old)), *old.shape[1:])])
            setattr(head, name, nn.Parameter(grown[:words].clone(), requires_grad=old.requires_grad))
        head.out_features = words

    def encode_image(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The image encoder alone: `last_hidden_state` (n, 1 + patches, hidden) and, as `pooler_output`, the first of
        these states (n, hidden), which is the image's global feature before projection.

        Args:
            pixel_values: (n, 3, image_size, image_size), normalized.
            bool_masked_pos: (n, patches), true where the patch embedding is replaced by the mask token.
            kwargs: passed on to the tower (`interpolate_pos_encoding=True` for another resolution, say).
        """
        if bool_masked_pos is not None:
            kwargs["bool_masked_pos"] = at_least_one_row(bool_masked_pos)
        output = self.vision_model(pixel_values=at_least_one_row(pixel_values), **kwargs)
        output.last_hidden_state = states = output.last_hidden_state[: pixel_values.shape[0]]
        output.pooler_output = states[:, 0]
        return output

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The text stack on texts alone: `last_hidden_state` (n, length, hidden), and its first state (n, hidden).

        Args:
            input_ids, attention_mask: (n, length).
            kwargs: `output_hidden_states` and `output_attentions`, by default the text config's; no other has a use.
        """
        asked = {name: kwargs.get(name) for name in ("output_hidden_states", "output_attentions")}
        asked = {n: getattr(self.config.text_config, n, False) if v is None else v for n, v in asked.items()}
        mask = None if attention_mask is None else expand_attention_mask(at_least_one_row(attention_mask))
        states = self.text_model(self.text_model.embed(at_least_one_row(input_ids)), mask)
        last = states[-1][: input_ids.shape[0]]
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=last[:, 0],
            hidden_states=tuple(states) if asked["output_hidden_states"] else None,
            attentions=self.text_model.self_attentions(states, mask) if asked["output_attentions"] else None,
        )

    # Projected features (n, projection_dim), *not* normalized. Token types are ignored, as there are none here.
    get_image_features = COTSModel.get_image_features
    get_text_features = COTSModel.get_text_features

    def cache_image(self, pixel_values: torch.Tensor, **kwargs) -> CrossAttentionCache:
        """Keys and values of n images for [`match`]; kept, they make every further text about these images cheap."""
        return self.text_model.cache_cross_attention(self.encode_image(pixel_values, **kwargs).last_hidden_state)

    def match(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_cache: CrossAttentionCache | None = None,
    ) -> torch.Tensor:
        """Score pairs, text i with image i: logits (n, 2), the second of which is for a match. A single text is scored
        with each image, and a single image with each text.

        Args:
            input_ids, attention_mask: (n, length), or (1, length).
            pixel_values: (n, 3, image_size, image_size), or one image;
            image_cache: or [`cache_image`] of them.

        Raises:
            ValueError: if not exactly one of pixels and cache is given, or the numbers do not fit.
        """
        if (pixel_values is None) == (image_cache is None):
            raise ValueError("match needs either pixel_values or image_cache")
        if image_cache is None:
            image_cache = self.cache_image(pixel_values)  # type: ignore[arg-type]
        images = len(image_cache)
        if len(input_ids) == 1:
            input_ids = input_ids.expand(images, -1)
            attention_mask = None if attention_mask is None else attention_mask.expand(images, -1)
        if images not in (1, len(input_ids)):
            raise ValueError(f"{len(input_ids)} texts cannot be matched with {images} images, pair by pair")
        mask = expand_attention_mask(attention_mask)
        return self.itm_head(self.text_model(self.text_model.embed(input_ids), mask, image_cache)[-1][:, 0])

    def predict_keywords(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """(n, vocabulary) the probability that each word is a keyword of an image, from the image alone.

        Raises:
            ValueError: if the model was made without keywords (psl_weight=0).
        """
        if self.concept_head is None:
            raise ValueError("this model has psl_weight=0 and predicts no keywords")
        features = self.get_image_features(pixel_values, **kwargs).pooler_output
        return full_precision(self.concept_head(l2_normalize(features).to(features.dtype))).sigmoid()

    def word_patch_attention(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor, layer: int = -1
    ) -> torch.Tensor:
        """Attention of each word to the patches, (n, length, rows, columns): of one layer, mean over heads.

        A row sums to less than 1 by the attention to the image's first token. Arguments as for [`match`].

        Args:
            layer: which of the stack's layers, the last by default.
        """
        cache, mask = self.cache_image(pixel_values), expand_attention_mask(attention_mask)
        index = range(len(self.text_model.layers))[layer]
        hidden = self.text_model(self.text_model.embed(input_ids), mask, cache)[index]
        block = self.text_model.layers[index]
        hidden = block.attention(hidden, *block.attention.keys_values(hidden), mask)
        attention = block.crossattention.probabilities(hidden, cache.layer(index)[0], None).mean(dim=1)
        patch = self.config.vision_config.patch_size
        return attention[..., 1:].unflatten(-1, (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> COTSOutput:
        """Encode images, texts, or both, apart; with both, also compare every image with every text.

        [`match`] scores pairs.

        Args:
            input_ids, attention_mask: (texts, length).
            pixel_values: (images, 3, image_size, image_size).
            interpolate_pos_encoding: accept other image sizes.

        Raises:
            ValueError: if neither modality is given.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("SimlaModel needs input_ids, pixel_values, or both")
        image_output, text_output = None, None
        if pixel_values is not None:
            sizes = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
            image_output = self.get_image_features(pixel_values, return_dict=True, **sizes, **kwargs)
        if input_ids is not None:
            text_output = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        return contrastive_output(image_output, text_output, full_precision(self.temperature))


@torch.no_grad()
def copy_bert(stack: SimlaStack, bert: PreTrainedModel) -> None:
    """Copy a BERT's weights into the stack; the cross-attention stays as it is."""
    embeddings = bert.embeddings
    stack.word_embeddings.load_state_dict(embeddings.word_embeddings.state_dict())
    stack.position_embeddings.weight.copy_(
        embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    )
    stack.layer_norm.load_state_dict(embeddings.LayerNorm.state_dict())
    for own, theirs in zip(stack.layers, bert.encoder.layer, strict=True):
        own.attention.load_state_dict(
            {name.removeprefix("self."): tensor for name, tensor in theirs.attention.state_dict().items()}
        )
        own.intermediate.load_state_dict(theirs.intermediate.state_dict())
        own.output.load_state_dict(theirs.output.state_dict())
