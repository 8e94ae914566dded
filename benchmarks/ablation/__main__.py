"""`python -m benchmarks.ablation run | plan | summary`: see `make ablation`.

A run recorded in the results file is not repeated; one that was killed starts again.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .measure import measure
from .plan import RECIPES, Recipes
from .results import Results
from .sets import AblationSet
from .summary import markdown
from .task_summary import task_markdown
from .timing import measure_cost


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train the recipes, and compare them.")

RESULTS = Path("benchmarks/results/ablation.jsonl")
OVERHEAD = 20.0  # seconds of a run outside its steps: loading, evaluation

Sets = Annotated[
    list[str], typer.Option("--set", help="emoji, emoji_1000, openclipart, ...; replaces those of the stages.")
]
Inits = Annotated[list[str], typer.Option("--init", help="scratch, text, frozen_text, heads, ...")]
Rows = Annotated[list[str], typer.Option("--row", help="Rows of the recipe file.")]
Batches = Annotated[list[int], typer.Option("--batch", help="Pairs per step.")]
Steps = Annotated[list[int], typer.Option("--steps", help="Optimizer steps of the baseline.")]
Budgets = Annotated[list[str], typer.Option("--budget", help="steps, time.")]
Noises = Annotated[list[float], typer.Option("--noise", help="Fraction of the training captions that are shuffled.")]
Seeds = Annotated[list[int], typer.Option("--seed", help="Seeds of data order, weights and masks.")]
RecipeFile = Annotated[Path, typer.Option("--recipes", help="The recipe file.")]
ResultsFile = Annotated[Path, typer.Option("--results", help="The results file, JSON lines.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Every row for a few steps.")]


@app.command()
def run(
    minutes: Annotated[float | None, typer.Option(help="Start no run that would end later than this.")] = None,
    sets: Sets = [],  # noqa: B006 (typer copies them)
    inits: Inits = [],  # noqa: B006
    rows: Rows = [],  # noqa: B006
    batches: Batches = [],  # noqa: B006
    steps: Steps = [],  # noqa: B006
    budgets: Budgets = [],  # noqa: B006
    noises: Noises = [],  # noqa: B006
    seeds: Seeds = [],  # noqa: B006
    results_file: ResultsFile = RESULTS,
    recipe_file: RecipeFile = RECIPES,
    work: Annotated[Path, typer.Option(help="Folder for data sets, image tokenizers, timings.")] = Path(
        "runs/ablation"
    ),
    deb: Annotated[Path | None, typer.Option(help="The package openclipart-svg; else apt downloads it.")] = None,
    smoke: Smoke = False,
) -> None:
    """Train the runs that are not recorded yet, the most informative first."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    recipes, table = Recipes(recipe_file), Results(results_file)
    dimensions: dict[str, Any] = {"sets": sets, "inits": inits, "rows": rows, "batches": batches, "steps": steps}
    dimensions |= {"budgets": budgets, "noises": noises, "seeds": seeds}
    runs = recipes.runs(smoke, **dimensions)
    finished = table.finished()
    todo = [one for one in runs if recipes.key(one) not in finished]
    typer.echo(f"{len(runs)} runs, {len(runs) - len(todo)} of them in {results_file}")
    work.mkdir(parents=True, exist_ok=True)
    prepared: dict[str, AblationSet] = {}
    for number, one in enumerate(todo, start=1):
        if deadline and time.monotonic() + OVERHEAD > deadline:
            typer.echo(f"time is up: {len(todo) - number + 1} runs remain for the next call")
            break
        if one.set not in prepared:
            prepared[one.set] = AblationSet.prepare(one.set, work, deb)
        data, length = prepared[one.set], one.steps
        if deadline or one.budget == "time":
            cost = measure_cost(recipes, one, data, work, smoke)
            length = one.steps if one.budget == "steps" else max(1, round(one.steps / cost["ratio"]))
            if deadline and time.monotonic() + length * cost["seconds"] + OVERHEAD > deadline:
                typer.echo(f"no time for {one}: {length * cost['seconds']:.0f} s")
                continue
        with tempfile.TemporaryDirectory() as output:
            line = measure(recipes, one, data, Path(output), length, smoke)
        table.append(line)
        recalls = {name: round(values["R@10"], 1) for name, values in line["metrics"].items()}
        typer.echo(f"{number}/{len(todo)} {one}: R@10 {recalls}, {line['seconds']:.0f} s")


@app.command()
def plan(results_file: ResultsFile = RESULTS, recipe_file: RecipeFile = RECIPES, smoke: Smoke = False) -> None:
    """Print all runs in their order, and whether each is recorded."""
    recipes, finished = Recipes(recipe_file), Results(results_file).finished()
    for one in recipes.runs(smoke):
        typer.echo(f"{'done' if recipes.key(one) in finished else '    '}  {recipes.key(one)}  {one}")


@app.command()
def summary(
    results_file: ResultsFile = RESULTS,
    recipe_file: RecipeFile = RECIPES,
    output: Annotated[Path | None, typer.Option(help="Markdown file; else it is printed.")] = None,
) -> None:
    """Write tables with means over seeds, intervals, and paired tests against the baseline."""
    lines = Results(results_file).lines()
    if not lines:
        typer.echo(f"error: no results in {results_file}", err=True)
        raise typer.Exit(2)
    recipes = Recipes(recipe_file).content
    text = task_markdown(lines, recipes) if recipes.get("tasks") else markdown(lines, recipes["title"])
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
