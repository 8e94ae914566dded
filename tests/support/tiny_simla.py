"""The smallest SIMLA that shows everything the tests ask for, and batches for it."""

import torch
from transformers import BertConfig, ViTConfig

from hf_cots import SimlaConfig, SimlaForPreTraining
from hf_cots.models.token_level import draw_masks_by_index
from tests.support.tiny import NO_DROPOUT, SIZES, TINY_IMAGE_TOKENIZER, WORDS


def tiny_simla_config(**fields) -> SimlaConfig:
    """Two layers on each side, 4 x 4 patches of 8 pixels, 200 words, 64 codes, without dropout."""
    defaults = {
        "vision_config": ViTConfig(image_size=32, patch_size=8, layer_norm_eps=1e-6, **SIZES),
        "text_config": BertConfig(**WORDS, **SIZES, **NO_DROPOUT),
        "image_tokenizer_config": TINY_IMAGE_TOKENIZER,
        "projection_dim": 16,
        "queue_size": 12,
        "num_masked_patches": 5,
        "min_block_patches": 2,
        "distillation_warmup_steps": 4,
    }
    return SimlaConfig(**(defaults | fields))


def tiny_simla(**fields) -> SimlaForPreTraining:
    """In float64, with weights large enough to matter, momentum encoders that have drifted away, biases that are not
    0, and codes that tell patches apart."""
    torch.manual_seed(0)
    model = SimlaForPreTraining(tiny_simla_config(**fields)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("temperature"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        if model.image_tokenizer is not None:
            coder = model.image_tokenizer.encoder
            coder.head.bias -= coder(torch.rand(8, 3, 32, 32).double()).mean(dim=(0, 2, 3))
    return model.train()


def simla_batch(model: SimlaForPreTraining, pairs: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pairs in float64; the first text is padded, and the last two pairs share an image's id."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(104, 200, (pairs, length), generator=source)
    ids[:, 0], ids[0, 6:] = 101, 0
    batch = {
        "pixel_values": torch.randn(pairs, 3, 32, 32, generator=source).double(),
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "image_ids": 100 * seed + torch.arange(pairs).clamp(max=max(0, pairs - 2)),
    }
    if model.config.uses_masks:
        index = 1000 * seed + torch.arange(pairs)
        batch |= draw_masks_by_index(model.config, ids, batch["attention_mask"], index)
    return batch
