"""A page of the worst failures: each query, its correct answer, and the wrong answers ranked above it."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.sources import PairDataset
from ...search.encoders import DIRECTIONS, EncodedPairs
from ..rendering.pages import page, thumbnail
from .directions import DirectionResult
from .ranking import Positives, Scores, nearest


THUMBNAIL = 168  # pixels

STYLE = """
section { border-top: 1px solid #8884; padding: .9rem 0; }
.row { display: flex; gap: .8rem; flex-wrap: wrap; align-items: flex-start; }
figure { margin: 0; width: 168px; }
figure.asked { width: 220px; } figure.right { border-left: 3px solid #2a9d5c; padding-left: .7rem; }
figure.above { border-left: 3px solid #c8503c; padding-left: .7rem; }
figcaption { color: #888; font-size: .82em; }
p { margin: .2rem 0; } h2 { margin-top: 2.2rem; }
"""


@dataclass(frozen=True)
class Failure:
    """One query whose best correct answer did not come first.

    Args:
        query: index of the query in its fold.
        rank: expected rank of the best correct answer.
        truth: gallery index of that answer, and `score` its similarity.
        above: (gallery index, similarity) of the wrong entries that score at least as high, best first; as many as
            were asked for.
    """

    query: int
    rank: float
    truth: int
    score: float
    above: list[tuple[int, float]]


def worst_failures(
    direction: DirectionResult,
    query_embeds: torch.Tensor,
    gallery_embeds: torch.Tensor,
    count: int = 20,
    shown: int = 5,
) -> list[Failure]:
    """Find the queries of one gallery with the highest ranks, the highest first; of equal ranks the first query.

    Args:
        direction: of one fold.
        query_embeds, gallery_embeds: (n, D) and (m, D), the embeddings that were ranked.
        count: how many queries at most; those whose correct answer came first, without a tie, are no failures.
        shown: how many wrong entries of each.
    """
    ranks = direction.columns["rank"]
    chosen = np.argsort(-ranks, kind="stable")[:count]
    chosen = torch.from_numpy(chosen[ranks[chosen] > 1])
    if len(chosen) == 0:
        return []
    queries, query_ids = query_embeds[chosen], torch.from_numpy(direction.query_ids)[chosen]
    gallery_ids = torch.from_numpy(direction.gallery_ids)
    row, entry = Positives(query_ids, gallery_ids).lookup(slice(0, len(chosen)))
    positive_scores = Scores(queries, gallery_embeds).pairs(row, entry)
    # Correct answers below the best one can be among the nearest too: at most `shown` entries are wrong and above.
    most_positives = int(torch.bincount(row).max())
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
    """Write the page of failures.

    Args:
        path: the HTML file.
        title: its heading.
        directions: results of both directions, in as many folds as there are parts.
        parts: the encoded data, one for each fold.
        pairs: the data set.
        count: failures of each direction.
    """
    sections = []
    for name in DIRECTIONS:
        found = []
        for fold, part in zip(directions[name].folds(), parts):
            query_embeds, gallery_embeds, *_ = part.side(name)
            found += [(failure, part) for failure in worst_failures(fold, query_embeds, gallery_embeds, count)]
        found = sorted(found, key=lambda pair: -pair[0].rank)[:count]
        sections.append(f"<h2>{name.replace('_', ' ').capitalize()}</h2>")
        sections += [_section(name, failure, part, pairs) for failure, part in found] or ["<p>No failures.</p>"]
    body = (
        f"<p>The {count} worst queries of each direction. Beside each: the best of its correct answers, and what was "
        f"ranked above it. Numbers are cosine similarities.</p>{''.join(sections)}"
    )
    path.write_text(page(title, STYLE, body), encoding="utf-8")


def _section(direction: str, failure: Failure, part: EncodedPairs, pairs: PairDataset) -> str:
    def image(index: int) -> str:
        return thumbnail(pairs, part.rows[index], THUMBNAIL)

    def text(index: int) -> str:
        return f"<p>{html.escape(pairs.caption(part.captions[index]))}</p>"

    show_query, show_entry = (text, image) if direction == "text_to_image" else (image, text)
    cells = [
        _figure("asked", show_query(failure.query), f"asked; the answer came at rank {failure.rank:g}"),
        _figure("right", show_entry(failure.truth), f"right, {failure.score:.3f}"),
        *(_figure("above", show_entry(index), f"above, {score:.3f}") for index, score in failure.above),
    ]
    return f'<section><div class="row">{"".join(cells)}</div></section>'


def _figure(kind: str, content: str, caption: str) -> str:
    return f'<figure class="{kind}">{content}<figcaption>{caption}</figcaption></figure>'
