"""A saved SIMLA or COOKIE as other people get it: by the Auto classes, in a process without the package."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForZeroShotImageClassification, AutoProcessor

from hf_cots import CookieForPreTraining, COTSProcessor, SimlaForPreTraining
from tests.models.test_hub import environment
from tests.support.tiny_cookie import cookie_batch, tiny_cookie_config
from tests.support.tiny_simla import simla_batch, tiny_simla_config
from tests.support.words import tiny_processor


USER = """
import json, sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_cots":
            raise ImportError("hf_cots is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

folder, trust, found = Path(sys.argv[1]), {"trust_remote_code": True}, {}
expected = torch.load(folder / "expected.pt")
try:
    AutoConfig.from_pretrained(folder / "model", trust_remote_code=False)
    found["runs nothing without trust"] = False
except ValueError:
    found["runs nothing without trust"] = True
model = AutoModel.from_pretrained(folder / "model", **trust)
found["module"] = type(model).__module__.startswith("transformers_modules.")
processor = AutoProcessor.from_pretrained(folder / "model", **trust)
inputs = processor(images=[Image.open(folder / "image.png")], text=expected["texts"], return_tensors="pt")
learner = AutoModelForPreTraining.from_pretrained(folder / "pretraining", **trust).eval()
with torch.no_grad():
    output, terms = model(**inputs), learner(**expected["batch"])
    for name in ("image_embeds", "text_embeds"):
        found[name] = torch.equal(output[name], expected[name])
    for name, value in expected["terms"].items():
        found[name] = torch.equal(terms[name], value)
    if "match" in expected:
        ids, cache = inputs["input_ids"], model.cache_image(inputs["pixel_values"])
        found["match"] = torch.equal(model.match(ids, inputs["attention_mask"], image_cache=cache), expected["match"])
        found["keywords"] = torch.equal(model.predict_keywords(inputs["pixel_values"]), expected["keywords"])
model.save_pretrained(folder / "again")
again = AutoModel.from_pretrained(folder / "again", **trust).state_dict()
found["saved again"] = all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
(folder / "found.json").write_text(json.dumps(found))
"""
# Hard negatives are drawn: of SIMLA's whole loss the other terms can be compared.
MODELS = {
    "simla": (lambda: SimlaForPreTraining(tiny_simla_config()), simla_batch, ("itc", "mlm", "mim", "psl")),
    "cookie": (
        lambda: CookieForPreTraining(tiny_cookie_config(share_weights=False)),
        lambda model: cookie_batch(),
        ("cross_modal", "visual", "textual"),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """The architecture's name, and a folder with the saved models and what they give."""
    make, draw, terms = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    learner, processor = make().eval(), tiny_processor()
    model = learner.encoder
    Image.effect_noise((50, 40), 64).convert("RGB").save(folder / "image.png")
    texts = ["a photo of the dog", "a small cat"]
    inputs = processor(images=[Image.open(folder / "image.png")], text=texts, return_tensors="pt")
    batch = {name: rows.float() if rows.is_floating_point() else rows for name, rows in draw(learner).items()}
    with torch.no_grad():
        output, losses = model(**inputs), learner(**batch)
        expected = {
            "texts": texts,
            "batch": batch,
            "terms": {f"loss_{name}": losses[f"loss_{name}"] for name in terms},
        }
        expected |= {"image_embeds": output.image_embeds, "text_embeds": output.text_embeds}
        if request.param == "simla":
            expected["match"] = model.match(**inputs)
            expected["keywords"] = model.predict_keywords(inputs["pixel_values"])
    torch.save(expected, folder / "expected.pt")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    learner.save_pretrained(folder / "pretraining")
    return request.param, folder


def test_a_fresh_process_without_the_package(saved):
    _, folder = saved
    command = [sys.executable, "-P", "-c", USER, str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200, check=False
    )
    assert (folder / "found.json").exists(), done.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    assert all(found.values()), found


def test_the_auto_classes_know_it(saved):
    name, folder = saved
    learner = MODELS[name][0]()
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        assert type(auto.from_pretrained(folder / "model")) is type(learner.encoder)
    assert type(AutoModelForPreTraining.from_pretrained(folder / "pretraining")) is type(learner)
    assert type(AutoProcessor.from_pretrained(folder / "model")) is COTSProcessor


@pytest.mark.parametrize("part", ["model", "pretraining"])
def test_travelling_code_finds_all_that_it_imports(saved, part):
    name, folder = saved
    paths = list((folder / part).glob("*.py"))
    assert {f"modeling_{name}.py", f"configuration_{name}.py"} <= {path.name for path in paths}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (folder / part / f"{node.module}.py").exists(), f"{path.name} wants {node.module}"
    mapped = json.loads((folder / part / "config.json").read_text())["auto_map"]
    assert mapped["AutoConfig"] == f"configuration_{name}.{name.capitalize()}Config"
    assert mapped["AutoModel"] == f"modeling_{name}.{name.capitalize()}Model"
    assert mapped["AutoModelForZeroShotImageClassification"] == mapped["AutoModel"]
    if part == "pretraining":
        assert mapped["AutoModelForPreTraining"] == f"pretraining_{name}.{name.capitalize()}ForPreTraining"
    assert not [path for path in (folder / part).iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_files_load_as_either_class(saved):
    name, folder = saved
    learner = MODELS[name][0]()
    whole, plain = type(learner), type(learner.encoder)
    encoder = plain.from_pretrained(folder / "pretraining").state_dict()
    again = whole.from_pretrained(folder / "model")
    for key, tensor in plain.from_pretrained(folder / "model").state_dict().items():
        assert torch.equal(encoder[key], tensor), key
        assert torch.equal(again.encoder.state_dict()[key], tensor), key
    assert int(again.steps_seen) == 0
