"""The smallest COOKIE that shows everything the tests ask for, and batches for it."""

import torch

from hf_cots import CookieConfig, CookieForPreTraining
from tests.support.tiny import tiny_config


def tiny_cookie_config(**fields) -> CookieConfig:
    """The towers of [`tiny_config`] and two shared layers of width 16; dropout there only."""
    towers = tiny_config()
    defaults = {
        "vision_config": towers.vision_config,
        "text_config": towers.text_config,
        "projection_dim": 16,
        "num_shared_heads": 2,
        "shared_intermediate_size": 32,
    }
    return CookieConfig(**(defaults | fields))


def tiny_cookie(**fields) -> CookieForPreTraining:
    """In float64, with weights large enough to matter; in training mode."""
    torch.manual_seed(0)
    model = CookieForPreTraining(tiny_cookie_config(**fields)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("log_temperature"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def cookie_batch(pairs: int = 6, seed: int = 0, captions: int = 2) -> dict[str, torch.Tensor]:
    """Random views in float64; texts of several lengths, and the last `captions` pairs of one image."""
    source = torch.Generator().manual_seed(seed)
    batch: dict[str, torch.Tensor] = {
        "image_ids": 100 * seed + torch.arange(pairs).clamp(max=max(0, pairs - captions))
    }
    for view, length in (("", 9), ("view_", 7)):
        ids = torch.randint(104, 200, (pairs, length), generator=source)
        ids[:, 0], ids[:1, 5:] = 101, 0
        batch |= {f"{view}input_ids": ids, f"{view}attention_mask": (ids != 0).long()}
        batch[f"{view}pixel_values"] = torch.randn(pairs, 3, 32, 32, generator=source).double()
    return batch
