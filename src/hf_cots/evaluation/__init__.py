"""How good a model is."""

from .encoders import DualEncoder, EncodedPairs, Encoder, encode_pairs, load_encoder
from .encoding import encode_images, encode_texts
from .retrieval import evaluate_retrieval, retrieval_metrics


__all__ = [
    "DualEncoder",
    "EncodedPairs",
    "Encoder",
    "encode_images",
    "encode_pairs",
    "encode_texts",
    "evaluate_retrieval",
    "load_encoder",
    "retrieval_metrics",
]
