"""Results of [`evaluate_retrieval`] as tables, for the terminal and for Markdown."""

from rich.table import Table


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
