"""Zero-shot classification: each image is assigned the class with the most similar prompt embedding.

As in CLIP (Radford et al., 2021, section 3.1.4), the name of a class is put into several prompt templates, and the
normalized embeddings of the prompts are averaged and normalized again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.images import BrokenImage
from ...search.encoders import Encoder, encode_rows
from ...search.vectors import l2_normalize
from ..retrieval.ranking import BLOCK, Scores, slices
from .bootstrap import task_metrics
from .labelled_images import LabelledImages
from .prompts import DEFAULT_TEMPLATE


TOP = (1, 5)


def read_class_names(path: Path | str | None, data: LabelledImages) -> dict[str, str]:
    """Read the name of each class.

    Args:
        path: a text file with one class per line: a label, or a label, a tab and its name. It may have classes without
            images. Without a file the names are the labels themselves.
        data: the images, whose labels must all be in the file.

    Returns:
        `{label: name}` in the order of the file, or of the data's classes; underscores in a label become spaces.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a label occurs twice in the file or is not in it.
    """
    if path is None:
        return {label: label.replace("_", " ") for label in data.classes}
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    names: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        label, _, name = (part.strip() for part in line.partition("\t"))
        if label in names:
            raise ValueError(f"{path}, line {number}: the class '{label}' occurs twice")
        if label:
            names[label] = name or label.replace("_", " ")
    unknown = next((row for row, label in enumerate(data.labels) if label not in names), None)
    if unknown is not None:
        raise ValueError(f"{data.name}, row {unknown}: the class '{data.labels[unknown]}' is not in {path}")
    return names


def class_embeddings(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Average the normalized embeddings of each class's prompts; returns (classes, D) float32, normalized."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    embeds = np.asarray(encoder.encode_texts(texts))
    return l2_normalize(embeds.reshape(len(names), len(templates), -1).mean(axis=1))


def top_k_probability(scores: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Compute the probability that the correct class is among the first k if ties are broken at random.

    Args:
        scores: (n, classes).
        correct: (n,) int64, the correct class.
        k: cut-off.

    Returns:
        (n,) float64.
    """
    own = np.take_along_axis(scores, correct[:, None], axis=1)
    above = (scores > own).sum(axis=1)
    tied = (scores == own).sum(axis=1)  # including itself
    return np.clip((k - above) / tied, 0, 1)


@dataclass(frozen=True)
class ZeroShotResult:
    """The result of a zero-shot classification.

    Attributes:
        hits: `{"top1", "top5"}`, (n,) float64 each, in percent: 0 or 100 unless scores tie.
        correct: (n,) int64, index of each image's class.
        classes: labels of all classes.
        rows: (n) rows of the images in the data set.
        broken: the images that could not be read.
    """

    hits: dict[str, np.ndarray]
    correct: np.ndarray
    classes: list[str]
    rows: list[int]
    broken: list[BrokenImage]

    def metrics(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Compute `top1` and `top5` in percent, and `mean_per_class_top1`, the mean over classes that have images."""
        means = {name: float(values[index].mean()) for name, values in self.hits.items()}
        correct = self.correct[index]
        counts = np.bincount(correct, minlength=len(self.classes))
        sums = np.bincount(correct, self.hits["top1"][index], minlength=len(self.classes))
        return means | {"mean_per_class_top1": float((sums[counts > 0] / counts[counts > 0]).mean())}

    def chance(self) -> dict[str, float]:
        """Compute the metrics of guessing."""
        guess = {f"top{k}": 100 * min(1.0, k / len(self.classes)) for k in TOP}
        return guess | {"mean_per_class_top1": guess["top1"]}

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types: metrics with intervals, chance, and the accuracy of each class."""
        counts = np.bincount(self.correct, minlength=len(self.classes)).tolist()
        per_class = {
            label: {"images": count} | ({"top1": float(self.hits["top1"][self.correct == c].mean())} if count else {})
            for c, (label, count) in enumerate(zip(self.classes, counts))
        }
        sizes = {"images": len(self.correct), "classes": len(self.classes)}
        report = task_metrics("zero_shot", self.metrics, self.chance(), len(self.correct), sizes)
        return report | {"per_class": per_class}


def evaluate_zero_shot(
    encoder: Encoder,
    data: LabelledImages,
    names: dict[str, str],
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    batch_size: int = 64,
    progress: bool = False,
) -> ZeroShotResult:
    """Classify all images of a data set. Images that cannot be read are logged and skipped.

    Args:
        encoder: encodes images and texts.
        data: images with labels.
        names: name of each label; see [`read_class_names`].
        templates: prompt templates with `{}` for the name.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if there are fewer than two classes, or the encoder has no image tower.
    """
    if len(names) < 2:
        raise ValueError(f"{data.name}: classification needs at least two classes, got {len(names)}")
    classes = list(names)
    class_index = {label: index for index, label in enumerate(classes)}
    class_embeds = class_embeddings(encoder, list(names.values()), templates)  # (classes, D)
    rows = range(len(data.labels))
    image_embeds, read, broken = encode_rows(encoder, data.images, rows, batch_size, progress)
    correct = np.array([class_index[data.labels[row]] for row in read])
    scores, hits = Scores(image_embeds, class_embeds), {f"top{k}": np.empty(len(read)) for k in TOP}
    for part in slices(len(read), BLOCK):
        for _, tile in scores.tiles(part, len(classes)):  # one tile (b, classes)
            for k in TOP:
                hits[f"top{k}"][part] = 100 * top_k_probability(tile, correct[part], k)
    return ZeroShotResult(hits, correct, classes, read, broken)
