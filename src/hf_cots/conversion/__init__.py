"""From other people's checkpoints to ours; the scripts of `conversion/` are thin over these functions."""

from .simla import convert_simla, read_simla, simla_tokenizer, to_simla


__all__ = ["convert_simla", "read_simla", "simla_tokenizer", "to_simla"]
