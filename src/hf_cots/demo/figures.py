"""The demo's figures: training curves, and search results beside their queries."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..evaluation.rendering.figures import new_figure, save_figure
from ..search.index import Match


PANELS = {
    "losses": ("loss_instance", "loss_mvm", "loss_mlm", "loss_task"),
    "retrieval within the batch": ("batch_accuracy",),
    "health": (
        "image_embedding_variance",
        "text_embedding_variance",
        "sim_current_keys",
        "sim_queued_keys",
        "filter_drop_rate",
    ),
}


def draw_losses(history: list[dict[str, float]], path: Path) -> None:
    """Plot the loss terms and the health metrics over the steps.

    Args:
        history: `trainer.state.log_history`.
        path: the file to write.
    """
    logs = [entry for entry in history if "loss_instance" in entry]
    figure, axes = new_figure((14, 3.6), columns=len(PANELS))
    for axis, (title, names) in zip(axes, PANELS.items()):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in logs if name in entry]
            if points:
                axis.plot(*zip(*points), label=name)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def draw_answers(answers: list[tuple[str | Path, list[Match]]], path: Path) -> None:
    """Draw one row per query, a text or an image file, with its best matches and their scores."""
    columns = 1 + max(len(matches) for _, matches in answers)
    figure, axes = new_figure((1.3 * columns, 1.45 * len(answers)), len(answers), columns)
    for row, (query, matches) in zip(np.atleast_2d(axes), answers):
        for axis in row:
            axis.axis("off")
        if isinstance(query, Path):
            row[0].imshow(Image.open(query))
            row[0].set_title("image", fontsize=8)
        else:
            row[0].text(0.5, 0.5, query.replace(" ", "\n", 1), ha="center", va="center", fontsize=9, wrap=True)
        for axis, match in zip(row[1:], matches):
            axis.imshow(Image.open(match.path))
            axis.set_title(f"{match.score:.2f}", fontsize=8)
    save_figure(figure, path)
