"""A page of the worst failures: each query, its correct answer, and the wrong answers ranked above it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.sources import PairDataset
from ...search.encoders import DIRECTIONS, EncodedPairs
from ..rendering.pages import render_page, thumbnail
from .directions import DirectionResult
from .ranking import Positives, Scores, nearest


THUMBNAIL = 168  # pixels


@dataclass(frozen=True)
class Failure:
    """One query whose best correct answer is not ranked first.

    Args:
        query: index of the query in its fold.
        rank: expected rank of the best correct answer.
        truth: gallery index of that answer.
        score: similarity of that answer.
        above: (gallery index, similarity) of wrong entries that score at least as high, best first; at most as many as
            requested.
    """

    query: int
    rank: float
    truth: int
    score: float
    above: list[tuple[int, float]]


def worst_failures(
    direction: DirectionResult,
    query_embeds: np.ndarray,
    gallery_embeds: np.ndarray,
    count: int = 20,
    shown: int = 5,
) -> list[Failure]:
    """Find the queries of one gallery with the worst ranks, the worst first; queries with equal ranks are in order.

    Args:
        direction: result of one fold.
        query_embeds, gallery_embeds: (n, D) and (m, D), the embeddings that were ranked.
        count: maximum number of queries; those whose correct answer is first, without a tie, are not failures.
        shown: maximum number of wrong entries per query.
    """
    ranks = direction.columns["rank"]
    chosen = np.argsort(-ranks, kind="stable")[:count]
    chosen = chosen[ranks[chosen] > 1]
    if len(chosen) == 0:
        return []
    queries, query_ids, gallery_ids = query_embeds[chosen], direction.query_ids[chosen], direction.gallery_ids
    row, entry = Positives(query_ids, gallery_ids).lookup(slice(0, len(chosen)))
    positive_scores = Scores(queries, gallery_embeds).pairs(row, entry)
    # The nearest entries can include all correct answers, so fetch that many more to have `shown` wrong ones.
    most_positives = int(np.bincount(row).max())
    scores, nearby = nearest(queries, gallery_embeds, shown + most_positives)
    failures = []
    for i, query in enumerate(chosen.tolist()):
        own = positive_scores[row == i]
        truth, best = int(entry[row == i][own.argmax()]), float(own.max())
        above = [
            (index, score)
            for index, score in zip(nearby[i].tolist(), scores[i].tolist())
            if score >= best and gallery_ids[index] != query_ids[i]
        ]
        failures.append(Failure(query, float(ranks[query]), truth, best, above[:shown]))
    return failures


def write_failures(
    path: Path,
    title: str,
    directions: dict[str, DirectionResult],
    parts: list[EncodedPairs],
    pairs: PairDataset,
    count: int = 20,
) -> None:
    """Write the HTML page of the worst failures.

    Args:
        path: the HTML file.
        title: heading of the page.
        directions: results of both directions, with as many folds as there are parts.
        parts: the encoded data, one part per fold.
        pairs: the data set.
        count: number of failures per direction.
    """
    failures = {}
    for name in DIRECTIONS:
        found = []
        for fold, part in zip(directions[name].folds(), parts):
            query_embeds, gallery_embeds, *_ = part.side(name)
            found += [(failure, part) for failure in worst_failures(fold, query_embeds, gallery_embeds, count)]
        found = sorted(found, key=lambda pair: -pair[0].rank)[:count]
        failures[name] = [_figures(name, failure, part, pairs) for failure, part in found]
    page = render_page("failures.html", title=title, count=count, directions=failures)
    path.write_text(page, encoding="utf-8")


def _figures(direction: str, failure: Failure, part: EncodedPairs, pairs: PairDataset) -> list[dict[str, Any]]:
    """Collect the query, the correct answer and the wrong ones, each a text or an image, for `failures.html`."""

    def image(index: int) -> dict[str, Any]:
        return {"row": part.rows[index], "image": thumbnail(pairs, part.rows[index], THUMBNAIL)}

    def text(index: int) -> dict[str, Any]:
        return {"text": pairs.caption(part.captions[index])}

    query, entry = (text, image) if direction == "text_to_image" else (image, text)
    return [
        {"kind": "asked", "note": f"asked; the answer came at rank {failure.rank:g}"} | query(failure.query),
        {"kind": "right", "note": f"right, {failure.score:.3f}"} | entry(failure.truth),
        *({"kind": "above", "note": f"above, {score:.3f}"} | entry(index) for index, score in failure.above),
    ]
