"""From other people's checkpoints to ours; the scripts of `conversion/` are thin over these functions."""

from .image_tokenizers import convert_dalle, convert_flava, read_dalle, to_flava


__all__ = ["convert_dalle", "convert_flava", "read_dalle", "to_flava"]
