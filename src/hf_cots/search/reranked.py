"""Search images and clips in two stages: an index proposes candidates, and SIMLA re-ranks them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import read_image
from ..models import COTSProcessor, SimlaModel
from .base import BaseIndex, Match, check_k
from .clips import digest_source, read_moment
from .fusion import CandidateBudget, Fusion, rerank_order
from .loading import load_reranker
from .rerank import Reranker


class RerankedIndex:
    """An index whose best matches are re-ranked. A clip is re-ranked by its frame at the match's moment.

    Keys and values of re-ranked images are cached, for an index on disk by the contents of their files: a changed file
    is encoded again, a renamed one is not.

    Args:
        index: the first stage.
        model, processor: SIMLA in evaluation mode, and its processor; see [`load_reranker`].
        fusion: how the two scores are combined; by default only the re-ranker's counts.
        budget: how many candidates are re-ranked; by default the best 64.
        cache_bytes: memory for cached keys and values.
    """

    def __init__(
        self,
        index: BaseIndex,
        model: SimlaModel,
        processor: COTSProcessor,
        fusion: Fusion | None = None,
        budget: CandidateBudget | None = None,
        cache_bytes: int = 2 << 30,
    ):
        self.index, self.fusion, self.budget = index, fusion or Fusion(), budget or CandidateBudget(64)
        # Path, hash and moment of each candidate so far. Images of an index on disk are too many to list, and change.
        self._met: list[tuple[Path, str | None, float | None]] = []
        # Candidate numbers by the hash of the bytes (or the path, if there is no hash) and the moment of a clip.
        self._numbers: dict[tuple[str | Path, float | None], int] = {}
        self.reranker = Reranker(model, processor, self._read, cache_bytes)

    @classmethod
    def from_index(cls, index: BaseIndex, reranker: str, **options) -> "RerankedIndex":
        """Load the SIMLA model by Hub id or folder; options and errors as for the class and [`load_reranker`]."""
        return cls(index, *load_reranker(reranker), **options)

    def _number(self, match: Match) -> int:
        number = self._numbers.setdefault((match.digest or match.path, match.moment), len(self._met))
        self._met[number : number + 1] = [(match.path, match.digest, match.moment)]  # the path may have changed
        return number

    def _read(self, number: int) -> Image.Image:
        path, digest, moment = self._met[number]
        if digest is None:
            return self.index.read_image(path, moment)
        source = self.index.read_bytes(path) if moment is None else self.index.find_source(path)
        if digest_source(source) != digest:  # changed since it was indexed: not to be cached under the old hash
            self._numbers.pop((digest, moment), None)
        return read_image(source, str(path)) if moment is None else read_moment(source, moment, str(path))

    def search(self, text: str, k: int = 10, **options) -> list[Match]:
        """Find the k best files for a text. Re-ranked matches come first, with their fused scores; the others follow
        with their similarities.

        Args:
            text: the query, which must be a text.
            k: number of matches; a smaller index returns fewer.
            options: options of the first stage, such as `where` of a [`DiskIndex`].

        Raises:
            ValueError: as for [`BaseIndex.search`]; if the query is not a text; or if a logit is not finite.


            BrokenImage: if the file of a candidate can no longer be read.
        """
        check_k(k)
        if not isinstance(text, str):
            raise ValueError(f"re-ranking needs a text as the query, not {type(text).__name__}")
        return self.rerank(text, self.index.search(text, max(k, self.budget.max_candidates), **options), k)

    def rerank(self, text: str, found: list[Match], k: int) -> list[Match]:
        """Re-rank the matches of the first stage, given best first; errors as for [`search`]."""
        similarities = np.array(
            [match.score if match.similarity is None else match.similarity for match in found], dtype=np.float64
        )
        count = int(self.budget.num_candidates(similarities[None])[0])
        images = np.array([self._number(match) for match in found[:count]], dtype=np.int64)
        logits = self.reranker.score([text], np.zeros_like(images), images)
        broken = [match.path for match, finite in zip(found, np.isfinite(logits)) if not finite]
        if broken:
            raise ValueError(f"the re-ranker's scores are not finite for {len(broken)} images, such as {broken[0]}")
        fused = self.fusion(similarities[:count], logits)
        matches = [replace(match, score=float(score)) for match, score in zip(found, fused)] + found[count:]
        return [matches[i] for i in rerank_order(np.concatenate([fused, similarities[count:]]), count)[:k]]
