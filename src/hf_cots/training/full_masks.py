"""Attention masks that are made without looking at the tokens, so that a training step does not wait for the GPU.

transformers omits the mask of a batch without padding. To find out, the host asks the GPU in every pass of a text
tower, and waits until all earlier work is done. Here the mask is always made on a GPU instead: the attention is the
same, up to the rounding of another kernel in batches without padding.
"""

from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


WITH_FULL_MASK = "sdpa_with_full_mask"


def full_mask(*args: Any, **kwargs: Any) -> Any:
    """transformers' `sdpa_mask`, but never omitted."""
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionInterface.register(WITH_FULL_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(WITH_FULL_MASK, full_mask)


def switch_attention(model: nn.Module, old: str, new: str) -> None:
    """Switch all towers of a model that use transformers' `old` attention to the `new` one."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for config in configs:
        if not config.sub_configs and config._attn_implementation == old:
            config._attn_implementation = new


class FullMasks(TrainerCallback):
    """A callback that uses full masks during training, in towers with PyTorch's attention (`sdpa`)."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        switch_attention(model, "sdpa", WITH_FULL_MASK)

    def on_train_end(self, args, state, control, model, **kwargs):
        switch_attention(model, WITH_FULL_MASK, "sdpa")
