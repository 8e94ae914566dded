"""From other people's checkpoints to ours; the scripts of `conversion/` are thin over these functions."""

from .image_tokenizers import convert_dalle, convert_flava, read_dalle, to_flava
from .simla import convert_simla, read_simla, simla_tokenizer, to_simla


__all__ = [
    "convert_dalle",
    "convert_flava",
    "convert_simla",
    "read_dalle",
    "read_simla",
    "simla_tokenizer",
    "to_flava",
    "to_simla",
]
