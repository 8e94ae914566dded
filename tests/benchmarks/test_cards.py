"""The figures in the model cards, the README and the table of results are those that were recorded."""

import json
import re
from functools import cache

import pytest
import torch
from transformers import BertConfig, ViTConfig

from benchmarks import cards
from benchmarks.ablation.results import Results
from benchmarks.growth import small_config
from hf_cots import CookieConfig, CookieModel, COTSModel
from tests.support.paths import ROOT


RESULTS, CARDS = ROOT / "benchmarks" / "results", ROOT / "model_cards"
FIGURE = re.compile(r"(?<![\w.])(p (?:< |below )?)?([-+]?)(\d[\d,]*\.\d+)(?!\w|\.\d)")
# Where the figures of a text come from that stand neither in a block nor in a claim.
SOURCES = {
    "README.md": ["benchmarks/results/ablation.md"],
    "docs/results.md": [
        *("benchmarks/results/ablation.md", "benchmarks/results/icons.md", "benchmarks/results/fine_tuning.md"),
        "benchmarks/results/ablation.jsonl",  # of single runs
        *("model_cards/cookie-emoji/ablation.md", "model_cards/cots-emoji/results.json"),
        *("benchmarks/results/rerank_at_scale.md", "benchmarks/results/video.md"),
        *("benchmarks/results/comparisons.json",),
    ],
    "model_cards/cookie-emoji/README.md": ["model_cards/cookie-emoji/ablation.md"],
    "model_cards/cots-emoji/README.md": ["model_cards/cots-emoji/results.json"],
    "model_cards/cots-icons/README.md": [
        *("model_cards/cots-icons/results.json", "model_cards/cots-icons/export.json"),
    ],
    "model_cards/cots-scratch/README.md": ["benchmarks/results/ablation.md", "benchmarks/results/ablation.jsonl"],
    "model_cards/cots-warm/README.md": ["benchmarks/results/ablation.md", "benchmarks/results/ablation.jsonl"],
    "model_cards/cots-video/README.md": [
        *("model_cards/cots-video/results.json", "model_cards/cots-video/demo.json"),
    ],
    "model_cards/e5-multilingual/README.md": ["benchmarks/results/e5_multilingual.json"],
    "model_cards/minilm-multilingual/README.md": ["benchmarks/results/multilingual.json"],
    "model_cards/simla-emoji/README.md": ["benchmarks/results/simla_rerank.json"],
}
# Figures that no results file holds, and why.
NOT_RECORDED = {
    # times of steps, taken by hand; a mean over two tables; a setting
    "docs/results.md": {"1.09", "1.24", "1.44", "1.57", "1.72", "1.86", "120.4", "0.99"},
    "model_cards/cookie-emoji/README.md": {
        *("1.3", "1.9"),  # steps relative to `cm`
        *("28.7", "9.4", "50.5", "0.001"),  # the comparison of `all` with 600 steps of `cm`
    },
    "model_cards/cots-base/README.md": {"5.3"},  # million pairs of the paper
    "model_cards/cots-emoji/README.md": {
        # from scratch
        *(
            "0.3",
            "1.7",
            "3.5",
            "6.3",
            "7.3",
            "8.0",
            "8.7",
            "10.8",
            "23.3",
            "23.7",
            "24.0",
            "25.1",
            "25.8",
            "26.5",
            "32.4",
            "35.9",
            "36.6",
            "36.9",
            "37.6",
            "38.0",
        ),
        *("32.5", "42.5", "64.4", "68.7", "85.7", "92.9"),  # by kind of emoji
    },
    "model_cards/cots-icons/README.md": {
        *("1.6", "0.05"),  # million parameters, and a setting
        *("1.5", "11.8", "12.7", "15.2", "7.5"),  # found on the way
    },
    "model_cards/cots-warm/README.md": {"0.99", "0.995", "1.05", "1.09"},  # settings, and times of steps
    "model_cards/e5-multilingual/README.md": {"0.9998", "0.98", "0.99"},  # cosines: taken by hand, and of the package
    "model_cards/simla-emoji/README.md": {"0.59", "0.636"},  # losses of runs that were not kept
}
NOT_KEPT = "No results file was kept"  # cards all of whose figures stand there alone say so


def cards_and_texts():
    return [
        path.relative_to(ROOT).as_posix() for path in (*cards.cards(), ROOT / "README.md", ROOT / "docs/results.md")
    ]


def outside(name):
    """A text without its blocks, its code, and the sentences that claims stand for."""
    text = cards.BLOCK.sub("", (ROOT / name).read_text(encoding="utf-8"))
    text = " ".join(re.sub(r"```.*?```|`[^`]*`|CC-BY\S*", "", text, flags=re.DOTALL).split())
    for path, template in cards.claims():
        if path == name:
            text = text.replace(" ".join(re.sub("`[^`]*`", "", cards.render(template)).split()), "")
    return text


def all_numbers(value):
    """The numbers in a JSON document, and as percent."""
    if isinstance(value, dict):
        return {number for entry in value.values() for number in all_numbers(entry)}
    if isinstance(value, list):
        return {number for entry in value for number in all_numbers(entry)}
    return {abs(value), 100 * abs(value)} if isinstance(value, (int, float)) else set()


