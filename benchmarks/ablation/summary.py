"""Results as Markdown: means over seeds, bootstrap intervals, and paired tests against CLIP's loss.

The figure compared is rsum, the sum of R@1, R@5 and R@10 of both directions. A name that several images share counts
once, with the mean of its queries, which succeed and fail together: one openclipart title covers 28 of the 439 test
images. Names are resampled and exchanged, and both directions share each draw.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


KS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")
DRAWS = 10_000
BASELINE = "clip"
MEASURES = (
    "Recalls in percent, and rsum, are means over names: a name that several images share counts once. CPU seconds "
    'are means over the runs that recorded them, "-" if none did.'
)

Line = dict[str, Any]  # one recorded run
Seeds = dict[int, Line]  # a row's runs by seed
Rows = dict[str, Seeds]


def recall_by_name(line: Line, direction: str, k: int) -> np.ndarray:
    """Compute (names,) float64: the fraction of each name's queries with a positive among the first k."""
    ids = np.asarray(line["query_ids"][direction])
    found = np.asarray(line["ranks"][direction]) <= k
    return np.bincount(ids, found) / np.bincount(ids)


def rsum_by_name(line: Line) -> np.ndarray:
    """Compute (names,) float64: what each name adds to rsum, in percent points."""
    total = np.sum([recall_by_name(line, direction, k) for direction in DIRECTIONS for k in KS], axis=0)
    return 100 * total / len(total)


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Compute the central 95% of the mean over seeds of (seeds, names) values, summed over names, when both seeds and
    names are drawn with replacement: other trainings, and other queries to this gallery."""
    generator, (seeds, names) = np.random.default_rng(seed), values.shape
    means = np.empty(DRAWS)
    for draw in range(DRAWS):
        chosen = values[generator.integers(seeds, size=seeds)].mean(axis=0)
        means[draw] = chosen[generator.integers(names, size=names)].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Paired randomization test, two-sided, of (names,) differences averaged over seeds: how often exchanging the
    two recipes' outcomes, name by name, gives a difference as large."""
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(2, size=(DRAWS, len(differences)), dtype=np.int8)
    room = 1e-9 * np.abs(differences).sum()
    at_least = (np.abs(signs @ differences) >= abs(differences.sum()) - room).sum()
    return float((1 + at_least) / (1 + DRAWS))


def group_lines(lines: list[Line]) -> dict[tuple, Rows]:
    """Group lines by (set, init, batch, nominal steps, noise, budget), then row and seed; the last of equal ones."""
    found: dict[tuple, Rows] = defaultdict(lambda: defaultdict(dict))
    for line in (gallery for each in lines for gallery in each_gallery(each)):
        recipe = line["recipe"]
        key = tuple(recipe[name] for name in ("set", "init", "batch", "steps", "noise", "budget"))
        found[key][recipe["row"]][recipe["seed"]] = line
    for key, rows in found.items():
        if key[-1] == "time":  # CLIP's time is its own steps'
            rows[BASELINE] |= found.get((*key[:-1], "steps"), {}).get(BASELINE, {})
    return found


def each_gallery(line: Line) -> Iterator[Line]:
    """The line of a run, and one more for each other gallery, whose set is named after both."""
    yield line
    for label, results in line.get("other_galleries", {}).items():
        yield line | results | {"recipe": line["recipe"] | {"set": f"{line['recipe']['set']}: {label}"}}


