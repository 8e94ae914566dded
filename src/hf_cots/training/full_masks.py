"""Attention masks that are made without looking at the tokens, so that a training step on a GPU does not wait for it.

transformers leaves out the mask of a batch without padding. To know that, the host asks the GPU at every pass of a
text tower, and waits until all work before it is done. On a GPU the mask is made in every batch instead: the attention
is the same, up to the rounding of another kernel in batches without padding.
"""

from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


WITH_FULL_MASK = "sdpa_with_full_mask"


def full_mask(*args: Any, **kwargs: Any) -> Any:
    """transformers' `sdpa_mask`, which is never left out."""
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionInterface.register(WITH_FULL_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(WITH_FULL_MASK, full_mask)


def switch_attention(model: nn.Module, old: str, new: str) -> None:
    """Give all of a model's towers that have the `old` attention of transformers the `new` one."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for config in configs:
        if not config.sub_configs and config._attn_implementation == old:
            config._attn_implementation = new


class FullMasks(TrainerCallback):
    """Makes full masks from the beginning of training to its end, in towers with PyTorch's attention (`sdpa`)."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        switch_attention(model, "sdpa", WITH_FULL_MASK)

    def on_train_end(self, args, state, control, model, **kwargs):
        switch_attention(model, WITH_FULL_MASK, "sdpa")
