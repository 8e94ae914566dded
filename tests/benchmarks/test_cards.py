"""The figures in the model cards are those in the results."""

import json
import re
from functools import cache

import pytest

from benchmarks.ablation.results import Results
from tests.support.paths import ROOT


RESULTS, CARDS = ROOT / "benchmarks" / "results", ROOT / "model_cards"
FIGURE = re.compile(r"(?<![\w.])(p (?:< |below )?)?([-+]?)(\d[\d,]*\.\d+)(?![\w.])")
TABLES = {
    "cots-warm": RESULTS / "ablation.md",
    "cots-scratch": RESULTS / "ablation.md",
    "cookie-emoji": CARDS / "cookie-emoji" / "ablation.md",
}
# Figures that no results file holds: settings, versions, and times that were read off other runs.
NOT_RECORDED = {
    "cots-warm": {"0.995", "0.99", "0.05", "0.1", "0.9", "1.05", "1.09"},
    "cots-scratch": {"1.6", "1.05"},
    # Steps relative to `cm`, a bound of p-values, and the comparison of `all` with 600 steps of `cm`.
    "cookie-emoji": {"1.3", "1.9", "2.1", "2.7", "28.7", "9.4", "50.5", "0.001"},
}


@cache
def recorded(card):
    """All numbers of the card's table of results, p-values among them, and the rsum of every single run."""
    text = TABLES[card].read_text(encoding="utf-8")
    numbers = {float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)}
    runs = "ablation.jsonl" if card != "cookie-emoji" else "cookie_ablation.jsonl"
    for line in Results(RESULTS / runs).lines():
        numbers.add(sum(v for d in line["metrics"].values() for name, v in d.items() if name.startswith("R@")))
    return numbers


def is_recorded(figure, numbers):
    """Whether one of the numbers is the figure when it is rounded to as many digits."""
    digits = len(figure.partition(".")[2])
    half = 0.5 * 10**-digits + 1e-9
    return any(abs(number - float(figure)) <= half for number in numbers)


@pytest.mark.parametrize("card", TABLES)
def test_every_figure_of_a_card_is_in_the_results(card):
    text = (CARDS / card / "README.md").read_text(encoding="utf-8")
    figures = {match[3].replace(",", "") for match in FIGURE.finditer(text)} - NOT_RECORDED[card]
    assert len(figures) > 15
    assert sorted(figure for figure in figures if not is_recorded(figure, recorded(card))) == []


def table(heading):
    """Rsum by row of a section of ablation.md."""
    section = (RESULTS / "ablation.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    head, _, *rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    rsum = next(i for i, name in enumerate(head) if name.strip().startswith("rsum"))
    return {row[0].strip(): row[rsum].strip() for row in rows}


@pytest.mark.parametrize(
    ("begin", "row"),
    [
        ("| **COTS's momentum contrast** |", "momentum"),
        ("| with the task level at 0.1 | 194", "momentum+task"),
        ("| with the filter at 3 deviations |", "momentum+filter"),
        ("| CLIP's contrast |", "clip"),
        ("| with the task level at 0.1 | 181", "in_batch+task"),
        ("| ALBEF's:", "albef"),
        ("| SigLIP's sigmoid |", "siglip"),
    ],
)
def test_the_rows_of_cots_warm(begin, row):
    lines = (CARDS / "cots-warm" / "README.md").read_text(encoding="utf-8").splitlines()
    cells = next(line for line in lines if line.startswith(begin)).strip("|").split("|")
    for cell, data in ((cells[1], "emoji"), (cells[3], "openclipart")):
        assert table(f"{data}, heads, batch 16, 600 steps")[row].startswith(cell.strip())


def test_the_epochs_of_cots_warm():
    """Three, six and twelve epochs of 1,000 pairs: the last one said 82.6, where the results say 83.7."""
    found = [
        table(f"{data}_1000, heads, batch 16, {steps} steps")["momentum"].split()[0]
        for data in ("emoji", "openclipart")
        for steps in (188, 375, 750)
    ]
    wanted = f"{', '.join(found[:3])} / {', '.join(found[3:])}"
    assert wanted in " ".join((CARDS / "cots-warm" / "README.md").read_text(encoding="utf-8").split())


def all_numbers(value):
    """The numbers in a JSON document, and as percent and milliseconds."""
    if isinstance(value, dict):
        return {number for entry in value.values() for number in all_numbers(entry)}
    if isinstance(value, list):
        return {number for entry in value for number in all_numbers(entry)}
    return {abs(value), 100 * abs(value)} if isinstance(value, (int, float)) else set()


def test_the_figures_of_simla_emoji():
    """Those of the tables and of the times; what is said of other runs' losses is in no results file."""
    text = (CARDS / "simla-emoji" / "README.md").read_text(encoding="utf-8")
    numbers = all_numbers(json.loads((RESULTS / "simla_rerank.json").read_text(encoding="utf-8")))
    lines = [line for line in text.splitlines() if line.startswith("| ") or "re-ranked" in line or "COTS 0.0" in line]
    figures = {match[3] for line in lines for match in FIGURE.finditer(line)}
    assert len(figures) > 40
    assert sorted(figure for figure in figures if not is_recorded(figure, numbers)) == []
