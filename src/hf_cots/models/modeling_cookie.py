"""COOKIE for inference (Wen et al. 2021): two streams, and on their heads one transformer that both pass through.

Each modality passes through the shared layers alone, so that M images and N texts still cost M + N encodings and one
matrix product. Pre-training lives in `pretraining_cookie.py`.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_cookie import CookieConfig
from .modeling_cots import COTSModel, COTSPreTrainedModel


class CookieLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, config: CookieConfig):
        super().__init__()
        width, inner = config.projection_dim, config.shared_intermediate_size
        self.num_heads, self.attention_dropout = config.num_shared_heads, config.shared_dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.shared_dropout)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(n, length, width) to the same; `attention_mask` (n, 1, 1, length) bool is false on padding."""
        normed = self.attention_norm(hidden)
        # (n, heads, length, width / heads)
        query, key, value = (
            project(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
        hidden = hidden + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        inner = F.gelu(self.expand(self.feed_forward_norm(hidden)))
        return hidden + self.dropout(self.contract(inner))


class CookieTransformer(nn.Module):
    """`num_shared_layers` layers and a last LayerNorm; without layers, the identity."""

    def __init__(self, config: CookieConfig):
        super().__init__()
        self.layers = nn.ModuleList(CookieLayer(config) for _ in range(config.num_shared_layers))
        self.norm = nn.LayerNorm(config.projection_dim) if config.num_shared_layers else nn.Identity()

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(n, length, width) to the same; `attention_mask` (n, length) is 0 on padding, which nothing looks at."""
        expanded = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, expanded)
        return self.norm(hidden)


def pool_tokens(hidden: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """(n, width) of (n, length, width) states.

    Args:
        attention_mask: (n, length), 0 on padding; all ones if not given.
        pooling: `config.pooling`.
    """
    if pooling == "first":
        return hidden[:, 0]
    if attention_mask is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden.amax(dim=1)
    kept = (attention_mask != 0).unsqueeze(-1)
    if pooling == "max":
        return hidden.masked_fill(~kept, torch.finfo(hidden.dtype).min).amax(dim=1)
    return (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


class CookiePreTrainedModel(COTSPreTrainedModel):
    """What the COOKIE classes share; saving, loading and what Trainer must know are as for COTS."""

    config: CookieConfig  # type: ignore[assignment]
    config_class = CookieConfig  # type: ignore[assignment]
    base_model_prefix = "cookie"
    auto_classes = {
        "AutoConfig": "configuration_cookie.CookieConfig",
        "AutoModel": "modeling_cookie.CookieModel",
        "AutoModelForZeroShotImageClassification": "modeling_cookie.CookieModel",
    }
    _no_split_modules = ["ViTEmbeddings", "ViTLayer", "BertEmbeddings", "BertLayer", "CookieLayer"]
    _keys_to_ignore_on_load_unexpected = [r"^(steps_seen|pairs_seen)", r"vision_model\..*mask_token$"]


class CookieModel(CookiePreTrainedModel, COTSModel):
    """Two streams, two projections of their tokens, and the transformer on their heads: what people deploy.

        H_v = S(patches W_v + b_v),  H_t = S(tokens W_t + b_t),  embeddings l2norm(mean(H_v)), l2norm(mean(H_t))

    `CookieModel(CookieConfig())` has 213,067,008 parameters, of which the shared transformer 16,801,792.

    Args:
        config ([`CookieConfig`]).
    """

    def __init__(self, config: CookieConfig):
        super().__init__(config)
        self.transformer = CookieTransformer(config)
        # Text's own transformer where weights are not shared, for comparisons.
        self.text_transformer = None if config.share_weights else CookieTransformer(config)
        self.post_init()

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """Image features; `pooler_output` is the joint feature (n, projection_dim), *not* normalized."""
        output = self.encode_image(pixel_values, **kwargs)
        patches = self.patch_states(output.last_hidden_state)  # without special tokens
        hidden = self.transformer(self.visual_projection(patches))
        output.pooler_output = pool_tokens(hidden, None, self.config.pooling)
        return output

    def encode_frames(self, *args, **kwargs) -> torch.Tensor:
        """COOKIE's joint feature is made of patches, and not defined for clips.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{type(self).__name__} does not encode clips, only images and texts: use a COTSModel")

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Text features; `pooler_output` is the joint feature (n, projection_dim), *not* normalized.

        `token_type_ids` is ignored, as in [`COTSModel.get_text_features`].
        """
        output = self.encode_text(input_ids, attention_mask, **kwargs)
        transformer = self.transformer if self.text_transformer is None else self.text_transformer
        hidden = transformer(self.text_projection(output.last_hidden_state), attention_mask)
        output.pooler_output = pool_tokens(hidden, attention_mask, self.config.pooling)
        return output
