"""`hf-cots doctor`: report on the installation, or estimate the cost of a training run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .app import app, console


if TYPE_CHECKING:
    from ..doctor import Finding
    from ..training.plan_run import Plan


@app.command(rich_help_panel="Installation")
def doctor(
    plan: Annotated[
        Path | None, typer.Option(help="Training recipe: estimate its memory and time from a few real steps.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Report versions, devices, extras, Hub access and caches. Exits with 1 if a required package is missing or
    wrong."""
    if plan is not None:
        show_plan(make_plan(plan), as_json)
        return
    from ..doctor import examine

    sections = examine()
    if as_json:
        typer.echo(json.dumps({name: [asdict(each) for each in found] for name, found in sections.items()}, indent=2))
    else:
        show_findings(sections)
    if any(each.wrong for found in sections.values() for each in found):
        raise typer.Exit(1)


def show_findings(sections: dict[str, list["Finding"]]) -> None:
    """Print all findings as one table."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for title, found in sections.items():
        table.add_row(f"[bold]{title}[/bold]", "", "")
        for each in found:
            style = "red" if each.wrong else "yellow" if each.advice else ""
            table.add_row(*map(escape, (f"  {each.name}", each.value, each.advice)), style=style)
    console.print(table)


def make_plan(recipe: Path) -> "Plan":
    """Build the recipe's trainer with a temporary output folder and time a few steps."""
    import tempfile

    from ..train import build_trainer
    from ..training.arguments import parse_recipe
    from ..training.plan_run import plan_run

    with tempfile.TemporaryDirectory() as folder:
        return plan_run(build_trainer(*parse_recipe(recipe, output_dir=folder, report_to="none")))


def show_plan(plan: "Plan", as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        typer.echo(json.dumps(plan.to_dict(), indent=2))
        return
    table = Table("part", "parameters", "trained", box=None, pad_edge=False)
    for name, (total, trained) in plan.parameters.items():
        table.add_row(name, f"{total:,}", f"{trained:,}")
    console.print(table)
    hours = plan.steps * plan.seconds / 3600
    data = "a stream" if plan.pairs is None else f"{plan.pairs:,} pairs"
    typer.echo(f"{plan.steps:,} steps of {plan.batch:,} of {data}")
    typer.echo(f"{plan.seconds:.3f} s per step, {plan.batch / plan.seconds:.0f} pairs/s: {hours:.2f} hours in total")
    typer.echo(f"peak memory {plan.gib:.1f} GiB; the limit is {plan.bottleneck}")
