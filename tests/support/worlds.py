"""A tiny data set of colored shapes with captions in every format, and tiny towers that learn it."""

import io
import json
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

from hf_cots import COTSImageProcessor, COTSImageTokenizer, COTSImageTokenizerConfig, COTSModel, COTSProcessor
from hf_cots.training.arguments import to_flags
from tests.support.tiny import QUIET, SIZES, TINY_IMAGE_TOKENIZER


SIDE = 32

COLORS = {
    "red": (220, 30, 30),
    "green": (20, 160, 40),
    "light blue": (120, 180, 255),  # two words: texts differ in length, so that batches are padded
    "yellow": (240, 220, 30),
    "black": (10, 10, 10),
}
SHAPES = ("square", "circle")
POSITIONS = {"left": (2, 9), "right": (18, 9), "top": (9, 2), "bottom": (9, 18)}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4: not BERT's own


def draw(color: str, shape: str, position: str) -> Image.Image:
    """One shape of 12 pixels on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen, (left, top) = ImageDraw.Draw(image), POSITIONS[position]
    paint = pen.rectangle if shape == "square" else pen.ellipse
    paint((left, top, left + 11, top + 11), fill=COLORS[color])
    return image


def noise(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def all_pairs() -> list[tuple[str, Image.Image, str]]:
    """40 pairs: file name, image, caption. No two captions are equal."""
    kinds = [(color, shape, position) for color in COLORS for shape in SHAPES for position in POSITIONS]
    return [(f"p{i:02d}.png", draw(*kind), " ".join(kind)) for i, kind in enumerate(kinds)]


def tiny_tokenizer() -> BertTokenizer:
    """Word pieces: the special tokens, the world's words, the letters."""
    words = sorted({word for _, _, caption in all_pairs() for word in caption.split()} | {"a", "the"})
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *words, *letters]))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=24)


def tiny_processor() -> COTSProcessor:
    """The processor of models of this world."""
    image_processor = COTSImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return COTSProcessor(image_processor, tiny_tokenizer())


