"""COOKIE's ablation: its rows, the tasks beside retrieval, the summary, and a smoke run of the command."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.ablation.plan import Recipes, Run
from benchmarks.ablation.results import Results
from benchmarks.ablation.sets import AblationSet
from benchmarks.ablation.task_summary import spearman_interval, task_markdown
from benchmarks.ablation.tasks import image_retrieval, other_wordings, retrieve_names
from hf_cots import CookieConfig
from tests.benchmarks.support import recorded_line, run_command
from tests.support.paths import ROOT


RECIPES = ROOT / "benchmarks" / "ablation" / "cookie.yaml"
ROWS = ["cm", "unshared", "shared", "shared+visual", "shared+textual", "all"]


@pytest.fixture(scope="module")
def recipes():
    return Recipes(RECIPES)


def test_the_rows_are_those_of_the_specification(recipes):
    assert list(recipes.content["rows"]) == ROWS
    configs = {
        row: CookieConfig(**recipes.flags(Run("emoji", "text", row, 32, 100, "steps", 0, 0))["config_overrides"])
        for row in ROWS
    }
    fields = ("num_shared_layers", "share_weights", "visual_weight", "textual_weight")
    assert {row: tuple(getattr(one, field) for field in fields) for row, one in configs.items()} == {
        "cm": (0, True, 0, 0),
        "unshared": (2, False, 0, 0),
        "shared": (2, True, 0, 0),
        "shared+visual": (2, True, 1, 0),
        "shared+textual": (2, True, 0, 1),
        "all": (2, True, 1, 1),
    }
    runs = recipes.runs()
    assert [run.row for run in runs[:6]] == ROWS
    alike = {(run.set, run.row, run.seed) for run in runs[: 6 * 3 * 2]}
    assert alike == set(itertools.product(("emoji", "openclipart"), ROWS, (0, 1, 2)))
    assert {run.steps for run in runs[: 6 * 3 * 2]} == {200}


def test_other_wordings_differ_in_more_than_punctuation():
    assert other_wordings("203c-fe0f", "double exclamation mark") == ["bangbang"]
    assert other_wordings("2195-fe0f", "up-down arrow") == ["arrow up down"]
    assert other_wordings("1f600", "grinning face") == ["grinning"]


# ---------------------------------------------------------------------- the tasks, of an encoder that is known


class Letters:
    """Embeds a text by its letters, and an image by its mean color."""

    def encode_texts(self, texts, batch_size=256):
        rows = torch.tensor([[text.count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1)

    def encode_images(self, images, batch_size=64, total=None):
        rows = torch.tensor(np.stack([np.asarray(image).mean(axis=(0, 1)) for image in images]), dtype=torch.float32)
        return torch.nn.functional.normalize(rows, dim=1)


def test_names_are_retrieved_by_other_wordings(tmp_path):
    rows = [
        {"codepoints": "203c-fe0f", "text": "double exclamation mark"},
        {"codepoints": "203c-fe0f", "text": "double exclamation mark"},  # the other style is no second query
        {"codepoints": "1f600", "text": "grinning face"},
        {"codepoints": "1f441", "text": "bang"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = retrieve_names(Letters(), tmp_path / "metadata.jsonl")
    assert result.gallery.tolist() == [3, 3]
    # "bangbang" is nearest to "bang", and "grinning" to "grinning face".
    assert result.columns["R@1"].tolist() == [0, 100]


def test_openclipart_images_retrieve_their_category(tmp_path):
    folder = tmp_path / "openclipart"
    (folder / "test").mkdir(parents=True)
    colors = {"a1": (250, 10, 10), "a2": (240, 20, 20), "b1": (10, 10, 250), "b2": (20, 25, 240), "c1": (10, 250, 10)}
    rows = []
    for name, color in colors.items():
        Image.new("RGB", (8, 8), color).save(folder / "test" / f"{name}.png")
        source = {"a": "animals/birds", "b": "food", "c": "tools"}[name[0]]
        rows.append({"file_name": f"{name}.png", "text": name, "source": f"{source}/{name}.svg"})
    (folder / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = image_retrieval(Letters(), AblationSet("openclipart", folder))
    assert result.metrics()["mAP"] == 100
    assert len(result.queries) == 4
    assert result.without_answer == 1


# ---------------------------------------------------------------------- the summary


def cookie_line(row, seed, successes):
    """A run in which so many of 10 queries succeed."""
    scores = np.random.default_rng(seed).uniform(0, 5, 80)
    tasks = {
        "images": {"average_precision": [10.0 * successes] * 30},
        "sts": {"metrics": {"spearman": 0.5}, "cosines": (scores / 5).tolist(), "scores": scores.tolist()},
    }
    return recorded_line(row, seed, [1 if i % 10 < successes else 20 for i in range(40)], tasks)


def test_the_summary_compares_with_the_baseline(recipes):
    lines = [cookie_line("cm", seed, 2) for seed in (0, 1)] + [cookie_line("all", seed, 8) for seed in (0, 1)]
    text = task_markdown(lines, recipes.content)
    assert text.startswith("# What do shared weights")
    assert "| cm | 2 | 120.0 [" in text
    assert "| all | 2 | 480.0 [" in text
    assert "20.0 [20.0, 20.0] | - | 50.0 [" in text, "names were not measured"
    differences = [row for row in text.splitlines() if row.startswith("| all | +")]
    assert len(differences) == 1
    assert "| all | +360.0 [" in differences[0]
    assert "+60.0 [+60.0, +60.0], p 0.000" in differences[0]


def test_spearman_interval():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=300)
    cosines = (scores + generator.normal(size=300))[None]
    low, high = spearman_interval(cosines, scores)
    assert low < 69 < high  # of a correlation of 1/sqrt(2), 6/pi asin(r/2) = 0.69
    assert 5 < high - low < 18
    assert spearman_interval(scores[None], scores) == pytest.approx((100, 100), abs=1e-10)


# ---------------------------------------------------------------------- the command


def test_a_smoke_from_one_command(work, tmp_path):
    """Two rows train, and the summary has their figures."""
    results, report = tmp_path / "results.jsonl", tmp_path / "report.md"
    files = ["--recipes", RECIPES, "--results", results]
    run_command("run", *files, "--smoke", "--work", work, "--row", "unshared", "--row", "all")
    run_command("summary", *files, "--output", report)
    lines = Results(results).lines()
    assert [line["recipe"]["row"] for line in lines] == ["unshared", "all"]
    for line in lines:
        on = {name for name in ("cross_modal", "visual", "textual") if line["losses"][f"loss_{name}"] > 0}
        assert on == ({"cross_modal", "visual", "textual"} if line["recipe"]["row"] == "all" else {"cross_modal"})
        assert set(line["tasks"]) >= {"images", "names"}
        for task in ("images", "names"):
            found = line["tasks"][task]
            assert found["metrics"]["mAP"] == pytest.approx(np.mean(found["average_precision"]), abs=1e-3)
            assert found["metrics"]["queries"] == len(found["average_precision"]) > 5
            assert found["metrics"]["mAP"] > 0.5 * found["chance"]["mAP"] > 0
    assert report.read_text().count("| unshared |") == 2
