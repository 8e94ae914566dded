"""Tables of results, for the terminal and for Markdown."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

from ...search.encoders import DIRECTIONS


BAR = 20  # characters for 100 percent
RECALLS, FRACTIONAL_RECALLS = ("R@1", "R@5", "R@10"), ("fractional_R@1", "fractional_R@5", "fractional_R@10")
METRICS = (*RECALLS, "median_rank", "mean_rank", "MRR", "nDCG@10", "mAP", *FRACTIONAL_RECALLS)
RECALL_HEADINGS = (*RECALLS, "median rank", "queries", "gallery")


def terminal_table(results: dict[str, dict[str, float]], title: str | None = None) -> Table:
    """Tabulate recall in percent, one row per named result, for the terminal."""
    table = Table(title=title)
    for heading in ("", *RECALL_HEADINGS):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in results.items():
        table.add_row(name.replace("_", " "), *_recall_cells(values))
    return table


def markdown_table(results: dict[str, dict[str, float]]) -> str:
    """Tabulate recall in percent, one row per direction, in Markdown."""
    rows = [(name.replace("_", " "), *_recall_cells(values)) for name, values in results.items()]
    heading, *body = [f"| {' | '.join(row)} |" for row in [("direction", *RECALL_HEADINGS), *rows]]
    return "\n".join([heading, "|---|---|---|---|---|---|---|", *body])


def card_table(report: dict[str, Any]) -> str:
    """Tabulate recall in percent for a model card in Markdown: a row per direction with intervals, and one for chance.

    Args:
        report: from [`hf_cots.evaluation.retrieval.report.RetrievalResult.to_dict`].
    """
    lines = [f"| direction | {' | '.join(RECALL_HEADINGS)} |", "|---|---|---|---|---|---|---|"]
    for name in DIRECTIONS:
        cells = _recall_cells(report[name])
        cells[:3] = [with_interval(report[name][metric], report[name]["intervals"][metric]) for metric in RECALLS]
        lines.append(f"| {' | '.join([name.replace('_', ' '), *cells])} |")
    chance = [f"{report['chance'][DIRECTIONS[0]][metric]:.1f}" for metric in RECALLS]
    return "\n".join([*lines, f"| chance | {' | '.join(chance)} | | | |"])


def _recall_cells(values: dict[str, float]) -> list[str]:
    recalls = [f"{values[metric]:.1f}" for metric in RECALLS]
    return [*recalls, f"{values['median_rank']:g}", str(values["queries"]), str(values["gallery"])]


def report_tables(report: dict[str, Any]) -> list[Table]:
    """Tabulate the report of an evaluation.

    Returns:
        Tables of the metrics with intervals and chance, the comparison if there is one, each transductive re-scoring,
        and recall against cost if there was re-ranking.
    """
    directions = {name: report[name] for name in DIRECTIONS}
    tables = [_metrics_table(report, directions)]
    if "comparison" in report:
        tables.append(_comparison_table(report["model"]["name"], report["comparison"], directions))
    for rescored in report.get("transductive", []):
        tables.append(_rescored_table(rescored, directions))
    if "reranking" in report:
        tables += _reranking_tables(report["reranking"])
    if "num_frames" in report["data"]:
        for table in tables:
            for column in table.columns:
                column.header = str(column.header).replace("image", "video")
    return tables


def _direction_table(
    title: str, directions: dict[str, Any], second: str, cells: Callable[[str, str], tuple[str, str]]
) -> Table:
    """Build a table with a row per metric and two columns per direction; fractional recall is left out if it equals
    recall.

    Args:
        title: title of the table.
        directions: metrics by direction.
        second: heading of the second column of each direction.
        cells: returns the two cells for the names of a direction and a metric.
    """
    table = Table("", title=title, title_justify="left")
    for name in directions:
        table.add_column(name.replace("_", " "), justify="right")
        table.add_column(second, justify="right")
    several_answers = any(values["fractional_R@10"] != values["R@10"] for values in directions.values())
    for metric in METRICS:
        if several_answers or metric not in FRACTIONAL_RECALLS:
            table.add_row(metric.replace("_", " "), *(cell for name in directions for cell in cells(name, metric)))
    return table


def _metrics_table(report: dict[str, Any], directions: dict[str, Any]) -> Table:
    def cells(name: str, metric: str) -> tuple[str, str]:
        values, chance = directions[name], report["chance"][name]
        return with_interval(values[metric], values["intervals"][metric]), f"{chance[metric]:.1f}"

    table = _direction_table(f"{report['model']['name']}: percent, 95% intervals", directions, "chance", cells)
    for size in ("queries", "gallery"):
        table.add_row(size, *(cell for values in directions.values() for cell in (str(values[size]), "")))
    table.add_row("rsum", with_interval(report["rsum"], report["rsum_interval"]), "", "", "")
    return table


def _comparison_table(model: str, comparison: dict[str, Any], directions: dict[str, Any]) -> Table:
    differences = comparison["differences"]
    title = f"{model} minus {comparison['model']['name']}, paired 95% intervals"
    table = _direction_table(title, directions, "p", lambda name, metric: _difference(differences[name][metric]))
    table.add_row("rsum", *_difference(differences["total"]["rsum"]), "", "")
    return table


def _rescored_table(rescored: dict[str, Any], directions: dict[str, Any]) -> Table:
    def cells(name: str, metric: str) -> tuple[str, str]:
        return f"{rescored[name][metric]:.1f}", f"{directions[name][metric]:.1f}"

    title = f"{rescored['text_to_image']['rescoring']}: not comparable with plain metrics"
    return _direction_table(title, directions, "plain", cells)


def _reranking_tables(reranking: dict[str, Any]) -> list[Table]:
    """Build tables of recall against cost, one per direction, with bars for R@1."""
    tables = []
    for name in DIRECTIONS:
        title = f"{name.replace('_', ' ')}, re-ranked by {reranking['reranker']['name']}: 95% intervals"
        table = Table(title=title, title_justify="left")
        for heading in ("k", "pairs a query", "ms a query", *RECALLS, ""):
            table.add_column(heading, justify="right" if heading else "left")
        for row in reranking["rows"]:
            values = row[name]
            recalls = [with_interval(values[metric], values["intervals"][metric]) for metric in RECALLS]
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
    """Tabulate the metrics of a task with intervals and chance, and its sizes.

    Args:
        report: from [`hf_cots.evaluation.tasks.run`].
        task: name of its entry, such as "zero_shot".
        digits: digits after the decimal point.
    """
    values, chance = report[task], report["chance"][task]
    table = Table(title=f"{report['model']['name']}: {task.replace('_', ' ')}, 95% intervals", title_justify="left")
    for heading in ("", report["data"]["name"], "chance"):
        table.add_column(heading, justify="right" if heading else "left")
    for metric, value in values.items():
        label = metric.replace("_", " ")
        if metric in chance:
            cell = with_interval(value, values["intervals"][metric], digits)
            table.add_row(label, cell, f"{chance[metric]:.{digits}f}")
        elif metric != "intervals":
            table.add_row(label, str(value), "")
    return table


def with_interval(value: float, interval: list[float], digits: int = 1) -> str:
    """Format a value and its interval, as in "12.3 [10.0, 14.6]"."""
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _difference(values: dict[str, Any]) -> tuple[str, str]:
    low, high = values["interval"]
    p_value = f"{values['p_value']:.4f}" if "p_value" in values else ""
    return f"{values['difference']:+.1f} [{low:+.1f}, {high:+.1f}]", p_value