def write_images(folder: Path, count: int = 40) -> Path:
    """A new folder of the first images."""
    folder.mkdir()
    for name, image, _ in all_pairs()[:count]:
        image.save(folder / name)
    return folder


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, pairs: list[tuple[str, Image.Image, str]]) -> Path:
    """A file with images in it."""
    rows = {
        "image": [{"bytes": encoded(image), "path": name} for name, image, _ in pairs],
        "caption": [caption for _, _, caption in pairs],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


@dataclass(frozen=True)
class World:
    """Folders and files of the data set below `root`; each is written when it is first asked for."""

    root: Path

    @cached_property
    def imagefolder(self) -> Path:
        folder = write_images(self.root / "images")
        self.write_metadata(folder, [{"file_name": name, "caption": caption} for name, _, caption in all_pairs()])
        return folder

    @staticmethod
    def write_metadata(folder: Path, rows: list[dict]) -> None:
        write_json_lines(folder / "metadata.jsonl", rows)

    @cached_property
    def parquet(self) -> Path:
        return write_parquet(self.root / "pairs.parquet", all_pairs())

    def paths_in(self, suffix: str) -> Path:
        """A CSV, TSV or JSON-lines file beside the image folder, with relative paths."""
        path = self.root / f"pairs{suffix}"
        rows = [(f"{self.imagefolder.name}/{name}", caption) for name, _, caption in all_pairs()]
        if suffix == ".jsonl":
            return write_json_lines(path, [{"image": image, "caption": caption} for image, caption in rows])
        separator = {".csv": ",", ".tsv": "\t"}[suffix]
        path.write_text("".join(separator.join(row) + "\n" for row in [("image", "caption"), *rows]))
        return path

    @cached_property
    def tars(self) -> Path:
        """A folder of two webdataset shards with the columns `png` and `txt`."""
        folder = self.root / "tars"
        folder.mkdir()
        for shard in range(2):
            with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
                for name, image, caption in all_pairs()[20 * shard : 20 * (shard + 1)]:
                    for suffix, data in (("png", encoded(image)), ("txt", caption.encode())):
                        entry = tarfile.TarInfo(f"{Path(name).stem}.{suffix}")
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
        return folder

    def towers(self, dropout: float = 0.0) -> tuple[Path, Path]:
        """Folders of a ViT and of a BERT with its tokenizer, both of random weights."""
        vision, text = self.root / f"vision-{dropout}", self.root / f"text-{dropout}"
        if not vision.is_dir():
            torch.manual_seed(0)

            drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
            ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **SIZES, **drop)).save_pretrained(vision)
            tokenizer = tiny_tokenizer()
            config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **SIZES, **drop)
            BertModel(config).save_pretrained(text)
            tokenizer.save_pretrained(text)
        return vision, text

    @cached_property
    def image_tokenizer(self) -> Path:
        folder = self.root / "dvae"
        torch.manual_seed(1)
        COTSImageTokenizer(tiny_image_tokenizer_config()).save_pretrained(folder)
        return folder

    @cached_property
    def model(self) -> Path:
        """A folder with an untrained COTSModel and its processor."""
        folder = self.root / "model"
        torch.manual_seed(2)
        vision, text = self.towers()
        fields = {"projection_dim": 16, "image_tokenizer_config": tiny_image_tokenizer_config()}
        COTSModel.from_vision_text_pretrained(str(vision), str(text), **fields).save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
        return folder

    def settings(self, output_dir: Path, overrides: dict | None = None, dropout: float = 0.0, **settings) -> dict:
        """Flags of a run on the image folder with all four levels on; `overrides` are fields of the config."""
        vision, text = self.towers(dropout)
        fields = {
            "projection_dim": 16,
            "queue_size": 24,
            "similarity_queue_size": 8,
            "filter_warmup_steps": 1,
            "filter_lambda": 1.0,
            "momentum": 0.9,
        }
        defaults = {
            "vision": vision,
            "text": text,
            "image_tokenizer": self.image_tokenizer,
            "config_overrides": fields | (overrides or {}),
            "train_data": self.imagefolder,
            "output_dir": output_dir,
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "flip": 0,
            "seed": 7,
        }
        defaults |= QUIET
        return {name: value for name, value in (defaults | settings).items() if value is not None}

    def flags(self, output_dir: Path, overrides: dict | None = None, dropout: float = 0.0, **settings) -> list[str]:
        """The same as a command line; a setting of None leaves the flag out."""
        return to_flags(self.settings(output_dir, overrides, dropout, **settings))


def tiny_image_tokenizer_config() -> COTSImageTokenizerConfig:
    """One code per 8 x 8 pixels, as the towers' patches."""
    return COTSImageTokenizerConfig(**TINY_IMAGE_TOKENIZER)


def checkpoint(output_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """All weights, momentum weights and queues of a checkpoint."""
    return load_file(output_dir / f"checkpoint-{step}" / "model.safetensors")


def log_history(output_dir: Path, step: int) -> list[dict]:
    """What was logged up to a checkpoint."""
    state = json.loads((output_dir / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return state["log_history"]


def write_broken_images(folder: Path) -> dict[str, str]:
    """Write broken files; returns their names and that of one that is not there, with what is wrong with each."""
    whole = encoded(draw("red", "circle", "left").resize((200, 200)))
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")
    (folder / "folder.png").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("RGB", (30_000, 40)).save(folder / "strip.png")
    return {
        "truncated.png": "truncated",
        "empty.png": "cannot identify",
        "page.jpg": "cannot identify",
        "bomb.png": "DecompressionBomb",
        "folder.png": "IsADirectoryError",
        "pixel.png": "1 x 1 pixels is too small",
        "strip.png": "30000 x 40 pixels is too small",
        "missing.png": "no such file",
    }
