"""The smallest models and data that show everything the tests ask for."""

import torch
from transformers import BertConfig, ViTConfig

from hf_cots import COTSConfig


QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}  # of a run


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = {"vocab_size": 200, "max_position_embeddings": 40}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# 64 codes, one per 8 x 8 pixels
TINY_IMAGE_TOKENIZER = {"image_size": 32, "codebook_size": 64, "hidden_size": 8, "decoder_input_size": 8}
TINY_IMAGE_TOKENIZER["blocks_per_group"] = 1


def tiny_config(**fields) -> COTSConfig:
    """A COTS of two layers a stream, 4 x 4 patches, 64 codes, without dropout; any field can be overridden."""
    defaults = {
        "vision_config": ViTConfig(image_size=32, patch_size=8, **SIZES),
        "text_config": BertConfig(**WORDS, **SIZES | {"hidden_size": 24, "intermediate_size": 48}, **NO_DROPOUT),
        "image_tokenizer_config": TINY_IMAGE_TOKENIZER,
        "projection_dim": 16,
        "queue_size": 32,
        "similarity_queue_size": 16,
        "filter_warmup_steps": 0,
    }
    return COTSConfig(**(defaults | fields))


def tiny_batch(pairs: int = 8, length: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pixels and texts ([CLS] words [SEP]) for [`tiny_config`]."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(104, 200, (pairs, length), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 101, 102
    return {
        "pixel_values": torch.randn(pairs, 3, 32, 32, generator=generator),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
    }
