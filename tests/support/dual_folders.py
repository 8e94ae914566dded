"""Folders of other dual encoders as they lie on the Hub: random weights, and processors in the forms of real ones."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from tests.support.tiny import SIZES
from tests.support.worlds import SIDE


CLIP_STATISTICS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
VISION = SIZES | {"image_size": SIDE, "patch_size": 8}
WORDS = ("a", "the", "red", "green", "light", "blue", "yellow", "black", "square", "circle", "left", "right", "top")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
TEXTS = (
    "",
    "a red square",
    "A RED Circle, on the LEFT!",
    "the light blue circle " * 40,
    "caf\u00e9 na\u00efve \u00dcber",
    "\u72ac\u304c\u8d70\u308b \u4e2d\u56fd",
    "\U0001f436 dog\tand\n cat",
    "  spaces   around ",
)


def write_json(path: Path, fields: dict) -> None:
    path.write_text(json.dumps(fields, indent=2))


# ---------------------------------------------------------------------- tokenizers


def write_clip_tokenizer(folder: Path, length: int = 20) -> int:
    """CLIP's byte-level BPE with a few merges of its own; returns the size of the vocabulary."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, pieces = [], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if f"{parts[0]} {parts[1]}" not in merges:
                merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            pieces.append(parts[0])
    tokens = [*letters, *(letter + "</w>" for letter in letters), *pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges], model_max_length=length
    ).save_pretrained(folder)
    return len(vocabulary)


def write_bert_tokenizer(folder: Path, length: int | None = None) -> int:
    """BERT's word pieces, letters and two Chinese characters among them; returns the size of the vocabulary."""
    pieces = [prefix + letter for letter in LETTERS for prefix in ("", "##")]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces, "\u4e2d", "\u56fd"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    options = {} if length is None else {"model_max_length": length}
    BertTokenizer(vocab=vocabulary, do_lower_case=True, **options).save_pretrained(folder)
    return len(vocabulary)


def write_unigram_tokenizer(folder: Path, length: int = 16) -> int:
    """A lower-casing Unigram tokenizer with an end token and without an attention mask, as those of SigLIP; returns
    the size of the vocabulary."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -4.0)]
    pieces += [(f"\u2581{word}", -3.0 - i / 10) for i, word in enumerate(WORDS)]
    pieces += [(letter, -6.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "padding_side": "right"}
    fields |= {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_input_names": ["input_ids"]}
    write_json(folder / "tokenizer_config.json", fields | {"processor_class": "SiglipProcessor"})
    return len(pieces)


# ---------------------------------------------------------------------- whole folders


def write_clip(folder: Path, **text) -> Path:
    """With the image processor's file in the form of 2021, as openai/clip-vit-base-patch32 has it."""
    folder.mkdir(parents=True)
    words = write_clip_tokenizer(folder)
    start, end = words - 2, words - 1
    text = SIZES | {"vocab_size": words, "max_position_embeddings": 20} | text
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)).save_pretrained(folder)
    fields = {"feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True, "crop_size": SIDE}
    fields |= {"do_resize": True, "size": SIDE, "resample": 3, "do_normalize": True}
    write_json(folder / "preprocessor_config.json", fields | CLIP_STATISTICS)
    return folder


def write_siglip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    words = write_unigram_tokenizer(folder)
    text = SIZES | {"vocab_size": words, "max_position_embeddings": 16, "projection_size": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    fields = {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"}
    fields |= {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_rescale": True}
    fields |= {"rescale_factor": 0.00392156862745098, "do_normalize": True, "do_convert_rgb": None}
    write_json(folder / "preprocessor_config.json", fields | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    return folder


def write_chinese_clip(folder: Path) -> Path:
    """With a square `size` and no crop, as OFA-Sys/chinese-clip-vit-base-patch16 has it."""
    folder.mkdir(parents=True)
    words = write_bert_tokenizer(folder)
    text = SIZES | {"vocab_size": words, "max_position_embeddings": 24, "pad_token_id": 0}
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    ChineseCLIPModel(config).save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    fields = {"feature_extractor_type": "ChineseCLIPFeatureExtractor", "do_center_crop": False, "crop_size": square}
    fields |= {"do_resize": True, "size": square, "resample": 3, "do_normalize": True, "do_convert_rgb": True}
    write_json(folder / "preprocessor_config.json", fields | CLIP_STATISTICS)
    return folder


def write_align(folder: Path) -> Path:
    """With pixels in [-1, 1] by an offset, of images that are resized and then cropped, as kakaobrain/align-base."""
    folder.mkdir(parents=True)
    words = write_bert_tokenizer(folder)
    text = SIZES | {"vocab_size": words, "max_position_embeddings": 80, "pad_token_id": 0}
    vision = {"image_size": SIDE, "kernel_sizes": [3, 5], "in_channels": [32, 16], "out_channels": [16, 30]}
    vision |= {"strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 6], "hidden_dim": 64}
    vision |= {"depthwise_padding": [], "squeeze_expansion_ratio": 0.25}
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=64)
    AlignModel(config).save_pretrained(folder)
    fields = {"image_processor_type": "EfficientNetImageProcessor", "processor_class": "AlignProcessor"}
    fields |= {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_normalize": False}
    fields |= {"size": {"height": 38, "width": 38}, "resample": 2, "rescale_factor": 0.00784313725490196}
    fields |= {"rescale_offset": True, "include_top": False, "do_rescale": True, "do_resize": True}
    fields |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    write_json(folder / "preprocessor_config.json", fields)
    return folder


def write_vision_text(folder: Path) -> Path:
    """A ViT and a BERT, with the ViT's image processor, which converts no mode."""
    folder.mkdir(parents=True)
    words = write_bert_tokenizer(folder, length=24)
    vision = ViTModel(ViTConfig(**VISION), add_pooling_layer=True)
    text = BertModel(BertConfig(vocab_size=words, max_position_embeddings=24, **SIZES))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, text.config, projection_dim=16)
    VisionTextDualEncoderModel(config, vision_model=vision, text_model=text).save_pretrained(folder)
    fields = {"image_processor_type": "ViTImageProcessor", "processor_class": "VisionTextDualEncoderProcessor"}
    fields |= {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_normalize": True}
    write_json(folder / "preprocessor_config.json", fields | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    return folder


def write_sentence_clip(folder: Path) -> Path:
    """A CLIP in a folder below, as sentence-transformers/clip-ViT-B-32."""
    write_clip(folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    write_json(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    return folder


DUAL_ENCODERS = {
    "clip": write_clip,
    "siglip": write_siglip,
    "chinese-clip": write_chinese_clip,
    "align": write_align,
    "vision-text": write_vision_text,
    "sentence-clip": write_sentence_clip,
}


def cache_on_hub(folder: Path, name: str, cache: Path) -> str:
    """Put a folder's files into a Hub cache made by hand, under a name such as "org/clip", which is returned."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("b" * 40)
    (place / "snapshots").mkdir()
    (place / "snapshots" / ("b" * 40)).symlink_to(folder.resolve(), target_is_directory=True)
    return name


# ---------------------------------------------------------------------- images


def many_images() -> list[Image.Image]:
    """Opaque RGB images: landscape, portrait, odd, tiny, narrow, of the very size."""
    rng = np.random.default_rng(0)
    sizes = ((64, 48), (48, 64), (33, 57), (101, 40), (5, 7), (1, 9), (SIDE, SIDE), (200, 31), (31, 33))
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
