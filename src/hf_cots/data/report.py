"""Reports the size of a run's data before training and evaluation, and saves it as `data_report.json`.

A run that uses a fraction of its data, cuts half of its captions or evaluates on what it was trained on looks like any
other in its loss. These are the numbers that show it. Large data are sampled, evenly over all pairs, so that a report
costs about a second.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .hashes import hash_bytes
from .shards import replace_file
from .sources import PairDataset
from .streams import PairStream


logger = logging.getLogger(__name__)

DATA_REPORT = "data_report.json"
MAX_TOKENIZED = 10_000  # captions
MAX_EVALUATED = 2_000  # evaluation pairs that are looked for in the training data
MAX_TRAINED = 1_000_000  # training pairs among which they are looked for
MAX_READ = 2_000  # training pairs whose images are compared by their bytes
WARN_ABOVE = 0.03

Pairs = PairDataset | PairStream


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices below `count`, evenly spaced."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


@dataclass(frozen=True)
class DataSummary:
    """The size of a data set, and how its captions fit the tokenizer.

    Attributes:
        name: the name that the user gave.
        pairs, images: how many; None for a stream, which does not know.
        captions_per_image: mean over the images.
        dropped: pairs that are not used, by reason.
        sampled: captions that the next two were measured on; 0 without captions or tokenizer.
        truncated: fraction of captions longer than the limit.
        unknown_tokens: fraction of tokens that the vocabulary lacks.
    """

    name: str
    pairs: int | None
    images: int | None
    captions_per_image: float | None
    dropped: dict[str, int] = field(default_factory=dict)
    sampled: int = 0
    truncated: float = 0.0
    unknown_tokens: float = 0.0

    def __str__(self) -> str:
        parts = ["a stream, whose pairs are not counted beforehand"]
        if self.pairs is not None:
            per_image = f"{self.captions_per_image:.2f} captions per image"
            parts = [f"{self.pairs:,} pairs of {self.images:,} images, {per_image}"]
        parts += [f"{count:,} pairs left out: {reason}" for reason, count in self.dropped.items()]
        if self.sampled:
            parts.append(
                f"of {self.sampled:,} captions {self.truncated:.1%} are cut at the limit, "
                f"{self.unknown_tokens:.1%} of their tokens are unknown"
            )
        return f"{self.name}: {'; '.join(parts)}"

    def warnings(self) -> list[str]:
        """Warnings about fractions above a few percent."""
        found = []
        if self.truncated > WARN_ABOVE:
            found.append(f"{self.name}: {self.truncated:.1%} of the captions are longer than the limit and are cut")
        if self.unknown_tokens > WARN_ABOVE:
            found.append(
                f"{self.name}: {self.unknown_tokens:.1%} of the captions' tokens are unknown to the tokenizer; is it "
                "one for this language?"
            )
        return found


@dataclass(frozen=True)
class Overlap:
    """How much of the evaluation data is in the training data.

    Attributes:
        train, evaluation: names of the data.
        pairs: evaluation pairs that were looked for; of a stream its first training pairs, the other way around.
        captions: of these, how many have a caption of the other side, but for case and punctuation.
        images: of these, how many have an image that is the same file as one of the other side, or has the same bytes.
        compared: pairs of the other side.
        read: of these, how many images were compared by their bytes.
        streamed: whether the first pairs of a stream were looked for in the evaluation data.
    """

    train: str
    evaluation: str
    pairs: int
    captions: int
    images: int
    compared: int
    read: int
    streamed: bool = False

    def __str__(self) -> str:
        mine, other = f"{self.pairs:,} evaluation pairs of {self.evaluation}", f"the training data {self.train}"
        if self.streamed:
            mine, other = (
                f"{self.pairs:,} first training pairs of {self.train}",
                f"the evaluation data {self.evaluation}",
            )
        return (
            f"of {mine} {self.captions:,} ({self.captions / self.pairs:.1%}) have a caption and {self.images:,} "
            f"({self.images / self.pairs:.1%}) an image of {other}"
        )

    def warnings(self) -> list[str]:
        """Warnings about an overlap above a few percent; if it is most images, about evaluation on training data."""
        if self.images > self.pairs / 2:
            return [f"evaluation on training data: {self}"]
        return [f"overlap: {self}"] if max(self.captions, self.images) > WARN_ABOVE * self.pairs else []


# ---------------------------------------------------------------------- one data set


def summarize(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int | None = None
) -> DataSummary:
    """Count a data set and tokenize a sample of its captions.

    Args:
        pairs: the data.
        tokenizer: the model's; without it nothing is said of tokens.
        max_length: tokens at which a caption is cut; by default the tokenizer's `model_max_length`.
    """
    captions = _take(pairs, MAX_TOKENIZED).captions if tokenizer is not None else []
    captions = [text for text in captions if text]
    truncated = unknown = 0.0
    if tokenizer is not None and captions:
        truncated, unknown = _measure_tokens(captions, tokenizer, max_length)
    measured = (len(captions), truncated, unknown)
    if isinstance(pairs, PairStream):
        return DataSummary(pairs.name, None, None, None, {}, *measured)
    images = len(np.unique(pairs.image_ids[pairs.pair_rows]))
    return DataSummary(pairs.name, len(pairs), images, len(pairs) / images, dict(pairs.dropped), *measured)


def _measure_tokens(
    captions: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[float, float]:
    """The fractions of captions that are cut and of tokens that are unknown."""
    limit = tokenizer.model_max_length if max_length is None else max_length
    limit -= tokenizer.num_special_tokens_to_add()
    rows = tokenizer(captions, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    cut = sum(len(row) > limit for row in rows) / len(rows)
    if tokenizer.unk_token_id is None:
        return cut, 0.0
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows)
    return cut, unknown / max(1, sum(map(len, rows)))


@dataclass(frozen=True)
class _Entries:
    """Some pairs of a data set: their captions, the files of their images, and a way to the images' bytes.

    Attributes:
        captions: "" for a caption that is none.
        files: of each pair; None where images lie in the table.
        cells: gives the image cell of the i-th of these pairs.
        root: the folder that relative paths start from.
    """

    captions: list[str]
    files: list[str | None]
    cell: Callable[[int], Any]
    root: Path

    def content(self, i: int) -> int | None:
        """A hash of the bytes of the i-th image; None if it cannot be read."""
        cell = self.cell(i)
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        try:
            return hash_bytes(cell if isinstance(cell, bytes) else (self.root / str(cell)).read_bytes())
        except OSError:
            return None


def _take(pairs: Pairs, most: int) -> _Entries:
    """At most `most` pairs of a data set, evenly spaced, or the first ones of a stream."""
    if isinstance(pairs, PairStream):
        first = pairs.first_pairs[:most]
        texts = [pair.caption if isinstance(pair.caption, str) else "" for pair in first]
        files = [_real_file(pairs.root, pair.cell) for pair in first]
        return _Entries(texts, files, lambda i: first[i].cell, pairs.root)
    index = spread(len(pairs), most)
    rows = pairs.pair_rows[index].tolist()
    paths = pairs.image_paths()
    files = [None] * len(rows) if paths is None else [_real_file(pairs.root, paths[row]) for row in rows]
    return _Entries(pairs.captions(index), files, lambda i: pairs.table[rows[i]][pairs.image_column], pairs.root)


def _real_file(root: Path, cell: Any) -> str | None:
    """The file of a cell, behind links to folders."""
    if isinstance(cell, dict) and cell.get("bytes") is None:
        cell = cell.get("path")
    if not isinstance(cell, str) or not cell:
        return None
    folder, name = os.path.split(os.path.join(root, cell))
    return os.path.join(_real_folder(folder), name)


@lru_cache(maxsize=10_000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


# ---------------------------------------------------------------------- two data sets


def caption_key(text: str) -> str:
    """A caption without case and punctuation; one of signs alone, such as an emoji, as it is."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def find_overlap(train: Pairs, evaluation: PairDataset) -> Overlap:
    """Look for a sample of the evaluation pairs in the training data; or, since a stream cannot be searched, for its
    first pairs in the evaluation data."""
    streamed = isinstance(train, PairStream)
    mine = _take(train if streamed else evaluation, MAX_EVALUATED)
    other = _take(evaluation if streamed else train, MAX_TRAINED)
    wanted = {caption_key(text) for text in mine.captions if text}
    captions = wanted & set(map(caption_key, other.captions))
    files = set(filter(None, mine.files)) & set(filter(None, other.files))
    read = spread(len(other.captions), MAX_READ).tolist()
    contents = {other.content(i) for i in read} - {None}
    images = sum(file in files or mine.content(i) in contents for i, file in enumerate(mine.files))
    return Overlap(
        train=train.name,
        evaluation=evaluation.name,
        pairs=len(mine.captions),
        captions=sum(bool(text) and caption_key(text) in captions for text in mine.captions),
        images=images,
        compared=len(other.captions),
        read=len(read),
        streamed=streamed,
    )


# ---------------------------------------------------------------------- a run


def report_data(
    train: Pairs | None,
    evaluation: PairDataset | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    path: Path | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Log the sizes of a run's data and their overlap, with warnings of what is odd, and write them to a file.

    Args:
        train, evaluation: the data, as far as there are any.
        tokenizer, max_length: as for [`summarize`].
        path: JSON file to write.

    Returns:
        What the file holds: `train`, `evaluation` and `overlap`, each as far as it is known.
    """
    found: dict[str, DataSummary | Overlap] = {}
    for name, pairs in (("train", train), ("evaluation", evaluation)):
        if pairs is not None:
            found[name] = summarize(pairs, tokenizer, max_length)
    if train is not None and evaluation is not None:
        found["overlap"] = find_overlap(train, evaluation)
    for name, part in found.items():
        warnings = part.warnings()
        for warning in warnings:
            logger.warning("%s", warning)
        if not isinstance(part, Overlap):
            logger.info("%s data %s", name, part)
        elif not warnings:  # which would say it twice
            logger.info("%s", part)
    report = {name: asdict(part) for name, part in found.items()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    return report
