"""An exported model in an interpreter without torch gives what it gives beside torch.

By default imports find no torch; `make test-no-torch` names an interpreter in whose environment there is none.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from hf_cots import ImageIndex
from tests.scripts import exported_verbs
from tests.support.paths import ROOT
from tests.support.processes import ENVIRONMENT


pytest.importorskip("fastapi")
PYTHON = os.environ.get("HF_COTS_PYTHON_WITHOUT_TORCH")


def without_torch(*arguments, **environment):
    """A finished interpreter without torch that has run a script."""
    command = [PYTHON or sys.executable, *map(str, arguments), *([] if PYTHON else ["hide"])]
    environment = ENVIRONMENT | environment
    if PYTHON:  # hf_cots is installed there
        del environment["PYTHONPATH"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def folders(exported, world_of_exports, tmp_path_factory):
    """What the verbs write beside torch, and without it."""
    root = tmp_path_factory.mktemp("without")
    given = exported, world_of_exports.imagefolder, world_of_exports.parquet
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_COTS_CACHE", str(root / "cache"))
        exported_verbs.run(*given, root / "beside")
    script = ROOT / "tests" / "scripts" / "exported_verbs.py"
    done = without_torch(script, *given, root / "without", HF_COTS_CACHE=str(root / "other cache"))
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-3000:]  # neither torch nor accelerate
    return root / "beside", root / "without"


def test_its_index_has_the_same_vectors(folders):
    beside, without = (ImageIndex.open(folder / "index") for folder in folders)
    assert beside.paths == without.paths
    np.testing.assert_array_equal(beside.embeds, without.embeds)
    assert beside.meta["fingerprint"] == without.meta["fingerprint"]


def test_its_searches_and_its_server_find_the_same(folders):
    beside, without = (json.loads((folder / "found.json").read_text()) for folder in folders)
    assert beside == without
    assert [len(answer) for answer in beside["served"]] == [40, 39]
    assert len(beside["text"]) == 40


def test_its_evaluation_is_the_same(folders):
    beside, without = (json.loads((folder / "report.json").read_text()) for folder in folders)
    packages = beside.pop("environment")["packages"].keys() - without.pop("environment")["packages"].keys()
    assert {"torch", "accelerate"} <= packages or not PYTHON  # imports that are hidden are installed all the same
    assert beside == without
    assert beside["transductive"]


def test_a_model_that_was_not_exported_says_what_to_do(world_of_exports, tmp_path):
    script = tmp_path / "load.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'scripts')!r})\n"
        "import exported_verbs\n"
        "if 'hide' in sys.argv: exported_verbs.hide_torch()\n"
        "from hf_cots.cli import app\n"
        f"app(['search', {str(world_of_exports.model)!r}, {str(world_of_exports.imagefolder)!r}, 'red'])\n"
    )
    done = without_torch(script)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = " ".join(done.stderr.split())
    assert "torch is not installed, and only exported models run without it: pip install torch, or run" in message


def test_the_documented_requirements_are_those_of_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    lists = dict(re.findall(r"^(\w+) = \[(.*?)\]", project, re.MULTILINE | re.DOTALL))
    known = {name: set(re.findall(r'"([^"]+)"', lists[name])) for name in ("dependencies", "onnx", "search", "serve")}
    needed = {each for each in known["dependencies"] if not each.startswith(("torch>", "accelerate", "evaluate"))}
    needed -= {"huggingface_hub>=1.31", "safetensors>=0.8"}  # transformers asks for them
    needed |= known["search"] | known["serve"] | {each for each in known["onnx"] if each.startswith("onnxruntime")}
    for path, start in (("docs/export.md", 'pip install "'), ("Makefile", "NO_TORCH := ")):
        line = next(line for line in (ROOT / path).read_text().splitlines() if line.startswith(start))
        assert set(re.findall(r'"([^"]+)"', line)) == needed, path
