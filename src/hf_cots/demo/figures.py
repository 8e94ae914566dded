"""The demo's pictures: losses, and answers beside their queries."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ..search.index import Match


matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt


def draw_losses(history: list[dict[str, float]], path: Path) -> None:
    """Each loss term and the health signs over the steps, from Trainer's log."""
    panels = {
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
    logs = [entry for entry in history if "loss_instance" in entry]
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.6))
    for axis, (title, names) in zip(axes, panels.items()):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in logs if name in entry]
            if points:
                axis.plot(*zip(*points), label=name)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    _save(figure, path)


def draw_answers(answers: list[tuple[str | Path, list[Match]]], path: Path) -> None:
    """One row per query, a text or a picture, with its best matches and their scores."""
    columns = 1 + max(len(matches) for _, matches in answers)
    figure, axes = plt.subplots(len(answers), columns, figsize=(1.3 * columns, 1.45 * len(answers)))
    for row, (query, matches) in zip(np.atleast_2d(axes), answers):
        for axis in row:
            axis.axis("off")
        if isinstance(query, Path):
            row[0].imshow(Image.open(query))
            row[0].set_title("picture", fontsize=8)
        else:
            row[0].text(0.5, 0.5, query.replace(" ", "\n", 1), ha="center", va="center", fontsize=9, wrap=True)
        for axis, match in zip(row[1:], matches):
            axis.imshow(Image.open(match.path))
            axis.set_title(f"{match.score:.2f}", fontsize=8)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
