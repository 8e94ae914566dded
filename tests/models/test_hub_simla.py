"""A saved SIMLA as other people get it: by the Auto classes, in a process without the package."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch

from hf_cots import SimlaForPreTraining
from tests.support.tiny_simla import simla_batch, tiny_simla_config
from tests.support.words import tiny_processor


USER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_cots":
            raise ImportError("hf_cots is not installed here")
sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor
folder = sys.argv[1]
expected = torch.load(folder + "/expected.pt")
results = {}
try:
    AutoConfig.from_pretrained(folder + "/model", trust_remote_code=False)
    results["runs nothing without trust"] = False
except ValueError:
    results["runs nothing without trust"] = True
model = AutoModel.from_pretrained(folder + "/model", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder + "/model", trust_remote_code=True)
ids, pixels = expected["input_ids"], expected["pixel_values"]
with torch.no_grad():
    output = model(input_ids=ids, pixel_values=pixels)
    results["class"] = type(model).__name__ == "SimlaModel"
    results["module"] = type(model).__module__.startswith("transformers_modules.")
    results["processor"] = type(processor).__name__ == "COTSProcessor"
    results["image_embeds"] = torch.equal(output.image_embeds, expected["image_embeds"])
    results["text_embeds"] = torch.equal(output.text_embeds, expected["text_embeds"])
    results["match"] = torch.equal(model.match(ids, image_cache=model.cache_image(pixels)), expected["match"])
    results["keywords"] = torch.equal(model.predict_keywords(pixels), expected["keywords"])
    whole = AutoModelForPreTraining.from_pretrained(folder + "/pretraining", trust_remote_code=True).eval()
    results["terms"] = {n: float(whole(pixels, ids)[n]) == v for n, v in expected["terms"].items()}
model.save_pretrained(folder + "/again")
again = AutoModel.from_pretrained(folder + "/again", trust_remote_code=True)
results["saved again"] = torch.equal(again.itm_head.weight, model.itm_head.weight)
json.dump(results, open(folder + "/results.json", "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = SimlaForPreTraining(tiny_simla_config()).eval()
    batch = simla_batch(model)
    ids, pixels = batch["input_ids"][1:], batch["pixel_values"][1:].float()
    with torch.no_grad():
        output, terms = model.simla(input_ids=ids, pixel_values=pixels), model(pixels, ids)
        expected = {
            "input_ids": ids,
            "pixel_values": pixels,
            "image_embeds": output.image_embeds,
            "text_embeds": output.text_embeds,
            "match": model.simla.match(ids, image_cache=model.simla.cache_image(pixels)),
            "keywords": model.simla.predict_keywords(pixels),
            # hard negatives are drawn: of the whole loss the other terms can be compared
            "terms": {name: float(terms[name]) for name in ("loss_itc", "loss_mlm", "loss_mim", "loss_psl")},
        }
    torch.save(expected, folder / "expected.pt")
    model.save_pretrained(folder / "pretraining")
    model.simla.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    return folder


def test_a_process_without_the_package(folder):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    kept |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", USER, str(folder)],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    results |= results.pop("terms")
    assert all(results.values()), results


@pytest.mark.parametrize("name", ["model", "pretraining"])
def test_travelling_code_finds_all_that_it_imports(folder, name):
    paths = list((folder / name).glob("*.py"))
    assert {"modeling_simla.py", "configuration_simla.py"} <= {path.name for path in paths}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (folder / name / f"{node.module}.py").exists(), f"{path.name} wants {node.module}"
    mapped = json.loads((folder / name / "config.json").read_text())["auto_map"]
    assert mapped["AutoModel"] == "modeling_simla.SimlaModel"
    assert not [path for path in (folder / name).iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
