"""Image retrieval: do pictures of one label find each other?

Each picture is a query, the others are the gallery, those of the same label are the correct answers. A gallery of its
own, or one that differs from the query in some column (the drawing style, the camera), makes the task harder and
closer to what is asked for. Metrics and ties are those of `metrics.py`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.images import BrokenImage
from ...search.encoders import Encoder, encode_rows
from ..retrieval.metrics import TieGroups, concatenate, per_query_metrics, summarize
from ..retrieval.ranking import Scores, group_ties, slices
from .bootstrap import bootstrap_intervals
from .labelled_images import LabelledImages


SCORES_AT_ONCE = 1 << 22
SHOWN = ("mAP", "R@1", "R@5", "R@10", "MRR")


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Pictures that were encoded, with what decides who answers whom.

    Attributes:
        embeds: (n, D) float32, normalised.
        labels: (n) labels: equal ones are correct answers.
        groups: (n) keys: a picture is never in the gallery of a query of the same key.
        broken: pictures that could not be read.
    """

    embeds: torch.Tensor
    labels: list[str]
    groups: list
    broken: list[BrokenImage]


def encode_labelled(
    encoder: Encoder, data: LabelledImages, across: str | None = None, batch_size: int = 64, progress: bool = False
) -> LabelledEmbeddings:
    """Encode each picture once; a file that several rows name is one picture, with the label of the first.

    Args:
        across: a column that was loaded with the data: the gallery of a query are the pictures that differ in it. By
            default all others.
    """
    rows = np.unique(data.pictures.first_rows()).tolist()
    embeds, read, broken = encode_rows(encoder, data.pictures, rows, batch_size, progress)
    groups = [(data.name, row) if across is None else data.columns[across][row] for row in read]
    return LabelledEmbeddings(embeds, [data.labels[row] for row in read], groups, broken)


@dataclass(frozen=True)
class ImageRetrieval:
    """What came of an image retrieval.

    Attributes:
        columns: (queries,) float64 each, as [`hf_cots.evaluation.retrieval.metrics.per_query_metrics`] says.
        gallery, positives: (queries,) int64, the size of each query's gallery and its correct answers in it.
        queries: (queries,) int64, which pictures these are.
        without_answer: pictures that were no query, because no correct answer was in their gallery.
        broken: pictures that could not be read.
    """

    columns: dict[str, np.ndarray]
    gallery: np.ndarray
    positives: np.ndarray
    queries: np.ndarray
    without_answer: int
    broken: list[BrokenImage]

    def metrics(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """mAP, R@1, R@5, R@10 (hit@K) and MRR in percent."""
        means = summarize({name: values[index] for name, values in self.columns.items()})
        return {name: means[name] for name in SHOWN}

    def chance(self) -> dict[str, float]:
        """The same for guessing: one great tie for each query."""
        numbers = np.arange(len(self.gallery))
        ties = TieGroups(numbers, np.zeros_like(self.gallery), self.gallery, self.positives)
        means = summarize(per_query_metrics(ties, len(numbers)))
        return {name: means[name] for name in SHOWN}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures with their intervals, chance."""
        sizes = {
            "queries": len(self.queries),
            "queries_without_answer": self.without_answer,
            "gallery": int(self.gallery.max()),
        }
        intervals = bootstrap_intervals(self.metrics, len(self.queries))
        return {
            "image_to_image": self.metrics() | sizes | {"intervals": intervals},
            "chance": {"image_to_image": self.chance()},
        }


def retrieve_images(queries: LabelledEmbeddings, gallery: LabelledEmbeddings | None = None) -> ImageRetrieval:
    """Rank the gallery for each query, a block of queries at a time.

    A query without a correct answer in its gallery (the only picture of its label) is left out and counted.

    Args:
        queries: the pictures to ask with.
        gallery: the pictures to be found. By default the queries themselves, each without those of its own group.

    Raises:
        ValueError: if no query has a correct answer, or an embedding is not finite.
    """
    pool = queries if gallery is None else gallery
    labels, pool_labels = _codes(queries.labels, pool.labels)
    groups, pool_groups = _codes(queries.groups, pool.groups)
    scores = Scores(queries.embeds, pool.embeds)
    parts, asked, sizes, positives = [], [], [], []
    for part in slices(len(labels), max(1, SCORES_AT_ONCE // len(pool_labels))):
        allowed = groups[part, None] != pool_groups[None, :]  # (b, m)
        correct = allowed & (labels[part, None] == pool_labels[None, :])
        answered = correct.any(dim=1).nonzero().flatten()
        if not len(answered):
            continue
        (_, tile), allowed, correct = next(scores.tiles(part, len(pool_labels))), allowed[answered], correct[answered]
        tile = tile[answered].masked_fill(~allowed, -torch.inf)
        row, entry = correct.nonzero(as_tuple=True)
        ties = group_ties(row, tile[row, entry], [tile])
        parts.append(per_query_metrics(ties, len(answered)))
        asked.append(answered.numpy() + part.start)
        sizes.append(allowed.sum(dim=1).numpy())
        positives.append(correct.sum(dim=1).numpy())
    if not parts:
        raise ValueError(f"none of {len(labels)} pictures has another of its label in its gallery")
    numbers = np.concatenate(asked)
    return ImageRetrieval(
        columns=concatenate(parts),
        gallery=np.concatenate(sizes),
        positives=np.concatenate(positives),
        queries=numbers,
        without_answer=len(labels) - len(numbers),
        broken=queries.broken if gallery is None else queries.broken + gallery.broken,
    )


def _codes(first: list, second: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers for keys: equal for equal keys."""
    number: dict = {}
    codes = [torch.tensor([number.setdefault(key, len(number)) for key in keys]) for keys in (first, second)]
    return codes[0], codes[1]
