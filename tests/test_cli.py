"""`hf-cots`, as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from hf_cots.cli import app
from tests.worlds import World, draw


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_verb():
    result = call("--help")
    assert result.exit_code == 0
    for verb in ("demo", "train", "search", "evaluate", "tokenize", "inspect"):
        assert verb in result.output


def test_search_prints_the_best_files_first(world, tmp_path):
    for colour in ("red", "green", "black"):
        draw(colour, "circle", "left").save(tmp_path / f"{colour}.png")
    (tmp_path / "broken.png").write_bytes(b"<html>")
    result = call("search", world.model, tmp_path, "a red circle", "-k", 2)
    assert result.exit_code == 0
    lines = [line.split("  ", 1) for line in result.stdout.splitlines() if line]
    assert len(lines) == 2
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    assert all(path.startswith(str(tmp_path)) and path.endswith(".png") for _, path in lines)
    assert "left out" in result.stderr
    assert "broken.png" in "".join(result.stderr.split())
    assert "left out" not in result.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "/nothing/here"}, "no such folder"),
        ({"text": " "}, "the query is empty"),
        ({"k": 0}, "k must be at least 1"),
        ({"model": "/nothing/model"}, "error:"),
    ],
)
def test_search_errors_are_one_line(world, change, message):
    asked = {"model": world.model, "folder": world.imagefolder, "text": "red", "k": 3} | change
    result = call("search", asked["model"], asked["folder"], asked["text"], "-k", asked["k"])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_evaluate_prints_a_table_and_writes_json(world, tmp_path):
    output = tmp_path / "deep" / "results.json"
    result = call("evaluate", world.model, world.parquet, "--output", output)
    assert result.exit_code == 0, result.output
    assert "text to image" in result.output
    results = json.loads(output.read_text())
    assert results.keys() == {"text_to_image", "image_to_text"}
    for values in results.values():
        assert values.keys() == {"R@1", "R@5", "R@10", "median_rank", "queries", "gallery"}
        assert values["gallery"] == 40


def test_evaluate_takes_a_plain_folder(world):
    assert call("evaluate", world.model, world.imagefolder).exit_code == 0


def test_evaluate_names_a_missing_column(world):
    result = call("evaluate", world.model, world.parquet, "--caption-column", "words")
    assert result.exit_code == 2
    assert "no column 'words'" in " ".join(result.stderr.split())


def test_train_takes_the_flags_of_the_module(world, tmp_path):
    result = call("train", *world.flags(tmp_path, max_steps=1))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_train_errors_are_one_line(world, tmp_path):
    result = call("train", *world.flags(tmp_path, train_data=tmp_path / "nothing.csv"))
    assert result.exit_code != 0
    assert "nothing.csv" in str(result.exception) + result.output
    assert isinstance(result.exception, SystemExit)


def test_train_help_is_that_of_the_module():
    result = call("train", "--help")
    assert result.exit_code == 0
    assert "--train_data" in result.output
