"""How good a model is."""

from .encoding import encode_images, encode_texts
from .retrieval import evaluate_retrieval, retrieval_metrics


__all__ = ["encode_images", "encode_texts", "evaluate_retrieval", "retrieval_metrics"]
