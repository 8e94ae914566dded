"""Results as Markdown: means over seeds, bootstrap intervals, and paired tests against CLIP's loss.

What is compared is rsum, the sum of R@1, R@5 and R@10 of both directions. A name that several pictures bear counts
once, with the mean of its queries, which succeed and fail together: one title of openclipart's has 28 of 439 test
pictures. Names are what is resampled and exchanged, and both directions share each draw.
"""

from collections import defaultdict
from typing import Any

import numpy as np


KS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")
DRAWS = 10_000
BASELINE = "clip"


def hits(line: dict[str, Any], direction: str, k: int) -> np.ndarray:
    """(names,) float64: the share of each name's queries that find an answer among the first k."""
    ids = np.asarray(line["query_ids"][direction])
    found = np.asarray(line["ranks"][direction]) <= k
    return np.bincount(ids, found) / np.bincount(ids)


def shares(line: dict[str, Any]) -> np.ndarray:
    """(names,) float64: what each name adds to rsum, in percent points."""
    total = sum(hits(line, direction, k) for direction in DIRECTIONS for k in KS)
    return 100 * total / len(total)


def interval(of_seeds: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The central 95% of the mean over seeds of (seeds, names) shares, when seeds and names are both drawn with
    replacement: other trainings, and other queries to this gallery."""
    generator, (seeds, names) = np.random.default_rng(seed), of_seeds.shape
    means = np.empty(DRAWS)
    for draw in range(DRAWS):
        chosen = of_seeds[generator.integers(seeds, size=seeds)].mean(axis=0)
        means[draw] = chosen[generator.integers(names, size=names)].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Paired randomisation test, two-sided, of (names,) differences averaged over seeds: how often exchanging the
    two recipes' outcomes, name by name, gives a difference as large."""
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(2, size=(DRAWS, len(differences)), dtype=np.int8)
    room = 1e-9 * np.abs(differences).sum()
    at_least = (np.abs(signs @ differences) >= abs(differences.sum()) - room).sum()
    return float((1 + at_least) / (1 + DRAWS))


def groups(lines: list[dict[str, Any]]) -> dict[tuple, dict[str, dict[int, dict[str, Any]]]]:
    """Lines by (set, init, batch, nominal steps, noise, budget), then by row and seed; the newest of equal ones."""
    found: dict[tuple, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        recipe = line["recipe"]
        key = tuple(recipe[name] for name in ("set", "init", "batch", "steps", "noise", "budget"))
        found[key][recipe["row"]][recipe["seed"]] = line
    for key, rows in found.items():
        if key[-1] == "time":  # CLIP's time is its own steps'
            rows[BASELINE] |= found.get((*key[:-1], "steps"), {}).get(BASELINE, {})
    return found


def table(rows: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """One group as a Markdown table, the best rsum first."""
    lines = [
        "| row | seeds | steps | seconds | text-to-image R@1 / 5 / 10 | image-to-text R@1 / 5 / 10 | rsum [95%] | "
        "less clip [95%] | p | MVM, MLM rise |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    means = {row: mean_rsum(seeds) for row, seeds in rows.items() if seeds}
    for row in sorted(means, key=lambda name: -means[name]):
        lines.append(table_row(row, rows[row], rows.get(BASELINE, {})))
    return lines


def table_row(row: str, seeds: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> str:
    runs = list(seeds.values())

    def mean(of) -> float:
        return float(np.mean([of(line) for line in runs]))

    recalls = [
        " / ".join(f"{100 * mean(lambda line, d=direction, k=k: hits(line, d, k).mean()):.1f}" for k in KS)
        for direction in DIRECTIONS
    ]
    against, p = ("", "") if row == BASELINE else compared(seeds, baseline)
    gains = [rise(level, runs) for level in ("mvm", "mlm")]
    cells = [
        row,
        len(runs),
        f"{mean(lambda line: line['trained_steps']):.0f}",
        clock(runs),
    ]
    cells += [*recalls, rsum(runs), against, p, ", ".join(gains)]
    return f"| {' | '.join(map(str, cells))} |"


def rsum(runs: list[dict[str, Any]]) -> str:
    """Mean and interval."""
    own = np.stack([shares(line) for line in runs])
    low, high = interval(own)
    return f"{own.mean(axis=0).sum():.1f} [{low:.1f}, {high:.1f}]"


def compared(seeds: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """The difference of rsum over the common seeds with its interval, and its p; empty where there are none."""
    common = sorted(set(seeds) & set(baseline))
    if not common:
        return "", ""
    paired = np.stack([shares(seeds[seed]) - shares(baseline[seed]) for seed in common])
    low, high = interval(paired)
    difference = paired.mean(axis=0)
    return f"{difference.sum():+.1f} [{low:+.1f}, {high:+.1f}]", f"{p_value(difference):.3f}"


def batch_tables(found: dict[tuple, dict[str, dict[int, dict[str, Any]]]]) -> list[str]:
    """Where batches of several sizes saw as many pairs: all of them against the baseline's largest batch, the best
    rsum first."""
    alike: dict[tuple, list[tuple[int, int, str, dict]]] = defaultdict(list)
    for (of_set, init, batch, steps, noise, budget), rows in found.items():
        if not noise and budget == "steps":
            thousands = round(batch * steps / 1000)  # 38 steps of 256 are 128 pairs more than 600 of 16
            alike[of_set, init, thousands] += [(batch, steps, row, seeds) for row, seeds in rows.items()]
    text = []
    for (of_set, init, thousands), entries in alike.items():
        largest = max(entries, key=lambda entry: (entry[2] == BASELINE, entry[0]))
        if len({batch for batch, *_ in entries}) == 1 or largest[2] != BASELINE:
            continue
        text += [f"## {of_set}, {init}, {thousands},000 pairs in batches of all sizes", ""]
        text += [f"| row | batch | steps | seeds | rsum [95%] | less {BASELINE} at {largest[0]} [95%] | p |"]
        text += ["|---|---|---|---|---|---|---|"]
        for batch, steps, row, seeds in sorted(entries, key=lambda entry: -mean_rsum(entry[3])):
            difference = ("", "") if (batch, row) == (largest[0], BASELINE) else compared(seeds, largest[3])
            cells = [row, batch, steps, len(seeds), rsum(list(seeds.values())), *difference]
            text.append(f"| {' | '.join(map(str, cells))} |")
        text.append("")
    return text


def mean_rsum(seeds: dict[int, dict[str, Any]]) -> float:
    return float(np.mean([shares(line).sum() for line in seeds.values()]))


def clock(runs: list[dict[str, Any]]) -> str:
    """Mean seconds of the runs, but of those that were paused for other work, whose line has `"seconds": null`."""
    known = [line["seconds"] for line in runs if line["seconds"] is not None]
    return f"{np.mean(known):.0f}" if known else "-"


def rise(level: str, runs: list[dict[str, Any]]) -> str:
    """By how many percent a token loss rises with a stranger's feature, or "-" where the level is off."""
    gains = [line["token_gain"][level] for line in runs if level in line.get("token_gain", {})]
    return f"{np.mean([100 * gain['rise'] / gain['loss'] for gain in gains]):+.1f}%" if gains else "-"


def noise_table(rows: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """What the filter dropped over time, of the rows that have a noise report."""
    lines = [
        "| row | precision / recall of the filter, in tenths of the run | precision of the audit |",
        "|---|---|---|",
    ]
    for row, seeds in sorted(rows.items()):
        reports = [line["noise"] for line in seeds.values() if "noise" in line]
        if not reports:
            continue
        parts = []
        for tenth in zip(*(report["filter"] for report in reports)):
            pair = [
                [part[name] for part in tenth if part[name] is not None and part["dropped"] > 0]
                for name in ("precision", "recall")
            ]
            parts.append(" / ".join(f"{100 * np.mean(values):.0f}" if values else "-" for values in pair))
        audits = np.mean([report["audit_precision"] for report in reports])
        lines.append(f"| {row} | {', '.join(parts)} | {100 * audits:.0f} |")
    return lines


def markdown(lines: list[dict[str, Any]]) -> str:
    """Batches of all sizes side by side, then all groups, each with its table."""
    text = ["# Does COTS beat the plain recipe?", ""]
    machines = sorted({f"{line['machine']['processor']}, {line['machine']['cores']} cores" for line in lines})
    text += [f"{len(lines)} runs on {'; '.join(machines)}. Recalls in percent, on unseen concepts.", ""]
    found = groups(lines)
    text += batch_tables(found)
    for key, rows in found.items():
        of_set, init, batch, steps, noise, budget = key
        length = f"{steps} steps" if budget == "steps" else f"the time of {steps} steps of {BASELINE}"
        noisy = f", {noise:.0%} of the captions shuffled" if noise else ""
        text += [f"## {of_set}, {init}, batch {batch}, {length}{noisy}", "", *table(rows), ""]
        if noise:
            text += [*noise_table(rows), ""]
    return "\n".join(text)
