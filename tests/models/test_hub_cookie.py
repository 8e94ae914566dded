"""A saved COOKIE travels with its code: a fresh process without the package gives the same numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForZeroShotImageClassification, AutoProcessor

from hf_cots import CookieForPreTraining, CookieModel, COTSProcessor
from tests.models.test_hub import environment
from tests.support.tiny_cookie import cookie_batch, tiny_cookie_config
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
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

folder, trust = Path(sys.argv[1]), {"trust_remote_code": True}
expected = torch.load(folder / "expected.pt")
model = AutoModel.from_pretrained(folder / "model", **trust)
processor = AutoProcessor.from_pretrained(folder / "model", **trust)
inputs = processor(images=[Image.open(folder / "image.png")], text=expected["texts"], return_tensors="pt")
learner = AutoModelForPreTraining.from_pretrained(folder / "pretraining", **trust).eval()
with torch.no_grad():
    output, loss = model(**inputs), learner(**expected["batch"]).loss
AutoModel.from_pretrained(folder / "model", **trust).save_pretrained(folder / "again")
again = AutoModel.from_pretrained(folder / "again", **trust)
(folder / "found.json").write_text(json.dumps({
    "images": torch.equal(output.image_embeds, expected["image_embeds"]),
    "texts": torch.equal(output.text_embeds, expected["text_embeds"]),
    "loss": torch.equal(loss, expected["loss"]),
    "again": torch.equal(again.transformer.norm.weight, model.transformer.norm.weight),
    "module": type(model).__module__.split(".")[0],
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model, processor = CookieModel(tiny_cookie_config()).eval(), tiny_processor()
    learner = CookieForPreTraining(tiny_cookie_config(share_weights=False)).eval()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    texts = ["a photo of the dog", "a small cat"]
    inputs = processor(images=[Image.open(folder / "image.png")], text=texts, return_tensors="pt")
    batch = {name: rows.float() if rows.is_floating_point() else rows for name, rows in cookie_batch().items()}
    with torch.no_grad():
        output, loss = model(**inputs), learner(**batch).loss
    expected = {"texts": texts, "batch": batch, "loss": loss, "image_embeds": output.image_embeds}
    torch.save(expected | {"text_embeds": output.text_embeds}, folder / "expected.pt")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    learner.save_pretrained(folder / "pretraining")
    return folder


def test_a_fresh_process_without_the_package(folder):
    done = subprocess.run(
        [sys.executable, "-P", "-c", USER, str(folder)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (folder / "found.json").exists(), done.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    assert found.pop("module") == "transformers_modules"
    assert all(found.values()), found


def test_the_auto_classes_know_it(folder):
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        assert type(auto.from_pretrained(folder / "model")) is CookieModel
    assert type(AutoModelForPreTraining.from_pretrained(folder / "pretraining")) is CookieForPreTraining
    assert type(AutoProcessor.from_pretrained(folder / "model")) is COTSProcessor
    mapped = json.loads((folder / "pretraining" / "config.json").read_text())["auto_map"]
    assert mapped["AutoConfig"] == "configuration_cookie.CookieConfig"
    assert mapped["AutoModel"] == mapped["AutoModelForZeroShotImageClassification"] == "modeling_cookie.CookieModel"
    assert mapped["AutoModelForPreTraining"] == "pretraining_cookie.CookieForPreTraining"


def test_files_load_as_either_class(folder):
    plain = CookieModel.from_pretrained(folder / "pretraining")
    assert plain.text_transformer is not None
    learner = CookieForPreTraining.from_pretrained(folder / "model")
    wanted = CookieModel.from_pretrained(folder / "model").state_dict()
    for name, tensor in learner.cookie.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert int(learner.steps_seen) == 0


def test_saving_leaves_safetensors_only(folder):
    files = {path.name for path in (folder / "pretraining").iterdir()}
    assert {"model.safetensors", "pretraining_cookie.py", "modeling_cookie.py", "configuration_cookie.py"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
