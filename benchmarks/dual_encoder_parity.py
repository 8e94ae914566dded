"""The difference between a dual encoder and the COTS that is made of it, for the full sizes that people publish.

    python -m benchmarks.dual_encoder_parity
    python -m benchmarks.dual_encoder_parity --only clip-vit-base-patch32 --rows 2

Each architecture is made with its published config, and with random weights, biases, norms and temperature, because
the result shall not depend on what could be downloaded. It is saved, read again by `COTSModel.from_dual_encoder` from
its folder, and saved and read once more; then both encode the same random images and texts of three lengths, padded
to the full length as the architecture's own processor pads them. Recorded are the largest absolute differences of the
normalized embeddings, of the features before normalization in proportion to the largest of them, and of the logits in
proportion to theirs (without SigLIP's bias, which a COTS adds in its loss only). All in float32. The result is kept in
`benchmarks/results/dual_encoder_parity.json`.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

from hf_cots import COTSModel

from .machine import machine


def _base(**fields: Any) -> dict[str, Any]:
    return {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072} | fields


def _pair() -> t.PreTrainedConfig:
    return t.VisionTextDualEncoderConfig.from_vision_text_configs(t.ViTConfig(), t.BertConfig(), projection_dim=512)


# The fields in which the published configs differ from transformers' defaults.
CLIP_TEXT = {"vocab_size": 49_408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
CHINESE_TEXT = {"vocab_size": 21_128, "pad_token_id": 0}
SIGLIP_VISION = _base(image_size=224, patch_size=16)
ALIGN_VISION = {"image_size": 289}
MODELS: dict[str, tuple[type[t.PreTrainedModel], Callable[[], t.PreTrainedConfig]]] = {
    "clip-vit-base-patch32": (
        t.CLIPModel,
        lambda: t.CLIPConfig(text_config=CLIP_TEXT, vision_config=_base(patch_size=32)),
    ),
    "chinese-clip-vit-base-patch16": (
        t.ChineseCLIPModel,
        lambda: t.ChineseCLIPConfig(text_config=CHINESE_TEXT, vision_config=_base(patch_size=16)),
    ),
    "siglip-base-patch16-224": (
        t.SiglipModel,
        lambda: t.SiglipConfig(text_config=_base(vocab_size=32_000), vision_config=SIGLIP_VISION),
    ),
    "siglip2-base-patch16-224": (
        t.SiglipModel,
        lambda: t.SiglipConfig(text_config=_base(vocab_size=256_000), vision_config=SIGLIP_VISION),
    ),
    "align-base": (t.AlignModel, lambda: t.AlignConfig(vision_config=ALIGN_VISION)),
    "vit-base-patch16-224 + bert-base": (t.VisionTextDualEncoderModel, _pair),
}


@torch.no_grad()
def randomize(model: t.PreTrainedModel) -> t.PreTrainedModel:
    """Add noise to all parameters, so that no bias is 0 and no norm 1, and set the temperature and the bias."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 0.02 if parameter.ndim > 1 else 0.1
        parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    for name, value in (("logit_scale", 4.6052), ("temperature", 0.064), ("logit_bias", -12.9)):
        if hasattr(model, name):
            getattr(model, name).fill_(value)
    if any("running" in name for name, _ in model.named_buffers()):
        # Statistics of real activations. ALIGN's images still hardly differ behind its 55 blocks: see `spread`.
        side = model.config.vision_config.image_size
        model.train().vision_model(pixel_values=torch.randn(4, 3, side, side, generator=generator))
    return model.eval()


def draw_inputs(model: t.PreTrainedModel, rows: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Random images, and texts of 5, half of the and all positions, up to 64, padded to their number."""
    generator = torch.Generator().manual_seed(1)
    text, side = model.config.text_config, model.config.vision_config.image_size
    pixels = torch.randn(rows, 3, side, side, generator=generator)
    length = min(64, text.max_position_embeddings)
    texts = []
    for words in (5, length // 2, length):
        ids = torch.randint(3, text.vocab_size - 1, (rows, length), generator=generator)
        ids[:, words - 1] = text.vocab_size - 1  # CLIP's end token
        ids[:, words:] = text.pad_token_id or 0
        texts.append({"input_ids": ids, "attention_mask": (torch.arange(length) < words).long().repeat(rows, 1)})
    return pixels, texts


@torch.no_grad()
def encode(model: Any, pixels: torch.Tensor, texts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Embeddings, features before normalization, and logits."""
    output = model(pixel_values=pixels, **texts)
    return {
        "image_embeddings": output.image_embeds,
        "text_embeddings": output.text_embeds,
        "image_features": model.get_image_features(pixel_values=pixels).pooler_output,
        "text_features": model.get_text_features(**texts).pooler_output,
        "logits": output.logits_per_image,
    }


def compare(name: str, rows: int) -> dict[str, Any]:
    """The largest differences of one architecture."""
    cls, make_config = MODELS[name]
    torch.manual_seed(0)
    source = randomize(cls(make_config()))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(f"{folder}/source")
        COTSModel.from_dual_encoder(f"{folder}/source", mvm_weight=0, mlm_weight=0).save_pretrained(f"{folder}/cots")
        ours = COTSModel.from_pretrained(f"{folder}/cots").eval()
    seconds = time.perf_counter() - begun
    bias = source.logit_bias.item() if hasattr(source, "logit_bias") else 0.0
    pixels, texts = draw_inputs(source, rows)
    worst: dict[str, float] = {}
    for text in texts:
        attended = ours.config.text_padding == "attended"  # the source's processor gives no mask
        wanted = encode(source, pixels, {"input_ids": text["input_ids"]} if attended else text)
        wanted["logits"] = wanted["logits"] - bias
        for part, rows_found in encode(ours, pixels, text).items():
            scale = 1.0 if part.endswith("embeddings") else wanted[part].abs().max().item()
            worst[part] = max(worst.get(part, 0.0), (rows_found - wanted[part]).abs().max().item() / scale)
    config = ours.config
    fields = (
        "image_pooling",
        "text_pooling",
        "text_padding",
        "image_projection",
        "text_projection",
        "projection_bias",
    )
    return {
        "parameters": source.num_parameters(),
        "largest_difference": worst,
        "spread": {  # of the embeddings between rows: the inputs matter
            part: wanted[part].std(dim=0).max().item() for part in ("image_embeddings", "text_embeddings")
        },
        "config": {field: getattr(config, field) for field in fields},
        "seconds_to_save_convert_and_load": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", type=int, default=3, help="images, and texts of each length")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "dual_encoder_parity.json")
    arguments = parser.parse_args()
    t.logging.disable_progress_bar()
    result = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    result |= {"what": "dual encoders with random weights against COTSModel.from_dual_encoder, float32"}
    print(f"{'':34}{'images':>10}{'texts':>10}{'logits':>10}")
    for name in arguments.only:
        found = compare(name, arguments.rows) | {"rows": arguments.rows}
        result["models"] = result.get("models", {}) | {name: found}
        parts = (found["largest_difference"][part] for part in ("image_embeddings", "text_embeddings", "logits"))
        print(f"{name:34}" + "".join(f"{difference:10.1e}" for difference in parts), flush=True)
        result["machine"] = machine()
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
        gc.collect()


if __name__ == "__main__":
    main()
