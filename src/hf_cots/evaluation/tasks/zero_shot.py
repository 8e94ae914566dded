"""Zero-shot classification: each picture gets the class whose description it is most similar to.

As in CLIP (Radford et al., 2021, section 3.1.4): a class is described by its name in several prompt templates; the
normalised embeddings of the descriptions are averaged and normalised again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.images import BrokenImage
from ...models.losses import l2_normalize
from ...search.encoders import Encoder, encode_rows
from ..retrieval.ranking import BLOCK, Scores, slices
from .bootstrap import bootstrap_intervals
from .labelled_images import LabelledImages


TEMPLATES = ("a photo of a {}.",)
TOP = (1, 5)


def read_templates(given: Sequence[str]) -> list[str]:
    """Prompt templates as a user gives them: each a text with `{}` where the class name goes, or a file of such lines.

    Raises:
        ValueError: naming the text that has no `{}`, or the file's line.
    """
    templates = []
    for text in given:
        path = Path(text)
        is_file = "{}" not in text and path.is_file()
        lines = path.read_text(encoding="utf-8").splitlines() if is_file else [text]
        for number, line in enumerate(lines, start=1):
            if "{}" in line:
                templates.append(line)
            elif line.strip() or not is_file:
                where = f"{text}, line {number}: '{line}'" if is_file else f"'{line}'"
                raise ValueError(f"the template {where} has no {{}} for the class name, and is no file of templates")
    return templates


def read_class_names(path: Path | str | None, data: LabelledImages) -> dict[str, str]:
    """The name in words of each class.

    Args:
        path: a text file with one class a line: a label, or a label, a tab and its name in words. It may have classes
            of which there is no picture. Without a file the names are the labels themselves.
        data: the pictures, whose labels must all be in the file.

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


def class_embeddings(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """(classes, D) float32, normalised: the mean over the templates of the normalised description embeddings."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    return l2_normalize(encoder.encode_texts(texts).view(len(names), len(templates), -1).mean(dim=1))


def top_k_probability(scores: torch.Tensor, correct: torch.Tensor, k: int) -> torch.Tensor:
    """Probability that the correct class is among the first k, if ties are broken at random.

    Args:
        scores: (n, classes).
        correct: (n,) int64, the correct class.

    Returns:
        (n,) float64.
    """
    own = scores.gather(1, correct[:, None])
    above = (scores > own).sum(dim=1)
    tied = (scores == own).sum(dim=1)  # itself included
    return ((k - above) / tied.double()).clamp(0, 1)


@dataclass(frozen=True)
class Classification:
    """What came of a zero-shot classification.

    Attributes:
        hits: `{"top1", "top5"}`, (n,) float64 each, in percent: 0 or 100 unless scores tie.
        correct: (n,) int64 index of each picture's class.
        classes: labels of all classes.
        rows: (n) rows of the pictures.
        broken: the pictures that could not be read.
    """

    hits: dict[str, np.ndarray]
    correct: np.ndarray
    classes: list[str]
    rows: list[int]
    broken: list[BrokenImage]

    def metrics(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """`top1` and `top5` in percent, and `mean_per_class_top1`, the mean over the classes that have pictures."""
        means = {name: float(values[index].mean()) for name, values in self.hits.items()}
        of_class = self.correct[index]
        counts = np.bincount(of_class, minlength=len(self.classes))
        sums = np.bincount(of_class, self.hits["top1"][index], minlength=len(self.classes))
        return means | {"mean_per_class_top1": float((sums[counts > 0] / counts[counts > 0]).mean())}

    def chance(self) -> dict[str, float]:
        """The same for guessing."""
        guess = {f"top{k}": 100 * min(1.0, k / len(self.classes)) for k in TOP}
        return guess | {"mean_per_class_top1": guess["top1"]}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures with their intervals, chance, the figures of each class."""
        counts = np.bincount(self.correct, minlength=len(self.classes)).tolist()
        sizes = {"images": len(self.correct), "classes": len(self.classes)}
        per_class = {
            label: {"images": count} | ({"top1": float(self.hits["top1"][self.correct == c].mean())} if count else {})
            for c, (label, count) in enumerate(zip(self.classes, counts))
        }
        intervals = bootstrap_intervals(self.metrics, len(self.correct))
        return {
            "zero_shot": self.metrics() | sizes | {"intervals": intervals},
            "chance": {"zero_shot": self.chance()},
            "per_class": per_class,
        }


def classify(
    encoder: Encoder,
    data: LabelledImages,
    names: dict[str, str],
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = 64,
    progress: bool = False,
) -> Classification:
    """Classify all pictures of a data set. Pictures that cannot be read are named in a warning and left out.

    Args:
        encoder: what encodes pictures and texts.
        data: pictures with labels.
        names: the name in words of each label; see [`read_class_names`].
        templates: texts with `{}` for the name.
        batch_size: pictures in a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if there are fewer than two classes, or the encoder has no image tower.
    """
    if len(names) < 2:
        raise ValueError(f"{data.name}: {len(names)} class, at least two are needed to tell apart")
    classes = list(names)
    number = {label: index for index, label in enumerate(classes)}
    class_embeds = class_embeddings(encoder, list(names.values()), templates)
    rows = range(len(data.labels))
    image_embeds, read, broken = encode_rows(encoder, data.pictures, rows, batch_size, progress)
    correct = torch.tensor([number[data.labels[row]] for row in read])
    scores, hits = Scores(image_embeds, class_embeds), {f"top{k}": np.empty(len(read)) for k in TOP}
    for part in slices(len(read), BLOCK):
        for _, tile in scores.tiles(part, len(classes)):  # all classes in one
            for k in TOP:
                hits[f"top{k}"][part] = 100 * top_k_probability(tile, correct[part], k).numpy()
    return Classification(hits, correct.numpy(), classes, read, broken)
