"""`make cards`: write the figures of the model cards anew from the recorded results.

A card holds its figures in blocks, each of which names a macro in the card's Jinja file in `figures/`:

    <!-- figures: retrieval -->
    | R@1 | 22.6 |
    <!-- end of figures -->

Sentences of texts without blocks, such as the README's, are templates in `claims.yaml`: a test looks for what they
give.
"""

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined


ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
CLAIMS = Path(__file__).with_name("claims.yaml")
FIGURES = Path(__file__).with_name("figures")
WIDTH = 130  # of a line of the cards
WAYS = {"text_to_image": "text to image", "image_to_text": "image to text"}
BLOCK = re.compile(r"(?P<begin><!-- figures: (?P<name>\w+) -->\n).*?(?P<end><!-- end of figures -->)", re.DOTALL)


# ---------------------------------------------------------------------- what templates call


@cache
def load(path: str) -> Any:
    """A JSON file; the path starts at the root of the repository."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


@cache
def tables(path: str, corner: str | None = None) -> dict[str, dict[str, dict[str, str]]]:
    """The tables of a Markdown file: cells by heading, row and column. Tables of a section share their rows; of equal
    rows, such as those of several batch sizes, the first one is meant, and the second of equal columns is called after
    the one before it. With `corner`, only tables whose first column has this name."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for section in (ROOT / path).read_text(encoding="utf-8").split("\n## ")[1:]:
        rows = found.setdefault(section.partition("\n")[0], {})
        columns: list[str] = []
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not line.startswith("|"):
                columns = []
            elif not columns:
                for name in (cell.removesuffix(" [95%]") for cell in cells):
                    columns.append(f"{columns[-1]}, {name}" if name in columns else name)
            elif not line.startswith("|---") and corner in (None, columns[0]):
                row = rows.setdefault(cells[0], {})
                row.update({name: cell for name, cell in zip(columns, cells) if name not in row})
    return found


@cache
def table(path: str, heading: str, corner: str) -> dict[str, dict[str, str]]:
    """A table of a Markdown file: in the section whose heading starts so, that with this name of the first column."""
    (section,) = (one for one in tables(path, corner) if one.startswith(heading))
    return tables(path, corner)[section]


@cache
def lines(path: str) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def runs(path: str, **recipe: str | int) -> list[dict[str, Any]]:
    """The lines of an ablation whose recipes have these values."""
    return [line for line in lines(path) if recipe.items() <= line["recipe"].items()]


def measured_with(path: str, **recipe: str | int) -> str:
    """The sentence that says with what a JSON file was measured, or the lines of an ablation with these recipes."""
    machines = [line["machine"] for line in (runs(path, **recipe) if path.endswith(".jsonl") else [load(path)])]
    torch, transformers, python, processor = (
        " and ".join(sorted({machine[name] for machine in machines}))
        for name in ("torch", "transformers", "python", "processor")
    )
    return f"Measured with PyTorch {torch}, transformers {transformers} and Python {python} on {processor}."


def fixed(value: float | str, digits: int = 1) -> str:
    """A number with so many digits after the point, and commas between thousands."""
    return f"{float(value):,.{digits}f}"


def signed(value: float | str, digits: int = 1) -> str:
    """The same with its sign."""
    return f"{float(value):+,.{digits}f}"


def interval(ends: list[float], sign: str = "") -> str:
    """An interval in brackets, with `sign` "+" of a difference."""
    return f"[{ends[0]:{sign}.1f}, {ends[1]:{sign}.1f}]"


def p(value: float | str, name: str = "p ") -> str:
    """A p-value to one digit, or that it is below what ten thousand permutations can tell."""
    number = Decimal(str(value))
    if number < Decimal("0.0005"):
        return f"{name}< 0.001"
    return f"{name}{number.quantize(Decimal(1).scaleb(number.adjusted()), ROUND_HALF_UP).normalize():f}"


def mean(cell: str) -> str:
    """The number of a cell "193.3 [170.9, 216.4]"."""
    return cell.partition(" [")[0]


