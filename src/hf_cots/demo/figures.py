"""The demo's figures: doubtful pairs, and search results beside their queries."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from ..data.sources import PairDataset
from ..evaluation.diagnostics.audit import Audit, suspects
from ..evaluation.rendering.figures import Figure  # its import error says what to install
from ..evaluation.rendering.training_curves import DPI, INK, LINES, PALE, style_axis
from ..search.base import Match


GREEN = "#6cbd8f"
SUSPECTS = 12


@dataclass(frozen=True)
class Answer:
    """A query (a text or an image file) with its best matches, and which of them are right."""

    query: str | Path
    matches: list[Match]
    right: list[bool]

    def title(self, names: dict[str, str]) -> str:
        """Return the text of the query, or the name of its image, given the names of all files."""
        return f"image: {names[self.query.name]}" if isinstance(self.query, Path) else self.query


# ---------------------------------------------------------------------- layout in inches


class Canvas:
    """A white page on which images and texts are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axis(self, left: float, top: float, width: float, height: float) -> Any:
        """Add axes with this upper left corner and size."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, size: float, color: str = INK, **options: Any) -> None:
        """Draw a text with its upper left corner, or the anchor given by `ha` and `va`, at this position."""
        options = {"ha": "left", "va": "top"} | options
        self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, color=color, **options)

    def image(self, left: float, top: float, side: float, image: Image.Image, frame: str | None = None) -> None:
        """Draw a square image, with a thin frame in the color `frame` if it is given."""
        axis = self.axis(left, top, side, side)
        axis.imshow(image, interpolation="lanczos", extent=(0.07, 0.93, 0.07, 0.93))
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_axis_off()
        if frame is not None:
            box = FancyBboxPatch(
                (0, 0), 1, 1, "round,pad=0,rounding_size=0.1", facecolor="none", edgecolor=frame, linewidth=1.1
            )
            box.set_clip_on(False)
            axis.add_patch(box)

    def save(self, path: Path) -> None:
        self.figure.savefig(path, dpi=DPI)


def draw_suspects(audit: Audit, pairs: PairDataset, path: Path) -> None:
    """Draw a histogram of the scores of all pairs with the filter's threshold, and the pairs with the lowest scores.

    Args:
        audit: the audit of the pairs.
        pairs: the pairs, with images and names.
        path: the file to write.
    """
    page = Canvas(13.3, 5.6)
    page.text(0.5, 0.35, "What the filter finds most doubtful", 16)
    page.text(
        0.5,
        0.78,
        f"{len(pairs)} training pairs. The captions of this set are right: a low score means hard to tell, not wrong.",
        9.5,
        PALE,
    )
    axis = page.axis(0.7, 1.5, 4.0, 3.4)
    scores = audit.scores[np.isfinite(audit.scores)]
    axis.hist(scores, bins=40, color="#c5d3e8")
    axis.axvline(audit.threshold, color=LINES[1], linewidth=1.4)
    axis.text(audit.threshold, axis.get_ylim()[1], " threshold", color=LINES[1], fontsize=8, va="top")
    style_axis(axis, "pairs by cosine of image and caption")
    for number, line in enumerate(suspects(audit, pairs)[:SUSPECTS]):
        left, top = 5.35 + 1.28 * (number % 6), 1.3 + 2.05 * (number // 6)
        page.image(left + 0.1, top, 1.0, pairs.read_row(line["row"]), None if line["kept"] else LINES[1])
        page.text(left + 0.6, top + 1.08, textwrap.fill(line["caption"], 17), 8, ha="center")
        lines = len(textwrap.wrap(line["caption"], 17))
        page.text(left + 0.6, top + 1.11 + 0.14 * lines, f"{line['score']:.2f}", 7, PALE, ha="center")
    page.save(path)


def draw_answers(answers: list[Answer], path: Path) -> None:
    """Draw text queries with their best matches on the left, and image queries with theirs on the right.

    Args:
        answers: right matches are framed.
        path: the file to write.
    """
    page = Canvas(13.3, 7.5)
    page.text(0.5, 0.4, "Searching for concepts that the model has never seen", 19)
    page.text(
        0.5,
        0.92,
        "No drawing and no name of these emoji was in training. Framed: right by its name. Small: cosine similarity.",
        10,
        PALE,
    )
    texts = [each for each in answers if not isinstance(each.query, Path)]
    for row, each in enumerate(texts):
        top = 1.5 + 1.17 * row
        page.text(2.35, top + 0.46, textwrap.fill(str(each.query), 17), 12.5, ha="right", va="center")
        _draw_matches(page, each, 2.6, top, 0.94, 1.09)
    for row, each in enumerate(each for each in answers if isinstance(each.query, Path)):
        top = 1.5 + 2.92 * row
        page.image(8.72, top, 1.05, Image.open(each.query), "#cccccc")
        page.text(9.95, top + 0.52, "more like this", 12.5, va="center")
        _draw_matches(page, each, 8.72, top + 1.3, 0.78, 0.86)
    page.save(path)


def _draw_matches(page: Canvas, answer: Answer, left: float, top: float, side: float, pitch: float) -> None:
    for column, (match, right) in enumerate(zip(answer.matches, answer.right)):
        place = left + pitch * column
        page.image(place, top, side, Image.open(match.path), GREEN if right else None)
        page.text(place + side / 2, top + side + 0.05, f"{match.score:.2f}", 6.5, PALE, ha="center")
