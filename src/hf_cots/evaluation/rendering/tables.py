"""Results as tables, for the terminal and for Markdown."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

from ...search.encoders import DIRECTIONS


BAR = 20  # characters for 100 percent
ROWS = {
    "R@1": "R@1",
    "R@5": "R@5",
    "R@10": "R@10",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "MRR": "MRR",
    "nDCG@10": "nDCG@10",
    "mAP": "mAP",
    **{f"fractional_R@{k}": f"fractional R@{k}" for k in (1, 5, 10)},
}


def terminal_table(results: dict[str, dict[str, float]], title: str | None = None) -> Table:
    """Rows of recall in percent, for the terminal."""
    table = Table(title=title)
    for heading in ("", "R@1", "R@5", "R@10", "median rank", "queries", "gallery"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in results.items():
        recalls = [f"{values[f'R@{k}']:.1f}" for k in (1, 5, 10)]
        rest = [f"{values['median_rank']:g}", str(values["queries"]), str(values["gallery"])]
        table.add_row(name.replace("_", " "), *recalls, *rest)
    return table


def report_tables(report: dict[str, Any]) -> list[Table]:
    """The tables of an evaluation's report: metrics with intervals beside chance, the comparison, re-ranking, and each
    transductive re-scoring under its label."""
    directions = {name: report[name] for name in DIRECTIONS}
    tables = [_figures(report, directions)]
    if "comparison" in report:
        tables.append(_comparison(report["model"]["name"], report["comparison"], directions))
    for rescored in report.get("transductive", []):
        tables.append(_rescored(rescored, directions))
    if "reranking" in report:
        tables += _reranking(report["reranking"])
    return tables


def _table(title: str, directions: dict[str, Any], *more: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in directions:
        for heading in (name.replace("_", " "), *more):
            table.add_column(heading, justify="right")
    return table


def _add_rows(table: Table, directions: dict[str, Any], cells: Callable[[str, str], list[str]]) -> None:
    """One row a metric; fractional recall only where it is not recall itself."""
    many = any(values["fractional_R@10"] != values["R@10"] for values in directions.values())
    for metric, label in ROWS.items():
        if many or not metric.startswith("fractional"):
            table.add_row(label, *(cell for name in directions for cell in cells(name, metric)))


def _figures(report: dict[str, Any], directions: dict[str, Any]) -> Table:
    table = _table(f"{report['model']['name']}: shares in percent, 95% intervals", directions, "chance")

    def cells(name: str, metric: str) -> list[str]:
        values = directions[name]
        return [with_interval(values[metric], values["intervals"][metric]), f"{report['chance'][name][metric]:.1f}"]

    _add_rows(table, directions, cells)
    for size in ("queries", "gallery"):
        table.add_row(size, *(cell for values in directions.values() for cell in (str(values[size]), "")))
    table.add_row("rsum", with_interval(report["rsum"], report["rsum_interval"]), "", "", "")
    return table


def _comparison(model: str, comparison: dict[str, Any], directions: dict[str, Any]) -> Table:
    table = _table(f"{model} less {comparison['model']['name']}, paired 95% intervals", directions, "p")
    differences = comparison["differences"]

    def cells(name: str, metric: str) -> list[str]:
        return _difference(differences[name][metric])

    _add_rows(table, directions, cells)
    table.add_row("rsum", *_difference(differences["total"]["rsum"]), "", "")
    return table


def _rescored(rescored: dict[str, Any], directions: dict[str, Any]) -> Table:
    table = _table(f"{rescored['text_to_image']['rescoring']}: not comparable with plain figures", directions, "plain")

    def cells(name: str, metric: str) -> list[str]:
        return [f"{rescored[name][metric]:.1f}", f"{directions[name][metric]:.1f}"]

    _add_rows(table, directions, cells)
    return table


def _reranking(reranking: dict[str, Any]) -> list[Table]:
    """Recall against cost: a table of each direction, with the curve of R@1 as bars."""
    tables = []
    for name in DIRECTIONS:
        title = f"{name.replace('_', ' ')}, re-ranked by {reranking['reranker']['name']}: 95% intervals"
        table = Table(title=title, title_justify="left")
        for heading in ("k", "pairs a query", "ms a query", "R@1", "R@5", "R@10", ""):
            table.add_column(heading, justify="right" if heading else "left")
        for row in reranking["rows"]:
            values = row[name]
            recalls = [with_interval(values[f"R@{k}"], values["intervals"][f"R@{k}"]) for k in (1, 5, 10)]
            cost = [f"{values['pairs_per_query']:.1f}", f"{values['milliseconds_per_query']:.2f}"]
            table.add_row(str(row["k"]), *cost, *recalls, "▇" * round(BAR * values["R@1"] / 100))
        tables.append(table)
    gain = {name: reranking["comparison"][name]["R@1"] for name in DIRECTIONS}
    tables[-1].caption = "; ".join(
        f"{name.replace('_', ' ')} R@1 with k={reranking['k']} less without: "
        f"{with_interval(value['difference'], value['interval'])}, p {value['p_value']:.4f}"
        for name, value in gain.items()
    )
    return tables


def task_table(report: dict[str, Any], task: str, digits: int = 1) -> Table:
    """The figures of a task with their intervals beside chance, and its sizes.

    Args:
        report: of [`hf_cots.evaluation.tasks.run`].
        task: its entry, such as "zero_shot".
        digits: after the point.
    """
    values, chance = report[task], report["chance"][task]
    table = Table(title=f"{report['model']['name']}: {task.replace('_', ' ')}, 95% intervals", title_justify="left")
    for heading in ("", report["data"]["name"], "chance"):
        table.add_column(heading, justify="right" if heading else "left")
    for metric, value in values.items():
        label = metric.replace("_", " ")
        if metric in chance:
            figure = with_interval(value, values["intervals"][metric], digits)
            table.add_row(label, figure, f"{chance[metric]:.{digits}f}")
        elif metric != "intervals":
            table.add_row(label, str(value), "")
    return table


def with_interval(value: float, interval: list[float], digits: int = 1) -> str:
    """ "12.3 [10.0, 14.6]"."""
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _difference(values: dict[str, Any]) -> list[str]:
    low, high = values["interval"]
    p_value = f"{values['p_value']:.4f}" if "p_value" in values else ""
    return [f"{values['difference']:+.1f} [{low:+.1f}, {high:+.1f}]", p_value]


def markdown_table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table of both directions."""
    rows = ["| direction | R@1 | R@5 | R@10 | median rank | queries | gallery |", "|---|---|---|---|---|---|---|"]
    for direction, values in results.items():
        recalls = " | ".join(f"{values[f'R@{k}']:.1f}" for k in (1, 5, 10))
        rows.append(
            f"| {direction.replace('_', ' ')} | {recalls} | {values['median_rank']:g} | {values['queries']} | "
            f"{values['gallery']} |"
        )
    return "\n".join(rows)
