"""Semantic textual similarity (STS): the correlation of cosine similarities with human scores.

The data are pairs of texts with a human score. The main metric is Spearman's rank correlation of the scores with the
cosines; Reimers et al. (2016) explain why it is preferable to Pearson's, which is reported too.
"""

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ...data.hashes import hex_digest
from ...data.loading import load_table
from ...data.sources import check_columns
from ...data.tables import read_records
from ...search.encoders import Encoder
from .bootstrap import task_metrics


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts with scores.

    Attributes:
        name: name of the data in errors and reports.
        first, second: (n) texts.
        scores: (n,) float64; higher is more similar, on any scale.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: np.ndarray

    def fingerprint(self) -> str:
        """Hash texts and scores in order with blake2b; 32 hexadecimal digits."""
        rows = zip(self.first, self.second, self.scores.tolist())
        return hex_digest(json.dumps(row).encode() for row in rows)

    def describe(self) -> dict[str, Any]:
        """Describe name, fingerprint and size for a report."""
        return {"name": self.name, "fingerprint": self.fingerprint(), "rows": len(self.first)}


def load_text_pairs(
    data: str,
    text_columns: tuple[str, str] = ("sentence1", "sentence2"),
    score_column: str = "score",
    split: str = "test",
    separator: str | None = None,
) -> TextPairs:
    """Read pairs of texts from a table.

    Args:
        data: any source of [`hf_cots.data.loading.load_table`]: a Hub id, parquet, CSV, JSON lines.
        text_columns: names of the two columns of texts.
        score_column: name of the column of scores.
        split, separator: as for `load_table`.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: naming the column that is missing, or the row whose text is empty or whose score is not a number.
    """
    columns = (*text_columns, score_column)
    table = load_table(data, split, columns=columns, separator=separator)
    check_columns(data, table.column_names, **dict(zip(("text_a", "text_b", "score_column"), columns)))
    return _text_pairs(data, *(list(table[column]) for column in columns))


def load_sts_benchmark(path: Path | str) -> TextPairs:
    """Read a file of STS-Benchmark as its authors distribute it (Cer et al., 2017), such as `sts-test.csv`.

    Despite their suffix, these files are tab-separated, without header and quoting: genre, file, year, number, score
    from 0 to 5, two sentences, and sometimes their licenses.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the row that has too few fields, an empty sentence, or a score that is not a number.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = [fields for _, fields in read_records(path) if fields != [""]]
    short = next((row for row, line in enumerate(lines) if len(line) < 7), None)
    if short is not None:
        raise ValueError(
            f"{path}, row {short}, counted from 0: {len(lines[short])} fields, but STS-Benchmark has 7 or more"
        )
    return _text_pairs(str(path), *([line[field] for line in lines] for field in (5, 6, 4)))


def _text_pairs(name: str, first: list, second: list, scores: list) -> TextPairs:
    """Check the cells of each row and convert the scores."""
    if not first:
        raise ValueError(f"{name} has no rows")
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


@dataclass(frozen=True)
class STSResult:
    """The cosines of pairs of texts and their human scores, both (n,) float64."""

    cosines: np.ndarray
    scores: np.ndarray

    def metrics(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Compute `{"spearman", "pearson"}`, each from -1 to 1; NaN if all cosines or all scores are equal."""
        cosines, scores = self.cosines[index], self.scores[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # a NaN in a resample is expected
            correlations = {"spearman": stats.spearmanr(cosines, scores), "pearson": stats.pearsonr(cosines, scores)}
        return {name: float(correlation.statistic) for name, correlation in correlations.items()}

    def chance(self) -> dict[str, float]:
        """Return the expected correlations of random similarities."""
        return {"spearman": 0.0, "pearson": 0.0}

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types: metrics with intervals, and chance."""
        return task_metrics(
            "text_matching", self.metrics, self.chance(), len(self.scores), {"pairs": len(self.scores)}
        )


def evaluate_sts(encoder: Encoder, pairs: TextPairs) -> STSResult:
    """Encode both texts of each pair and compare their cosine with the score.

    Raises:
        ValueError: if all scores, or all cosines, are equal, so that there is no correlation; or if an embedding is
            not finite.
    """
    first, second = (
        np.asarray(encoder.encode_texts(texts), dtype=np.float64) for texts in (pairs.first, pairs.second)
    )
    cosines = (first * second).sum(axis=1)
    broken = np.flatnonzero(~np.isfinite(cosines))
    if len(broken):
        raise ValueError(f"{pairs.name}: {len(broken)} embeddings are not finite, the first in row {broken[0]}")
    for name, values in (("scores", pairs.scores), ("cosines", cosines)):
        if len(np.unique(values)) < 2:
            raise ValueError(f"{pairs.name}: all {len(values)} {name} are equal, so the correlation is undefined")
    return STSResult(cosines, pairs.scores)
