"""How good a model is."""

from .encoders import DualEncoder, EncodedPairs, Encoder, encode_pairs, load_encoder
from .encoding import encode_images, encode_texts
from .metrics import chance_level, rsum
from .report import build_report, evaluate_encoder
from .retrieval import Direction, evaluate_retrieval, rank_both, rank_direction, retrieval_metrics
from .run import EvaluationRun
from .significance import bootstrap_samples, compare, intervals
from .stored import open_embeddings
from .trainer_metrics import RetrievalMetrics
from .transductive import Rescoring, dual_softmax, querybank


__all__ = [
    "Direction",
    "DualEncoder",
    "EncodedPairs",
    "Encoder",
    "EvaluationRun",
    "Rescoring",
    "RetrievalMetrics",
    "bootstrap_samples",
    "build_report",
    "chance_level",
    "compare",
    "dual_softmax",
    "encode_images",
    "encode_pairs",
    "encode_texts",
    "evaluate_encoder",
    "evaluate_retrieval",
    "intervals",
    "load_encoder",
    "open_embeddings",
    "querybank",
    "rank_both",
    "rank_direction",
    "retrieval_metrics",
    "rsum",
]
