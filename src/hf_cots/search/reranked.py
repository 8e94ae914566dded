"""Search a folder of pictures in two steps: the index proposes, SIMLA puts what it proposes in order."""

import torch

from ..data.images import read_image
from ..models import COTSProcessor, SimlaModel
from .fusion import CandidateBudget, Fusion, order_of
from .index import ImageIndex, Match
from .rerank import Reranker, load_reranker


class RerankedIndex:
    """A [`ImageIndex`] and a judge of its answers. Keys and values of pictures that were judged once are kept.

    Args:
        index: the first step.
        model, processor: SIMLA in evaluation mode, and its processor.
        fusion: how both scores become one; the judge's alone by default.
        depth: how many candidates are judged; the best 64 by default.
        cache_bytes: memory for keys and values.
    """

    def __init__(
        self,
        index: ImageIndex,
        model: SimlaModel,
        processor: COTSProcessor,
        fusion: Fusion | None = None,
        depth: CandidateBudget | None = None,
        cache_bytes: int = 2 << 30,
    ):
        self.index, self.fusion, self.depth = index, fusion or Fusion(), depth or CandidateBudget(64)
        self.number = {path: number for number, path in enumerate(index.paths)}
        self.reranker = Reranker(model, processor, lambda number: read_image(index.paths[number]), cache_bytes)

    @classmethod
    def from_index(cls, index: ImageIndex, judge: str, **options) -> "RerankedIndex":
        """With a SIMLA by Hub id or folder; options and errors as for the class and [`load_reranker`]."""
        return cls(index, *load_reranker(judge), **options)

    def search(self, text: str, k: int = 10) -> list[Match]:
        """The k best files for a text. Judged ones come first, with their fused scores; whatever was not judged comes
        behind with its similarity.

        Raises:
            ValueError: as [`ImageIndex.search`].
        """
        proposed = self.index.search(text, max(k, self.depth.most))
        similarities = torch.tensor([match.score for match in proposed], dtype=torch.float64)
        depth = int(self.depth.of(similarities[None])[0])
        numbers = torch.tensor([self.number[match.path] for match in proposed[:depth]], dtype=torch.long)
        logits = self.reranker.score([text], torch.zeros_like(numbers), numbers)
        fused = self.fusion(similarities[:depth], logits)
        answers = [Match(match.path, float(score)) for match, score in zip(proposed, fused)] + proposed[depth:]
        return [answers[place] for place in order_of(torch.cat([fused, similarities[depth:]]), depth)[:k]]
