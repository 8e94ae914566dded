"""Hashes of the parts of a model that its embeddings depend on: weights, config, processor and tokenizer."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..data.hashes import hex_digest
from .encoders import Encoder, LoadedEncoder


# The location and version that a model was loaded from do not change what it computes.
VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "processor_class", "auto_map", "architectures"}


def describe_model(encoder: Encoder) -> dict[str, str]:
    """Return the hashes of a model's parts by name. Models with equal hashes have equal embeddings."""
    return {"weights": encoder.fingerprint()} | (encoder.describe() if isinstance(encoder, LoadedEncoder) else {})


def describe_processor(processor: ProcessorMixin) -> dict[str, str]:
    """Return the hashes of a processor's image processor and tokenizer."""
    return {
        "image processor": hash_json(processor.image_processor.to_dict()),
        "tokenizer": hash_tokenizer(processor.tokenizer),
    }


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer's output depends on: its vocabulary, its rules and its maximum length."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.update(padding=None, truncation=None)  # left over from the last call
    else:
        rules = tokenizer.get_vocab()
    return hash_json({"class": type(tokenizer).__name__, "longest": tokenizer.model_max_length, "rules": rules})


def hash_json(value: dict[str, Any]) -> str:
    """Hash a config, independent of the order of its fields and without the [`VOLATILE`] ones."""
    return hex_digest([json.dumps(_without_volatile(value), sort_keys=True, default=str).encode()])


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    return [_without_volatile(item) for item in value] if isinstance(value, (list, tuple)) else value


def different_parts(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of the parts in which two models differ."""
    return [part for part in dict.fromkeys([*one, *other]) if one.get(part) != other.get(part)]
