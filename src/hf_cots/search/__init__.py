"""What a user does with a model: find pictures by words or by another picture, in one step or in two."""

from .index import Match, PictureIndex
from .rerank import Reranker, load_judge
from .reranked import RerankedIndex
from .two_step import Depth, Fusion, depth_within


__all__ = ["Depth", "Fusion", "Match", "PictureIndex", "RerankedIndex", "Reranker", "depth_within", "load_judge"]
