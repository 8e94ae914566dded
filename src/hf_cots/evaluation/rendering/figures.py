"""Matplotlib figures that are written to a file, without a display."""

from pathlib import Path
from typing import Any


try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    raise ModuleNotFoundError("figures need matplotlib: pip install 'hf-cots[demo]'") from None


def new_figure(size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Create a figure with a grid of axes.

    Args:
        size: width and height in inches.
        rows, columns: size of the grid.

    Returns:
        The figure, and one `Axes` or an array of several.
    """
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns)


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Save a figure with a tight layout, in the format of the path's suffix."""
    figure.tight_layout()
    figure.savefig(path, dpi=dpi)
