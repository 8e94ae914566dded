"""Tiny dual encoders of transformers with random weights, and texts for them."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as t


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = {"vocab_size": 200, "max_position_embeddings": 40, **SIZES}
ENDS = {"bos_token_id": 198, "eos_token_id": 199, "pad_token_id": 1}
SIDE = {**SIZES, "image_size": 32, "patch_size": 8}
CLIP = {"text_config": {**WORDS, **ENDS}, "vision_config": SIDE, "projection_dim": 16}
PLAIN = {"text_config": WORDS, "vision_config": SIDE, "projection_dim": 16}
# The pooling covers the whole map, as with ALIGN's own 2,560.
CONVOLUTIONS = {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.1, "hidden_dim": 2560}


def pair(vision: t.PreTrainedConfig, text: t.PreTrainedConfig) -> t.PreTrainedConfig:
    return t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)


# name: class and config, made anew for each use
DUAL_ENCODERS: dict[str, tuple[type[t.PreTrainedModel], Callable[[], t.PreTrainedConfig]]] = {
    "clip": (t.CLIPModel, lambda: t.CLIPConfig(**CLIP)),
    # Of before transformers 4.31: the end token is the highest id of a text.
    "clip-old": (t.CLIPModel, lambda: t.CLIPConfig(**CLIP | {"text_config": {**WORDS, **ENDS, "eos_token_id": 2}})),
    "chinese-clip": (t.ChineseCLIPModel, lambda: t.ChineseCLIPConfig(**PLAIN)),
    "siglip": (
        t.SiglipModel,
        lambda: t.SiglipConfig(text_config={**WORDS, "projection_size": 32}, vision_config=SIDE),
    ),
    "align": (
        t.AlignModel,
        lambda: t.AlignConfig(text_config=WORDS, vision_config=CONVOLUTIONS, projection_dim=160),
    ),
    "vit-bert": (t.VisionTextDualEncoderModel, lambda: pair(t.ViTConfig(**SIDE), t.BertConfig(**WORDS))),
    "clip-roberta": (
        t.VisionTextDualEncoderModel,
        lambda: pair(t.CLIPVisionConfig(**SIDE), t.RobertaConfig(**WORDS, pad_token_id=1)),
    ),
    "metaclip-2": (t.MetaClip2Model, lambda: t.MetaClip2Config(**CLIP)),
    "altclip": (t.AltCLIPModel, lambda: t.AltCLIPConfig(**CLIP | {"text_config": {**WORDS, "project_dim": 24}})),
}


def make_dual_encoder(name: str) -> t.PreTrainedModel:
    """The model with weights, biases, norms, running statistics and temperature that are all random."""
    cls, make_config = DUAL_ENCODERS[name]
    return randomize(cls(make_config()))


@torch.no_grad()
def randomize(model: t.PreTrainedModel) -> t.PreTrainedModel:
    """Random values for all that a model has, most of which is 0 or 1 at the start, such that inputs matter."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            is_table = "embedding" in name and parameter.ndim == 2
            gain = 8 if parameter.ndim == 4 else 2  # or nothing is left of an image behind ALIGN's gates
            parameter.copy_(noise if is_table else noise * (gain / parameter[0].numel()) ** 0.5)
        else:
            parameter.copy_(0.2 * noise + (1 if name.endswith("weight") else 0))
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=generator)
    if isinstance(model, t.ChineseCLIPModel):  # loading makes this row 0, as no other model's
        model.text_model.embeddings.word_embeddings.weight[0] = 0
    for name, value in (("logit_scale", 3.7), ("temperature", 0.6), ("logit_bias", -3.1)):
        if hasattr(model, name):
            getattr(model, name).fill_(value)
    return model.eval()


def draw_texts(rows: int, words: int, length: int) -> dict[str, torch.Tensor]:
    """Texts of so many words, the last of which is the end token, padded on the right."""
    generator = torch.Generator().manual_seed(words)
    ids = torch.randint(3, 198, (rows, length), generator=generator)
    ids[:, words - 1] = 199
    ids[:, words:] = 1
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < words).long().repeat(rows, 1)}


def draw_images(model: t.PreTrainedModel, rows: int) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(5))


def cache_as_hub(home: Path, name: str) -> Path:
    """A folder that is to hold the files of `org/name` in a hand-made cache of the Hub."""
    cached = home / f"models--org--{name}"
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    return snapshot
