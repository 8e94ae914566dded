"""An untrained CLIP of transformers for the tests' world, or a model that is built alike."""

from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from tests.support.tiny import SIZES
from tests.support.worlds import SIDE, tiny_tokenizer


VISION = SIZES | {"image_size": SIDE, "patch_size": 8}
SCALE = {"height": SIDE, "width": SIDE}


def text_fields(tokenizer):
    return SIZES | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }


def make_clip(folder, config_class=CLIPConfig, model_class=CLIPModel, processor_class=CLIPProcessor):
    tokenizer = tiny_tokenizer()
    config = config_class(text_config=text_fields(tokenizer), vision_config=VISION, projection_dim=16)
    model_class(config).save_pretrained(folder)
    processor_class(CLIPImageProcessor(size=SCALE, crop_size=SCALE), tokenizer).save_pretrained(folder)
