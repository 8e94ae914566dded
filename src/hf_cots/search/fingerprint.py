"""What of a model its embeddings depend on: weights, config, processor and tokenizer, each as a hash."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..data.hashes import hex_digest
from .encoders import Encoder, LoadedEncoder


# Where a model was loaded from, and by which version, does not change what it computes.
VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "processor_class", "auto_map", "architectures"}


def describe_model(encoder: Encoder) -> dict[str, str]:
    """Hashes of a model's parts, by their names: equal where embeddings are."""
    return {"weights": encoder.fingerprint()} | (encoder.describe() if isinstance(encoder, LoadedEncoder) else {})


def describe_processor(processor: ProcessorMixin) -> dict[str, str]:
    """Hashes of the two parts of a processor."""
    return {
        "image processor": hash_json(processor.image_processor.to_dict()),
        "tokenizer": hash_tokenizer(processor.tokenizer),
    }


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer makes of texts: its vocabulary, its rules, and where it cuts."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.update(padding=None, truncation=None)  # those of the last call
    else:
        rules = tokenizer.get_vocab()
    return hash_json({"class": type(tokenizer).__name__, "longest": tokenizer.model_max_length, "rules": rules})


def hash_json(value: dict[str, Any]) -> str:
    """Hash a config, whatever the order of its fields, without those that do not count."""
    return hex_digest([json.dumps(_without_volatile(value), sort_keys=True, default=str).encode()])


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    return [_without_volatile(item) for item in value] if isinstance(value, (list, tuple)) else value


def different_parts(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The parts in which two models differ."""
    return [part for part in dict.fromkeys([*one, *other]) if one.get(part) != other.get(part)]
