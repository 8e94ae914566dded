"""Plots of results, drawn with matplotlib."""

from pathlib import Path
from typing import Any

from ...search.encoders import DIRECTIONS


def draw_recall_cost(reranking: dict[str, Any], path: Path) -> None:
    """Plot R@1 with its interval over milliseconds per query, with a line for each direction.

    Args:
        reranking: the entry `reranking` of a report; see [`RerankEvaluation`].
        path: the image file to write.

    Raises:
        ModuleNotFoundError: naming the extra to install, if matplotlib is missing.
    """
    from .figures import new_figure, save_figure

    figure, axis = new_figure((6, 4))
    for name in DIRECTIONS:
        _draw_direction(axis, name.replace("_", " "), [(row["k"], row[name]) for row in reranking["rows"]])
    axis.set(xscale="log", xlabel="milliseconds a query", ylabel="R@1 in percent")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path, dpi=150)


def _draw_direction(axis: Any, label: str, rows: list[tuple[int | str, dict[str, Any]]]) -> None:
    """Draw the line through all fixed k, and a star for the row in which k varies."""
    points = [(values["milliseconds_per_query"], values["R@1"]) for _, values in rows]
    fixed = [i for i, (k, _) in enumerate(rows) if k != "varying"]
    low, high = zip(*(rows[i][1]["intervals"]["R@1"] for i in fixed))
    cost, recall = zip(*(points[i] for i in fixed))
    (line,) = axis.plot(cost, recall, marker="o", label=label)
    axis.fill_between(cost, low, high, alpha=0.15, color=line.get_color())
    for (k, _), point in zip(rows, points):
        offset = (4, -10 if k == "varying" else 5)
        axis.annotate(f"k={k}", point, textcoords="offset points", xytext=offset, fontsize=7, color=line.get_color())
        if k == "varying":
            axis.plot(*point, marker="*", markersize=10, color=line.get_color())
