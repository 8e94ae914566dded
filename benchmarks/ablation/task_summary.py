"""Results with several tasks as Markdown: means over seeds, with intervals over seeds and queries."""

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from .summary import (
    Line,
    Seeds,
    bootstrap_interval,
    describe_runs,
    group_lines,
    markdown_row,
    p_value,
    rsum_by_name,
    with_interval,
)


DRAWS = 1_000  # of the rank correlation, which costs more than a mean

COLUMNS = {
    "rsum": "cross-modal rsum [95%]",
    "images": "image to image mAP [95%]",
    "names": "other wording to name mAP [95%]",
    "sts": "STS-Benchmark Spearman x 100 [95%]",
}


def per_query(line: Line, task: str) -> np.ndarray | None:
    """Compute (queries,), what each query adds to a figure in percent; None where the task was not measured."""
    if task == "rsum":
        return rsum_by_name(line)
    found = line["tasks"].get(task)
    return None if found is None else np.asarray(found["average_precision"]) / len(found["average_precision"])


def spearman_interval(cosines: np.ndarray, scores: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Compute the central 95% of the mean over seeds, when seeds and pairs of texts are drawn with replacement.

    Args:
        cosines: (seeds, pairs); scores: (pairs,).
    """
    generator, (seeds, pairs) = np.random.default_rng(seed), cosines.shape
    means = []
    for _ in range(DRAWS):
        items = generator.integers(pairs, size=pairs)
        chosen = cosines[generator.integers(seeds, size=seeds)][:, items]
        means.append(100 * np.mean([spearmanr(row, scores[items]).statistic for row in chosen]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def cell(runs: list[Line], task: str) -> str:
    """Write the mean and interval of one figure of one row."""
    if task == "sts":
        found = [line["tasks"]["sts"] for line in runs if "sts" in line["tasks"]]
        if not found:
            return "-"
        mean = 100 * float(np.mean([one["metrics"]["spearman"] for one in found]))
        cosines = np.stack([np.asarray(one["cosines"]) for one in found])
        return with_interval(mean, spearman_interval(cosines, np.asarray(found[0]["scores"])))
    items = [per_query(line, task) for line in runs]
    if any(one is None for one in items):
        return "-"
    values = np.stack(items)  # type: ignore[arg-type]
    return with_interval(values.sum(axis=1).mean(), bootstrap_interval(values))


def difference(seeds: Seeds, baseline: Seeds, task: str) -> str:
    """Write how far a row lies above the baseline on the common seeds, with the interval and the p of a paired test
    over queries."""
    common = sorted(set(seeds) & set(baseline))
    pairs = [(per_query(seeds[seed], task), per_query(baseline[seed], task)) for seed in common]
    if not pairs or any(one is None or other is None for one, other in pairs):
        return "-"
    paired = np.stack([one - other for one, other in pairs])  # type: ignore[operator]
    mean = paired.mean(axis=0)
    return f"{with_interval(mean.sum(), bootstrap_interval(paired), '+')}, p {p_value(mean):.3f}"


def task_markdown(lines: list[Line], recipes: dict[str, Any]) -> str:
    """Write all groups, each with a table of figures and one of differences from the baseline.

    Args:
        lines: from the results file.
        recipes: content of the recipe file: `title`, `baseline`, and the order of the `rows`.
    """
    baseline = recipes["baseline"]
    text = [
        f"# {recipes['title']}",
        "",
        f"{describe_runs(lines)} Percent; means over seeds. Rsum is a mean over names: a name that several images "
        "share counts once. Intervals: seeds and queries drawn with replacement (with one seed, queries alone).",
        "",
    ]
    for (name, init, batch, steps, _, _), rows in group_lines(lines).items():
        text += [f"## {name}, {init}, batch {batch}, {steps} steps", ""]
        text += ["| row | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
        order = [row for row in recipes["rows"] if rows.get(row)]
        for row in order:
            cells = [cell(list(rows[row].values()), task) for task in COLUMNS]
            text.append(markdown_row([row, len(rows[row]), *cells]))
        text.append("")
        if others := [row for row in order if row != baseline]:
            text += [f"Less `{baseline}` on the same seeds, with a paired test over queries:", ""]
            text += ["| row | rsum | image to image mAP | other wording to name mAP |", "|---|---|---|---|"]
            for row in others:
                cells = [difference(rows[row], rows.get(baseline, {}), task) for task in ("rsum", "images", "names")]
                text.append(markdown_row([row, *cells]))
            text.append("")
    return "\n".join(text)


__all__ = ["task_markdown"]