@cache
def recorded(path):
    """All numbers of a results file, p-values among them; of single runs their rsum."""
    if path.endswith(".jsonl"):
        lines = Results(ROOT / path).lines()
        return {sum(v for d in line["metrics"].values() for n, v in d.items() if n.startswith("R@")) for line in lines}
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".json"):
        return all_numbers(json.loads(text))
    return {float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)}


def is_recorded(figure, numbers):
    """Whether one of the numbers is the figure when it is rounded to as many digits."""
    digits = len(figure.partition(".")[2])
    half = 0.5 * 10**-digits + 1e-9
    return any(abs(number - float(figure)) <= half for number in numbers)


@pytest.mark.parametrize("name", [path.parent.name for path in cards.cards()])
def test_the_blocks_of_a_card_are_as_make_cards_writes_them(name):
    text = (CARDS / name / "README.md").read_text(encoding="utf-8")
    assert cards.rewrite(text, name) == text, "run `make cards`"


def test_every_macro_has_its_block():
    """A card that lost a block would be tested no more."""
    for path in sorted(cards.FIGURES.glob("*.md")):
        card = (CARDS / path.stem / "README.md").read_text(encoding="utf-8")
        macros = re.findall(r"{% macro (\w+)\(\) %}", path.read_text(encoding="utf-8"))
        assert [block["name"] for block in cards.BLOCK.finditer(card)] == macros, path.name


def test_the_sentences_with_figures_are_as_recorded():
    assert cards.missing_claims() == []


@pytest.mark.parametrize("name", cards_and_texts())
def test_every_other_figure_is_recorded_or_known_not_to_be(name):
    text = outside(name)
    if NOT_KEPT in text:
        return
    figures = {match[3].replace(",", "") for match in FIGURE.finditer(text)}
    known = NOT_RECORDED.get(name, set())
    numbers = {number for path in SOURCES.get(name, []) for number in recorded(path)}
    assert sorted(figure for figure in figures - known if not is_recorded(figure, numbers)) == []
    assert known <= figures, "no longer in the text"


def test_few_cards_have_figures_that_nobody_can_check():
    found = [name for name in cards_and_texts() if NOT_KEPT in (ROOT / name).read_text(encoding="utf-8")]
    assert found == ["model_cards/dvae-emoji/README.md", "model_cards/dvae-openclipart/README.md"]


@pytest.mark.parametrize("name", [path.parent.name for path in cards.cards()])
def test_a_card_says_that_there_are_no_weights_and_that_its_recipe_was_not_run(name):
    text = " ".join((CARDS / name / "README.md").read_text(encoding="utf-8").split())
    assert re.search("no weights are published", text, re.IGNORECASE)
    recipes = " ".join(path.read_text(encoding="utf-8") for path in (CARDS / name).glob("*.yaml"))
    not_run = "Expected figures: none measured by us" in recipes
    assert ("nothing was measured" in text) == not_run
    assert not not_run or "it has not been run, only parsed by a test" in text


def test_the_parameters_of_cookie_base():
    """Those of cots-base and simla-base are tested beside their models."""
    with torch.device("meta"):
        model = CookieModel(CookieConfig(vision_config=ViTConfig(image_size=224), text_config=BertConfig()))
    text = (CARDS / "cookie-base" / "README.md").read_text(encoding="utf-8")
    assert f"{sum(each.numel() for each in model.parameters()):,} parameters at inference" in text
    assert f"{sum(each.numel() for each in model.transformer.parameters()):,} of them in the shared" in text


def test_the_parameters_of_cots_small():
    with torch.device("meta"):
        model = COTSModel(small_config())
    text = (CARDS / "cots-small" / "README.md").read_text(encoding="utf-8")
    assert f"{sum(each.numel() for each in model.parameters()):,} parameters at" in text


# ---------------------------------------------------------------------- the writing itself


def test_a_changed_result_changes_the_card(monkeypatch):
    """The guard of the tests above: they can fail."""
    load = cards.load.__wrapped__
    results = load("model_cards/cots-emoji/results.json")
    results["cots"]["text_to_image"]["R@1"] = 99.25
    monkeypatch.setitem(cards.make_environment().globals, "load", lambda path: results)
    text = (CARDS / "cots-emoji" / "README.md").read_text(encoding="utf-8")
    cards.make_environment().cache.clear()
    changed = cards.rewrite(text, "cots-emoji")
    cards.make_environment().cache.clear()
    assert changed != text
    assert "| 99.2 [" in changed


def test_tables_of_a_section_share_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    (tmp_path / "t.md").write_text(
        "# all\n\n## a set\n\n| row | rsum [95%] |\n|---|---|\n| x | 1.5 [1.0, 2.0] |\n| x | 9 |\n\nLess:\n\n"
        "| row | p |\n|---|---|\n| x | 0.004 |\n"
    )
    found = cards.tables.__wrapped__("t.md")
    assert found == {"a set": {"x": {"row": "x", "rsum": "1.5 [1.0, 2.0]", "p": "0.004"}}}
    assert cards.mean(found["a set"]["x"]["rsum"]) == "1.5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.000", "p < 0.001"),
        ("0.004", "p 0.004"),
        (0.0451, "p 0.05"),
        ("0.118", "p 0.1"),
        ("1.000", "p 1"),
        (1e-4, "p < 0.001"),
    ],
)
def test_p_values(value, text):
    assert cards.p(value) == text
