"""The examples run as they stand, on a tiny world."""

import runpy
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.user_folder import make_user_folder


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RUNS = {
    "train": (["my_pairs/", "my_test_pairs/"], "eval_text_to_image_R@1", "runs/train/model/model.safetensors"),
    "search": (["my_model", "my_photos/", "a red circle", "my_simla"], ".png", "my_photos"),
    "evaluate": (["my_model", "my_test_pairs/"], "image_to_text: R@1/5/10", "my_model"),
    "fine_tune": (["my_model", "my_pairs/", "my_test_pairs/"], "R@5", "runs/fine_tune/model/model.safetensors"),
}


def test_every_example_is_tested_and_short():
    assert {path.stem for path in EXAMPLES} == set(RUNS)
    for path in EXAMPLES:
        text = path.read_text()
        assert len(text.splitlines()) < 60
        assert "from hf_cots." not in text, "examples use public names"


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, world, tmp_path, monkeypatch, capsys):
    arguments, printed, written = RUNS[name]
    make_user_folder(world, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert printed in capsys.readouterr().out
    assert (tmp_path / written).exists()
