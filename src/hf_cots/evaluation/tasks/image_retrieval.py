"""Image retrieval by label: each image is a query, and the other images of its label are the correct answers.

The gallery is all other images, another data set, or only the images that differ from the query in some column (such
as drawing style or camera), which is harder and closer to real use. Metrics and ties are as in
[`hf_cots.evaluation.retrieval.metrics`].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.images import BrokenImage
from ...search.encoders import Encoder, encode_rows
from ..retrieval.metrics import TieGroups, concatenate, per_query_metrics, summarize
from ..retrieval.ranking import Scores, group_ties, slices
from .bootstrap import task_metrics
from .labelled_images import LabelledImages


SCORES_AT_ONCE = 1 << 22
METRICS = ("mAP", "R@1", "R@5", "R@10", "MRR")


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings of images, with the labels and groups that define the correct answers.

    Attributes:
        embeds: (n, D) float32, normalized.
        labels: (n) labels; images with the same label are correct answers.
        groups: (n) keys; images with the query's own key are not in its gallery.
        broken: images that could not be read.
    """

    embeds: np.ndarray
    labels: list[str]
    groups: list
    broken: list[BrokenImage]


def encode_labelled(
    encoder: Encoder, data: LabelledImages, across: str | None = None, batch_size: int = 64, progress: bool = False
) -> LabelledEmbeddings:
    """Encode each image once; a file named by several rows is one image, with the label of the first.

    Args:
        across: a column that was loaded with the data; the gallery of a query consists of the images that differ in
            it, or of all other images if None.
    """
    rows = np.unique(data.images.first_rows()).tolist()
    embeds, read, broken = encode_rows(encoder, data.images, rows, batch_size, progress)
    groups = [(data.name, row) if across is None else data.columns[across][row] for row in read]
    return LabelledEmbeddings(embeds, [data.labels[row] for row in read], groups, broken)


@dataclass(frozen=True)
class ImageRetrievalResult:
    """The result of image retrieval by label.

    Attributes:
        columns: (queries,) float64 each, see [`hf_cots.evaluation.retrieval.metrics.per_query_metrics`].
        gallery, positives: (queries,) int64, the size of each query's gallery and the number of correct answers in it.
        queries: (queries,) int64, the image index of each query.
        without_answer: number of images that were skipped as queries, as their gallery had no correct answer.
        broken: images that could not be read.
    """

    columns: dict[str, np.ndarray]
    gallery: np.ndarray
    positives: np.ndarray
    queries: np.ndarray
    without_answer: int
    broken: list[BrokenImage]

    def metrics(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Compute mAP, R@1, R@5, R@10 (hit@K) and MRR in percent."""
        means = summarize({name: values[index] for name, values in self.columns.items()})
        return {name: means[name] for name in METRICS}

    def chance(self) -> dict[str, float]:
        """Compute the metrics of a model that scores all images the same, so that each query's whole gallery ties."""
        count = len(self.queries)
        ties = TieGroups(np.arange(count), np.zeros_like(self.gallery), self.gallery, self.positives)
        means = summarize(per_query_metrics(ties, count))
        return {name: means[name] for name in METRICS}

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types: metrics with intervals, and chance."""
        sizes = {
            "queries": len(self.queries),
            "queries_without_answer": self.without_answer,
            "gallery": int(self.gallery.max()),
        }
        return task_metrics("image_to_image", self.metrics, self.chance(), len(self.queries), sizes)


def evaluate_image_retrieval(
    queries: LabelledEmbeddings, gallery: LabelledEmbeddings | None = None
) -> ImageRetrievalResult:
    """Rank the gallery for each query, a block of queries at a time.

    A query without a correct answer in its gallery (the only image of its label) is skipped and counted.

    Args:
        queries: the query images.
        gallery: the images to search; by default the queries, without those of the query's own group.

    Raises:
        ValueError: if no query has a correct answer, or an embedding is not finite.
    """
    pool = queries if gallery is None else gallery
    labels, pool_labels = _encode_keys(queries.labels, pool.labels)
    groups, pool_groups = _encode_keys(queries.groups, pool.groups)
    scores = Scores(queries.embeds, pool.embeds)
    columns, counts = [], []
    for part in slices(len(labels), max(1, SCORES_AT_ONCE // len(pool_labels))):
        allowed = groups[part, None] != pool_groups[None, :]  # (b, m)
        correct = allowed & (labels[part, None] == pool_labels[None, :])  # (b, m)
        answered = np.flatnonzero(correct.any(axis=1))
        if not len(answered):
            continue
        (_, tile), allowed, correct = next(scores.tiles(part, len(pool_labels))), allowed[answered], correct[answered]
        tile = np.where(allowed, tile[answered], -np.inf)  # (answered, m)
        row, entry = np.nonzero(correct)
        ties = group_ties(row, tile[row, entry], [tile])
        columns.append(per_query_metrics(ties, len(answered)))
        counts.append(np.stack([answered + part.start, allowed.sum(axis=1), correct.sum(axis=1)]))
    if not counts:
        raise ValueError(f"none of {len(labels)} images has another image with its label in its gallery")
    asked, sizes, positives = np.concatenate(counts, axis=1)
    return ImageRetrievalResult(
        columns=concatenate(columns),
        gallery=sizes,
        positives=positives,
        queries=asked,
        without_answer=len(labels) - len(asked),
        broken=queries.broken if gallery is None else queries.broken + gallery.broken,
    )


def _encode_keys(first: list, second: list) -> tuple[np.ndarray, np.ndarray]:
    """Convert the keys of two lists to integers that are equal for equal keys."""
    index: dict = {}
    codes = [np.array([index.setdefault(key, len(index)) for key in keys]) for keys in (first, second)]
    return codes[0], codes[1]
