"""Text matching: does the similarity of two texts follow what people say of them?

The form of semantic textual similarity (STS): pairs of texts with a human score; the figure is Spearman's rank
correlation between the scores and the cosines (Reimers et al., 2016, say why it and not Pearson's, which is given
beside it).
"""

import csv
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.sources import load_table
from ...search.encoders import Encoder
from .bootstrap import bootstrap_intervals


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts with scores.

    Attributes:
        name: what errors and reports call them.
        first, second: (n) texts.
        scores: (n,) float64; higher is more alike, in any unit.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: np.ndarray

    def fingerprint(self) -> str:
        """32 hexadecimal digits: blake2b over texts and scores, in their order."""
        digest = hashlib.blake2b(digest_size=16)
        for row in zip(self.first, self.second, self.scores.tolist()):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def load_text_pairs(
    data: str,
    text_columns: tuple[str, str] = ("sentence1", "sentence2"),
    score_column: str = "score",
    split: str = "test",
) -> TextPairs:
    """Pairs of texts from a table.

    Args:
        data: what [`hf_cots.data.sources.load_table`] takes: a Hub id, parquet, CSV, JSON lines.
        text_columns: names of the two columns of texts.
        score_column: of numbers.
        split: of a Hub data set.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: naming the column that is missing, or the row whose text is empty or whose score is no number.
    """
    table = load_table(data, split)
    for flag, column in zip(("text-a", "text-b", "score-column"), (*text_columns, score_column)):
        if column not in table.column_names:
            raise ValueError(
                f"{data} has no column '{column}'; it has {', '.join(table.column_names)}. Name one with --{flag}"
            )
    return _checked(data, *(list(table[column]) for column in (*text_columns, score_column)))


def load_sts_benchmark(path: Path | str) -> TextPairs:
    """A file of STS-Benchmark as its authors give it out (Cer et al., 2017), `sts-test.csv` and its sisters.

    In spite of their name these have tabs, no header and no quoting: genre, file, year, number, score from 0 to 5, two
    sentences, and sometimes their licences.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line that has too few fields, an empty sentence or no number for a score.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    short = next((number for number, line in enumerate(lines) if len(line) < 7), None)
    if short is not None:
        raise ValueError(
            f"{path}, row {short}, counted from 0: {len(lines[short])} fields, STS-Benchmark has 7 or more"
        )
    return _checked(str(path), *([line[field] for line in lines] for field in (5, 6, 4)))


def _checked(name: str, first: list, second: list, scores: list) -> TextPairs:
    if not first:
        raise ValueError(f"{name} holds no rows")
    numbers = np.empty(len(scores))
    for row, (*texts, score) in enumerate(zip(first, second, scores)):
        if any(not isinstance(text, str) or not text.strip() for text in texts):
            raise ValueError(f"{name}, row {row}, counted from 0: a text is empty")
        try:
            numbers[row] = float(score)
        except (TypeError, ValueError):
            numbers[row] = math.nan
        if not math.isfinite(numbers[row]):
            raise ValueError(f"{name}, row {row}, counted from 0: the score '{score}' is not a number")
    return TextPairs(name, first, second, numbers)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) float64 ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two (n,) arrays; NaN if all numbers of one of them are equal."""
    first, second = first - first.mean(), second - second.mean()
    norms = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / norms if norms > 0 else math.nan


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two (n,) arrays with ties: [`pearson`] of their [`average_ranks`]."""
    return pearson(average_ranks(first), average_ranks(second))


@dataclass(frozen=True)
class TextMatching:
    """Cosines of pairs of texts beside their scores, (n,) float64 both."""

    cosines: np.ndarray
    scores: np.ndarray

    def metrics(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """`{"spearman", "pearson"}`, each from -1 to 1."""
        cosines, scores = self.cosines[index], self.scores[index]
        return {"spearman": spearman(cosines, scores), "pearson": pearson(cosines, scores)}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures with their intervals, chance."""
        intervals = bootstrap_intervals(self.metrics, len(self.scores))
        return {
            "text_matching": self.metrics() | {"pairs": len(self.scores), "intervals": intervals},
            "chance": {"text_matching": {"spearman": 0.0, "pearson": 0.0}},
        }


def match_texts(encoder: Encoder, pairs: TextPairs) -> TextMatching:
    """Encode both texts of each pair and compare.

    Raises:
        ValueError: if all scores, or all cosines, are equal: there is no correlation then; or if an embedding is not
            finite.
    """
    first, second = (encoder.encode_texts(texts).double() for texts in (pairs.first, pairs.second))
    cosines = (first * second).sum(dim=1).numpy()
    broken = np.flatnonzero(~np.isfinite(cosines))
    if len(broken):
        raise ValueError(f"{pairs.name}: {len(broken)} embeddings are not finite, the first in row {broken[0]}")
    for what, values in (("scores", pairs.scores), ("cosines", cosines)):
        if len(np.unique(values)) < 2:
            raise ValueError(f"{pairs.name}: all {len(values)} {what} are equal, so that nothing correlates with them")
    return TextMatching(cosines, pairs.scores)