def beside_best(cells: dict[str, str], recall: str = "R@1") -> str:
    """A recall of a row of `rerank_at_scale.md`, and in brackets its difference to the best dual encoder's and p; bold
    if it is ahead with p < 0.05."""
    value = cells[recall].partition(" ±")[0]
    less = cells["less the best's" if recall == "R@1" else f"{recall}, less the best's"]
    if not less:  # the best itself
        return value
    difference, number = mean(less), less.rpartition(", p ")[2]
    mark = "**" if float(number) < 0.05 and float(difference) > 0 else ""
    return f"{mark}{value}{mark} ({difference}, {number})"


def recalls(values: dict[str, float], separator: str = " / ") -> str:
    """R@1, R@5 and R@10."""
    return separator.join(f"{values[f'R@{k}']:.1f}" for k in (1, 5, 10))


def rsum(directions: dict[str, dict[str, float]]) -> str:
    """R@1, R@5 and R@10 of both directions, added up."""
    return f"{sum(directions[way][f'R@{k}'] for way in WAYS for k in (1, 5, 10)):.1f}"


def first_right(answers: list[dict[str, Any]]) -> str:
    """The rank of the first right answer, in words."""
    ranks = [rank for rank, answer in enumerate(answers, start=1) if answer["right"]]
    return f"at rank {ranks[0]}" if ranks else f"not among the first {len(answers)}"


def with_intervals(values: dict[str, Any]) -> str:
    """R@1, R@5 and R@10 as three cells, each with its interval."""
    names = [f"R@{k}" for k in (1, 5, 10)]
    return " | ".join(f"{values[name]:.1f} {interval(values['intervals'][name])}" for name in names)


@cache
def make_environment() -> Environment:
    """Where the templates are, and what they call."""
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(FIGURES), autoescape=False, **options)
    functions = (load, tables, table, lines, runs, measured_with)
    environment.globals |= {function.__name__: function for function in functions} | {"ways": WAYS}
    filters = (fixed, signed, interval, p, mean, beside_best, recalls, with_intervals, rsum, first_right)
    environment.filters |= {function.__name__: function for function in filters} | {"median": median}
    return environment


# ---------------------------------------------------------------------- cards and claims


def render(template: str) -> str:
    """What a sentence's template gives."""
    return make_environment().from_string(template).render()


def rewrite(text: str, card: str) -> str:
    """The text of a card with all its blocks written anew.

    Raises:
        jinja2.exceptions.UndefinedError: if the results have no such figure.
    """
    if not BLOCK.search(text):
        return text
    macros = make_environment().get_template(f"{card}.md").module
    return BLOCK.sub(lambda block: f"{block['begin']}{tidy(getattr(macros, block['name'])())}\n{block['end']}", text)


def tidy(text: str) -> str:
    """What a template gives, with its paragraphs broken into lines."""
    lines = (line.strip() for line in text.strip().splitlines())
    return "\n".join(line if line.startswith("|") else textwrap.fill(line, WIDTH) for line in lines)


def cards() -> list[Path]:
    """The cards, in order of their names."""
    return sorted(CARDS.glob("*/README.md"))


def claims() -> Iterator[tuple[str, str]]:
    """The file and the template of each sentence that is looked for."""
    for path, sentences in yaml.safe_load(CLAIMS.read_text(encoding="utf-8")).items():
        yield from ((path, sentence) for sentence in sentences)


def missing_claims() -> list[str]:
    """The sentences that the texts ought to have, by the results, and have not."""
    found = []
    for path, template in claims():
        text, sentence = ((ROOT / path).read_text(encoding="utf-8"), render(template))
        if " ".join(sentence.split()) not in " ".join(text.split()):
            found.append(f"{path}: {' '.join(sentence.split())}")
    return found


def main() -> int:
    """Write the cards; tell which sentences a person must change."""
    for path in cards():
        before = path.read_text(encoding="utf-8")
        after = rewrite(before, path.parent.name)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    missing = missing_claims()
    for line in missing:
        print(f"not in the text any more: {line}", file=sys.stderr)
    return len(missing) > 0


if __name__ == "__main__":
    sys.exit(main())
