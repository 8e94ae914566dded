"""Results with several tasks as Markdown: means over seeds, and intervals over seeds and queries."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from .summary import groups, interval, p_value, shares


DRAWS = 1_000  # of the rank correlation, which costs more than a mean

COLUMNS = {
    "rsum": "cross-modal rsum [95%]",
    "images": "image to image mAP [95%]",
    "names": "other wording to name mAP [95%]",
    "sts": "STS-Benchmark Spearman x 100 [95%]",
}


def per_item(line: dict[str, Any], task: str) -> np.ndarray | None:
    """(items,) what each query adds to a figure in percent; None where the task was not measured."""
    if task == "rsum":
        return shares(line)
    found = line["tasks"].get(task)
    return None if found is None else np.asarray(found["average_precision"]) / len(found["average_precision"])


def spearman_interval(cosines: np.ndarray, scores: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The central 95% of the mean over seeds, when seeds and pairs of texts are drawn with replacement.

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


def with_interval(mean: float, ends: tuple[float, float], sign: str = "") -> str:
    return f"{mean:{sign}.1f} [{ends[0]:{sign}.1f}, {ends[1]:{sign}.1f}]"


def cell(runs: list[dict[str, Any]], task: str) -> str:
    """Mean and interval of one figure of one row."""
    if task == "sts":
        found = [line["tasks"]["sts"] for line in runs if "sts" in line["tasks"]]
        if not found:
            return "-"
        mean = 100 * float(np.mean([one["metrics"]["spearman"] for one in found]))
        cosines = np.stack([np.asarray(one["cosines"]) for one in found])
        return with_interval(mean, spearman_interval(cosines, np.asarray(found[0]["scores"])))
    items = [per_item(line, task) for line in runs]
    if any(one is None for one in items):
        return "-"
    own = np.stack([one for one in items if one is not None])
    return with_interval(own.sum(axis=1).mean(), interval(own))


def difference(
    seeds: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]], of: Callable[[dict], np.ndarray | None]
) -> str:
    """How far a row lies above the baseline on the seeds that both have, with the interval, and the p of a paired test
    over queries."""
    pairs = [(of(seeds[seed]), of(baseline[seed])) for seed in sorted(set(seeds) & set(baseline))]
    if not pairs or any(one is None or other is None for one, other in pairs):
        return "-"
    paired = np.stack([one - other for one, other in pairs])  # type: ignore[operator]
    mean = paired.mean(axis=0)
    return f"{with_interval(mean.sum(), interval(paired), '+')}, p {p_value(mean):.3f}"


def task_markdown(lines: list[dict[str, Any]], recipes: dict[str, Any]) -> str:
    """All groups, each with a table of figures and one of differences from the baseline.

    Args:
        lines: of the file of results.
        recipes: the content of the recipes' file: `title`, `baseline`, and the order of the `rows`.
    """
    baseline = recipes["baseline"]
    machines = sorted({f"{line['machine']['processor']}, {line['machine']['cores']} cores" for line in lines})
    text = [
        f"# {recipes['title']}",
        "",
        f"{len(lines)} runs on {'; '.join(machines)}. Percent, on unseen concepts; means over seeds. Intervals: seeds "
        "and queries drawn with replacement (with one seed, queries alone).",
        "",
    ]
    for (of_set, init, batch, steps, _, _), rows in groups(lines).items():
        text += [f"## {of_set}, {init}, batch {batch}, {steps} steps", ""]
        text += ["| row | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
        order = [row for row in recipes["rows"] if rows.get(row)]
        for row in order:
            cells = [cell(list(rows[row].values()), task) for task in COLUMNS]
            text.append(f"| {row} | {len(rows[row])} | {' | '.join(cells)} |")
        text += ["", f"Less `{baseline}` on the same seeds, with a paired test over queries:", ""]
        text += ["| row | rsum | image to image mAP | other wording to name mAP |", "|---|---|---|---|"]
        for row in order:
            if row != baseline:
                cells = [
                    difference(rows[row], rows.get(baseline, {}), lambda line, task=task: per_item(line, task))
                    for task in ("rsum", "images", "names")
                ]
                text.append(f"| {row} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


__all__ = ["task_markdown"]
