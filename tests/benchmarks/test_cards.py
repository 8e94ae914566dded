"""The figures in the model cards, the README and the table of results are those that were recorded."""

import json
import re
from functools import cache, reduce

import pytest
import torch
import yaml
from transformers import BertConfig, ViTConfig

from benchmarks import cards
from benchmarks.growth import small_config
from hf_cots import CookieConfig, CookieModel, COTSModel
from tests.benchmarks.figure_sources import NOT_RECORDED, SOURCES
from tests.support.paths import ROOT


CARDS = ROOT / "model_cards"
DOCS = ("docs/results.md", "docs/search.md", "docs/export.md", "docs/training.md")
# A decimal, a number with commas between thousands, or a whole number with its unit (in "26 to 34 ms" both).
UNIT = (
    r"(?:(?:CPU |core-|unseen )?(?:ms|s|h|seconds?|minutes?|hours?|KB|MB|GB|TB|bytes|GFLOP|steps?|epochs?|mAP"
    r"|pairs|images|drawings|icons|clips|captions|concepts|emoji|queries|names|million|billion)|\w+ per second)\b"
)
FIGURE = re.compile(
    r"(?<![\w.,])(?<!\w-)(?:(?P<figure>\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+)(?!\w|[.,]\d)"
    rf"|(?P<whole>\d+)(?= (?:(?:to|and|or) \d[\d,]* )?(?P<unit>{UNIT})))"
)
NOT_KEPT = "No results file was kept"  # cards all of whose figures stand there alone say so


@cache
def texts():
    """The sections of cards, README and docs, without their blocks, their code, and the sentences of claims: by
    "file#heading", and by the file alone what stands above its first heading of the second level."""
    found = {}
    for path in (*cards.cards(), ROOT / "README.md", *(ROOT / name for name in DOCS)):
        name = path.relative_to(ROOT).as_posix()
        text = re.sub(r"```.*?```", "", cards.BLOCK.sub("", path.read_text(encoding="utf-8")), flags=re.DOTALL)
        above, *parts = re.split(r"^##+ (.+)$", text, flags=re.MULTILINE)
        sections = {name: above} | {f"{name}#{title}": part for title, part in zip(parts[::2], parts[1::2])}
        claims = [plain(cards.render(template)) for where, template in cards.claims() if where == name]
        for section, part in sections.items():
            found[section] = reduce(lambda rest, claim: rest.replace(claim, ""), claims, plain(part))
    return found


def plain(text):
    """A text without its code, in one line."""
    return " ".join(re.sub(r"`[^`]*`|CC-BY\S*", "", text).split())


def figures(text):
    """The figures of a text as they stand there, whole numbers below a thousand with their unit."""
    found = FIGURE.finditer(text)
    return {match["figure"] or f"{match['whole']} {match['unit']}" for match in found}


def numbers(value):
    """The numbers in a JSON or YAML document."""
    if isinstance(value, dict):
        return {number for entry in value.values() for number in numbers(entry)}
    if isinstance(value, list):
        return {number for entry in value for number in numbers(entry)}
    return {abs(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


@cache
def recorded(path):
    """The numbers of a file of results or settings, those of JSON also as percent, and the whole ones among them: of
    Markdown, whose tables have too many, those of headings; of JSON lines settings and sizes, and rsum."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        headings = " ".join(re.findall(r"^#.*", text, flags=re.MULTILINE))
        whole = {int(number) for number in re.findall(r"(?<![\w.])\d+(?![\w.])", headings)}
        return whole | {float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)}, whole
    if path.endswith(".jsonl"):
        found, sums = set(), set()
        for line in cards.lines(path):
            found |= numbers([line.get(key, {}) for key in ("recipe", "trained_steps", "data", "steps")])
            for gallery in (line, *line.get("other_galleries", {}).values()):
                ways = gallery.get("metrics", {}).values()
                found |= {way["queries"] for way in ways}
                sums.add(sum(way[f"R@{k}"] for way in ways for k in (1, 5, 10)))
        return found | sums, {number for number in found if number == int(number)}
    found = numbers(json.loads(text) if path.endswith(".json") else yaml.safe_load(text))
    percent = {100 * number for number in found} if path.endswith(".json") else set()
    return found | percent, {number for number in found if number == int(number)}


def is_recorded(figure, paths):
    """Whether a decimal is one of the numbers when that is rounded to as many digits; a whole number must be equal."""
    value = figure.partition(" ")[0].replace(",", "")
    digits = len(value.partition(".")[2])
    if not digits:
        return any(int(value) in recorded(path)[1] for path in paths)
    half = 0.5 * 10**-digits + 1e-9
    return any(abs(number - float(value)) <= half for path in paths for number in recorded(path)[0])


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


@pytest.mark.parametrize("name", texts())
def test_every_other_figure_is_recorded_or_known_not_to_be(name):
    text = texts()[name]
    if NOT_KEPT in text:
        return
    found, known = figures(text), set(NOT_RECORDED.get(name, ()))
    sources = SOURCES.get(name, SOURCES.get(name.partition("#")[0], ()))
    assert sorted(one for one in found - known if not is_recorded(one, sources)) == []
    assert known <= found, "no longer in the text"


def test_few_cards_have_figures_that_nobody_can_check():
    found = [name for name, text in texts().items() if NOT_KEPT in text]
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


def test_what_counts_as_a_figure():
    text = "57 minutes of 150,766 icons, 26 to 34 ms at 0.5, 823 icons per second; ViT-S/16, Apache-2.0, 3e-5, seed 0"
    assert figures(text) == {"57 minutes", "150,766", "26 ms", "34 ms", "0.5", "823 icons"}


def test_a_decimal_is_rounded_and_a_whole_number_is_not(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"seconds": 56.8, "share": 0.4449, "icons": 150766, "queries": [1405.0]}')
    found = {
        one
        for one in ("56.8", "57 seconds", "44.5", "0.44", "150,766", "150,000", "1,405")
        if is_recorded(one, [path.as_posix()])
    }
    assert found == {"56.8", "44.5", "0.44", "150,766", "1,405"}


def test_a_recall_beside_the_best():
    row = {"R@1": "6.5 ± 0.2", "less the best's": "+1.6 [+0.7, +2.6], p 0.0009", "R@1 among variants": "9.0 ± 1.0"}
    assert cards.beside_best(row) == "**6.5** (+1.6, 0.0009)"
    assert cards.beside_best(row | {"less the best's": "-1.6 [-2.6, -0.7], p 0.0009"}) == "6.5 (-1.6, 0.0009)"
    assert cards.beside_best(row | {"R@1 among variants, less the best's": ""}, "R@1 among variants") == "9.0"


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
