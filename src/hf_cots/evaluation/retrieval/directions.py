"""Image-text retrieval in both directions, with R@K as papers define it: hit@K in percent.

A query is a hit at K if *any* of its correct answers is among the first K. Ties are broken fairly, scores are exact,
and memory does not grow with queries x gallery: see `metrics.py` and `ranking.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from ...data.sources import PairDataset
from ...search.encoders import DIRECTIONS, EncodedPairs, encode_pairs
from ...search.processes import gather_objects, processes
from .metrics import chance_level, concatenate, summarize
from .protocols import mean_of_folds
from .ranking import BLOCK, as_array, rank_queries
from .transductive import Rescoring


@dataclass(frozen=True)
class DirectionResult:
    """Per-query results of one direction of a data set.

    Args:
        columns: (n,) float64 each, from [`hf_cots.evaluation.retrieval.metrics.per_query_metrics`].
        query_ids: (n,) int64, the image id of each query: queries with equal ids are resampled together.
        gallery_ids: (m,) int64.
        query_folds, gallery_folds: (n,) and (m,) int64, ascending from 0. A query is ranked against the gallery of its
            own fold only.
    """

    columns: dict[str, np.ndarray]
    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_folds: np.ndarray
    gallery_folds: np.ndarray

    @classmethod
    def from_single_gallery(
        cls, columns: dict[str, np.ndarray], query_ids: np.ndarray, gallery_ids: np.ndarray
    ) -> "DirectionResult":
        """Create the result of a direction without folds."""
        return cls(columns, query_ids, gallery_ids, np.zeros_like(query_ids), np.zeros_like(gallery_ids))

    @classmethod
    def from_folds(cls, parts: Sequence["DirectionResult"]) -> "DirectionResult":
        """Concatenate results of one gallery each, as the folds of one direction."""
        return cls(
            concatenate(part.columns for part in parts),
            np.concatenate([part.query_ids for part in parts]),
            np.concatenate([part.gallery_ids for part in parts]),
            np.concatenate([part.query_folds + fold for fold, part in enumerate(parts)]),
            np.concatenate([part.gallery_folds + fold for fold, part in enumerate(parts)]),
        )

    def folds(self) -> list["DirectionResult"]:
        """Split into the results of each fold: the inverse of `from_folds`."""
        parts = []
        for fold in range(int(self.query_folds[-1]) + 1):
            queries, gallery = self.query_folds == fold, self.gallery_folds == fold
            columns = {name: column[queries] for name, column in self.columns.items()}
            parts.append(self.from_single_gallery(columns, self.query_ids[queries], self.gallery_ids[gallery]))
        return parts

    def metrics(self) -> dict[str, float]:
        """Compute all metrics over the queries; with folds, their mean.

        Returns:
            `R@1`, `R@5`, `R@10` (hit@K), `MRR`, `nDCG@10`, `mAP` and `fractional_R@K` (the fraction of a query's
            correct answers among the first K) in percent; `median_rank` and `mean_rank` of the first correct answer,
            expected ranks under ties, from 1; `queries`, `gallery`.
        """
        return self._with_sizes([summarize(part.columns) for part in self.folds()])

    def chance(self) -> dict[str, float]:
        """Compute the same metrics for guessing."""
        levels = []
        for part in self.folds():
            ids, counts = np.unique(part.gallery_ids, return_counts=True)
            positives = counts[np.searchsorted(ids, part.query_ids)]
            levels.append(chance_level(len(part.query_ids), len(part.gallery_ids), positives))
        return self._with_sizes(levels)

    def _with_sizes(self, folds: list[dict[str, float]]) -> dict[str, float]:
        """Average metrics over folds, and add the total number of queries and the size of a fold's gallery."""
        gallery = round(len(self.gallery_ids) / len(folds))
        return mean_of_folds(folds) | {"queries": len(self.query_ids), "gallery": gallery}


def rank_direction(
    query_embeds: np.ndarray,
    gallery_embeds: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    block: int = BLOCK,
    rescoring: Rescoring | None = None,
    split_queries: bool = False,
) -> DirectionResult:
    """Rank the gallery for every query.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings, in memory or memory-mapped.
        query_ids, gallery_ids: (n,) and (m,) int64; equal ids belong together.
        block: queries compared at a time.
        rescoring: a transductive re-scoring of these queries and this gallery.
        split_queries: divide the queries among the processes of torchrun or accelerate. Each of them must call, with
            the same arguments, and each gets the complete result, bit for bit that of one process.

    Raises:
        ValueError: see [`rank_queries`].
    """
    state = processes() if split_queries else None
    shard = (state.process_index, state.num_processes) if state else (0, 1)
    bias, biased = (rescoring.bias, rescoring.biased) if rescoring else (None, None)
    columns = rank_queries(query_embeds, gallery_embeds, query_ids, gallery_ids, block, bias, biased, shard)
    if state and state.num_processes > 1:
        columns = concatenate(gather_objects([columns]))
    return DirectionResult.from_single_gallery(columns, as_array(query_ids), as_array(gallery_ids))


def rank_both(
    encoded: EncodedPairs, rescoring: dict[str, Rescoring] | None = None, split_queries: bool = False
) -> dict[str, DirectionResult]:
    """Rank both directions of an encoded data set; arguments as for [`rank_direction`], the rescoring by direction."""
    return {
        name: rank_direction(
            *encoded.side(name), rescoring=rescoring[name] if rescoring else None, split_queries=split_queries
        )
        for name in DIRECTIONS
    }


def evaluate_retrieval(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pairs: PairDataset,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluate retrieval in both directions on a data set: all its images against all its captions.

    A file that occurs in several rows, with one caption each, is one image. Images that cannot be read are skipped
    with their captions, with a warning.

    Args:
        model, processor: a dual encoder in evaluation mode and its processor.
        pairs: the data. A caption's correct answers are the images with the same image id, and vice versa.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Returns:
        `{"text_to_image": ..., "image_to_text": ...}`, each as [`DirectionResult.metrics`].

    Example:
        >>> from transformers import AutoModel, AutoProcessor
        >>> from hf_cots.data.sources import load_pairs
        >>> model = AutoModel.from_pretrained("runs/demo/model").eval()  # doctest: +SKIP
        >>> processor = AutoProcessor.from_pretrained("runs/demo/model")  # doctest: +SKIP
        >>> pairs = load_pairs("my_test_pairs/")  # doctest: +SKIP
        >>> evaluate_retrieval(model, processor, pairs)["text_to_image"]["R@1"]  # doctest: +SKIP
        51.7
    """
    from ...search.torch_encoders import DualEncoder

    encoded = encode_pairs(DualEncoder(model, processor), pairs, batch_size, progress)
    return {name: direction.metrics() for name, direction in rank_both(encoded).items()}
