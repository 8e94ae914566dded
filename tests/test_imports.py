"""`import hf_cots` costs nothing, every public name is there when it is used, and the Auto classes know our models."""

import ast
import importlib
import resource
import subprocess
import sys

import pytest

import hf_cots
from tests.support.paths import ROOT


def run(code: str) -> float:
    """CPU seconds of a fresh interpreter that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        ("import hf_cots", 0.2),
        ("from hf_cots.cli import app; app(['--help'], standalone_mode=False)", 0.5),
        ("from hf_cots.cli import app; app(['evaluate', '--help'], standalone_mode=False)", 0.5),
    ],
)
def test_heavy_libraries_are_imported_when_they_are_needed(code, seconds):
    check = "import sys; heavy = {'torch', 'transformers', 'datasets', 'numpy', 'PIL'} & sys.modules.keys()"
    assert run(f"{code}; {check}; assert not heavy, heavy") < seconds + run("pass")


def test_every_public_name_is_there_and_known_to_type_checkers():
    """The imports for type checkers are those that happen on first use."""
    source = ast.parse((ROOT / "src" / "hf_cots" / "__init__.py").read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    typed = {alias.asname: f".{node.module}" for node in block.body for alias in node.names}
    assert typed == hf_cots._MODULE_OF
    for name, module in typed.items():
        assert getattr(hf_cots, name) is getattr(importlib.import_module(module, "hf_cots"), name)
    assert {*hf_cots.__all__} <= {*dir(hf_cots)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(hf_cots, "nothing")  # noqa: B009


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_cots",
        "from transformers import AutoModel; import hf_cots",
        "import hf_cots; from transformers import PreTrainedModel",  # imports AutoConfig on its way, unfinished
        "import hf_cots, transformers.pipelines; from transformers import Trainer",
        "import transformers, hf_cots, sentence_transformers",
    ],
)
def test_the_auto_classes_know_our_models(world, imports):
    code = f"""
{imports}
import transformers
for kind in ("cots", "simla", "cookie", "cots_image_tokenizer"):
    config = transformers.AutoConfig.for_model(kind)
for auto in ("AutoModel", "AutoModelForPreTraining", "AutoModelForZeroShotImageClassification"):
    assert type(transformers.AutoConfig.for_model("cots")) in getattr(transformers, auto)._model_mapping, auto
model = transformers.AutoModel.from_pretrained({str(world.model)!r})
processor = transformers.AutoProcessor.from_pretrained({str(world.model)!r})
assert (type(model).__module__, type(processor).__name__) == ("hf_cots.models.modeling_cots", "COTSProcessor")
"""
    run(code)
