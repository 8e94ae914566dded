"""Training curves, drawn with matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from .figures import new_figure, save_figure  # its import error says what to install


INK, PALE, LINES = "#222222", "#8a8a8a", ("#3465a4", "#e08e2b")
DPI = 150
COLUMNS = 4
# Panels: title, and labels of the logged values that are plotted. A run has the panels of the values that it logs.
PANELS = {
    "instance level: image and text": {"loss_instance": ""},
    "token level: masked patches": {"loss_mvm": ""},
    "token level: masked words": {"loss_mlm": ""},
    "task level: equal rankings": {"loss_task": ""},
    "right in its batch, fraction": {"batch_accuracy": ""},
    "similarity to keys in the queue": {"sim_current_keys": "of this step", "sim_queued_keys": "of earlier steps"},
    "variance of embeddings": {"image_embedding_variance": "images", "text_embedding_variance": "texts"},
    "left out by the filter, fraction": {"filter_drop_rate": ""},
    # SIMLA
    "contrast of image and text": {"loss_itc": ""},
    "matching of image and text": {"loss_itm": ""},
    "codes of masked patches": {"loss_mim": ""},
    "keywords": {"loss_psl": ""},
    # COOKIE
    "contrast of image and caption": {"loss_cross_modal": ""},
    "contrast of two views of an image": {"loss_visual": ""},
    "contrast of two views of a caption": {"loss_textual": ""},
    # image tokenizers
    "reconstruction": {"reconstruction_loss": ""},
    "codes against a uniform choice (KL)": {"kl": ""},
    "codes in use": {"used_codes": ""},
}


def draw_losses(history: list[dict[str, float]], path: Path) -> bool:
    """Plot the terms of the loss and other diagnostics over the steps.

    Args:
        history: `trainer.state.log_history`.
        path: the file to write.

    Returns:
        Whether anything was logged; otherwise no file is written.
    """
    panels = {}
    for title, lines in PANELS.items():
        curves = {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in lines}
        values = [value for points in curves.values() for _, value in points]
        if values and (any(values) or not next(iter(lines)).startswith("loss_")):  # a term of weight 0 is 0
            panels[title] = curves
    if not panels:
        return False
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure, axes = new_figure((13.3 / COLUMNS * columns, 2.8 * rows), rows, columns)
    grid = np.atleast_2d(axes)
    for axis, (title, curves) in zip(grid.flat, panels.items()):
        _draw_panel(axis, title, curves)
    for axis in grid.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in grid[-1]:
        axis.set_xlabel("step", fontsize=8, color=PALE)
    save_figure(figure, path, DPI)
    return True


def _draw_panel(axis: Any, title: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Draw the lines of one panel, with a legend if there are several."""
    for color, (name, points) in zip(LINES, curves.items()):
        if points:
            axis.plot(*zip(*points), color=color, linewidth=1.6, label=PANELS[title][name])
    if "fraction" in title:
        axis.set_ylim(0, max(0.05, axis.get_ylim()[1]))
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False, labelcolor=INK)
    style_axis(axis, title)


def style_axis(axis: Any, title: str) -> None:
    """Style axes plainly: two thin spines, a faint grid, and the title on the left."""
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#cccccc")
    axis.tick_params(labelsize=8, colors=PALE, length=3)
    axis.grid(color="#eeeeee", linewidth=0.8)
    axis.set_axisbelow(True)