def table(rows: Rows) -> list[str]:
    """Write one group as a Markdown table, the best rsum first."""
    lines = [
        "| row | seeds | steps | CPU seconds | text-to-image R@1 / 5 / 10 | image-to-text R@1 / 5 / 10 | rsum [95%] | "
        "less clip [95%] | p | MVM, MLM rise |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    means = {row: mean_rsum(seeds) for row, seeds in rows.items() if seeds}
    for row in sorted(means, key=lambda name: -means[name]):
        lines.append(table_row(row, rows[row], rows.get(BASELINE, {})))
    return lines


def table_row(row: str, seeds: Seeds, baseline: Seeds) -> str:
    runs = list(seeds.values())
    recalls = [
        " / ".join(f"{100 * np.mean([recall_by_name(line, d, k).mean() for line in runs]):.1f}" for k in KS)
        for d in DIRECTIONS
    ]
    steps = f"{np.mean([line['trained_steps'] for line in runs]):.0f}"
    difference = ("", "") if row == BASELINE else compare_rsum(seeds, baseline)
    rises = ", ".join(token_loss_rise(level, runs) for level in ("mvm", "mlm"))
    cells = [row, len(runs), steps, mean_seconds(runs), *recalls, rsum(runs), *difference, rises]
    return markdown_row(cells)


def markdown_row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def describe_runs(lines: list[Line]) -> str:
    """Write how many runs there are, on which machines, and what they were evaluated on."""
    machines = sorted({f"{line['machine']['processor']}, {line['machine']['cores']} cores" for line in lines})
    others = sorted({f'"{label}"' for line in lines for label in line.get("other_galleries", {})})
    but = f", except for the galleries named after a colon: {', '.join(others)}" if others else ""
    return f"{len(lines)} runs on {'; '.join(machines)}, evaluated on unseen concepts{but}."


def with_interval(mean: float, ends: tuple[float, float], sign: str = "") -> str:
    """Write a mean and its interval, with `sign` "+" as a difference."""
    return f"{mean:{sign}.1f} [{ends[0]:{sign}.1f}, {ends[1]:{sign}.1f}]"


def rsum(runs: list[Line]) -> str:
    """Write the mean rsum of the runs with its interval."""
    values = np.stack([rsum_by_name(line) for line in runs])
    return with_interval(values.mean(axis=0).sum(), bootstrap_interval(values))


def compare_rsum(seeds: Seeds, baseline: Seeds) -> tuple[str, str]:
    """Write the difference of rsum on the common seeds with its interval, and its p; empty without common seeds."""
    common = sorted(set(seeds) & set(baseline))
    if not common:
        return "", ""
    paired = np.stack([rsum_by_name(seeds[seed]) - rsum_by_name(baseline[seed]) for seed in common])
    difference = paired.mean(axis=0)
    return with_interval(difference.sum(), bootstrap_interval(paired), "+"), f"{p_value(difference):.3f}"


def batch_tables(found: dict[tuple, Rows]) -> list[str]:
    """Compare batch sizes that saw equally many pairs with the baseline's largest batch, the best rsum first."""
    alike: dict[tuple, list[tuple[int, int, str, dict]]] = defaultdict(list)
    for (name, init, batch, steps, noise, budget), rows in found.items():
        if not noise and budget == "steps":
            thousands = round(batch * steps / 1000)  # 38 steps of 256 are 128 pairs more than 600 of 16
            alike[name, init, thousands] += [(batch, steps, row, seeds) for row, seeds in rows.items()]
    text = []
    for (name, init, thousands), entries in alike.items():
        largest = max(entries, key=lambda entry: (entry[2] == BASELINE, entry[0]))
        if len({batch for batch, *_ in entries}) == 1 or largest[2] != BASELINE:
            continue
        text += [f"## {name}, {init}, {thousands},000 pairs in batches of all sizes", ""]
        text += [f"| row | batch | steps | seeds | rsum [95%] | less {BASELINE} at {largest[0]} [95%] | p |"]
        text += ["|---|---|---|---|---|---|---|"]
        for batch, steps, row, seeds in sorted(entries, key=lambda entry: -mean_rsum(entry[3])):
            difference = ("", "") if (batch, row) == (largest[0], BASELINE) else compare_rsum(seeds, largest[3])
            text.append(markdown_row([row, batch, steps, len(seeds), rsum(list(seeds.values())), *difference]))
        text.append("")
    return text


def mean_rsum(seeds: Seeds) -> float:
    return float(np.mean([rsum_by_name(line).sum() for line in seeds.values()]))


def mean_seconds(runs: list[Line]) -> str:
    """Write the mean processor seconds of the runs that recorded them, or "-". Seconds of the clock, which all lines
    have, depend on what else ran on the machine."""
    known = [line["processor_seconds"] for line in runs if "processor_seconds" in line]
    return f"{np.mean(known):.0f}" if known else "-"


def token_loss_rise(level: str, runs: list[Line]) -> str:
    """Write by how many percent a token loss rises with a shuffled cross-modal feature, or "-" with the level off."""
    gains = [line["token_gain"][level] for line in runs if level in line.get("token_gain", {})]
    return f"{np.mean([100 * gain['rise'] / gain['loss'] for gain in gains]):+.1f}%" if gains else "-"


def noise_table(rows: Rows) -> list[str]:
    """Write how well the filter did over the run, for rows with a noise report."""
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


def markdown(lines: list[Line], title: str = "Does COTS beat the plain recipe?") -> str:
    """Write batches of all sizes side by side, then all groups, each with its table."""
    text = [f"# {title}", ""]
    text += [f"{describe_runs(lines)} {MEASURES}", ""]
    found = group_lines(lines)
    text += batch_tables(found)
    for key, rows in found.items():
        name, init, batch, steps, noise, budget = key
        length = f"{steps} steps" if budget == "steps" else f"the time of {steps} steps of {BASELINE}"
        noisy = f", {noise:.0%} of the captions shuffled" if noise else ""
        text += [f"## {name}, {init}, batch {batch}, {length}{noisy}", "", *table(rows), ""]
        if noise:
            text += [*noise_table(rows), ""]
    return "\n".join(text)
