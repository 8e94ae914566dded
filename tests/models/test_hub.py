"""Saved models as other people get them: from a folder or the Hub, with the package and without it."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_cots import COTSForPreTraining, COTSImageTokenizer, COTSModel
from tests.support.hub_stub import hub
from tests.support.paths import SCRIPTS
from tests.support.tiny import tiny_config
from tests.support.words import tiny_processor


CODE = {
    "configuration_cots.py",
    "configuration_dvae.py",
    "image_processing_cots.py",
    "losses.py",
    "modeling_cots.py",
    "processing_cots.py",
}
CHECKS = (
    "package",
    "embeddings",
    "zero_shot",
    "feature_extraction",
    "cached_hub_id",
    "pretraining",
    "image_tokenizer",
    "saved_again",
    "untrusted",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved model and processor, pre-training model, image tokenizer, a hand-made Hub cache; and what they give."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model, processor = COTSModel(tiny_config()).eval(), tiny_processor()
    pretraining = COTSForPreTraining(tiny_config()).eval()
    tokenizer = COTSImageTokenizer(tiny_config().image_tokenizer_config).eval()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    texts = ["a photo of the dog", "a small cat", "犬"]
    inputs = processor(images=[Image.open(folder / "image.png")], text=texts, return_tensors="pt")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output = model(**inputs)
        loss = pretraining(inputs["pixel_values"].repeat(2, 1, 1, 1), inputs["input_ids"][:2]).loss
    torch.save(
        {
            "texts": texts,
            "pixel_values": inputs["pixel_values"],
            "input_ids": inputs["input_ids"],
            "image_embeds": output.image_embeds,
            "text_embeds": output.text_embeds,
            "pretraining_loss": loss,
            "pixels": pixels,
            "codes": tokenizer.get_codebook_indices(pixels),
        },
        folder / "expected.pt",
    )
    cached = folder / "home" / "hub" / "models--org--cots-base"
    snapshot = cached / "snapshots" / ("a" * 40)
    for path in (folder / "model", snapshot):
        model.save_pretrained(path)
        processor.save_pretrained(path)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    pretraining.save_pretrained(folder / "pretraining")
    tokenizer.save_pretrained(folder / "image_tokenizer")
    return folder


def environment(folder, **more):
    """No PYTHONPATH, an own Hub home, no network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    return kept | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module", params=["with", "without"])
def user(request, folder):
    """Results of all checks of `hub_user.py` in a fresh process with, or without, the package."""
    output = folder / f"{request.param}.json"
    script = SCRIPTS / "hub_user.py"
    prelude = "import hf_cots" if request.param == "with" else "pass"
    command = f"import sys; sys.argv = {['user', str(folder), request.param, str(output)]!r}; {prelude}\n"
    command += f"exec(compile(open({str(script)!r}).read(), 'hub_user.py', 'exec'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", command],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert output.exists(), done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("check", CHECKS)
def test_a_fresh_process(user, check):
    assert set(user) == set(CHECKS)
    assert user[check] == "ok", user[check]


def test_saved_folder_holds_weights_configs_and_code(folder):
    files = {f.name for f in (folder / "model").iterdir()}
    assert files >= CODE | {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl"))]
    assert {"pretraining_cots.py", "queues.py", "towers.py", "masking.py", "modeling_dvae.py"} <= {
        f.name for f in (folder / "pretraining").iterdir()
    }
    assert {"configuration_dvae.py", "modeling_dvae.py"} <= {f.name for f in (folder / "image_tokenizer").iterdir()}


def test_auto_map_names_every_class(folder):
    mapped = json.loads((folder / "model" / "config.json").read_text())["auto_map"]
    assert mapped["AutoConfig"] == "configuration_cots.COTSConfig"
    assert mapped["AutoModel"] == mapped["AutoModelForZeroShotImageClassification"] == "modeling_cots.COTSModel"
    mapped = json.loads((folder / "pretraining" / "config.json").read_text())["auto_map"]
    assert mapped["AutoModelForPreTraining"] == "pretraining_cots.COTSForPreTraining"
    assert mapped["AutoModel"] == "modeling_cots.COTSModel"


@pytest.mark.parametrize("name", ["model", "pretraining", "image_tokenizer"])
def test_travelling_code_needs_nothing_of_the_package(folder, name):
    """No import of the package, no sub-package, and each relative import finds its file in the same folder."""
    paths = list((folder / name).glob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [a.name for a in node.names if a.name.split(".")[0] == "hf_cots"], path.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path.name
                if node.level == 0:
                    assert node.module.split(".")[0] != "hf_cots", path.name
                else:
                    assert "." not in (node.module or "."), path.name
                    assert (folder / name / f"{node.module}.py").exists(), f"{path.name} wants {node.module}"


PUSH = """
import sys
from hf_cots import COTSModel, COTSProcessor
folder = sys.argv[1]
COTSModel.from_pretrained(folder).push_to_hub("org/cots-base")
COTSProcessor.from_pretrained(folder).push_to_hub("org/cots-base")
"""


def test_push_to_hub(folder):
    """Model and processor arrive complete, byte for byte what a save writes."""
    with hub() as (endpoint, uploaded):
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(folder / "model")],
            cwd=folder,
            env=environment(
                folder, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HF_TOKEN="hf_test", NO_PROXY="127.0.0.1"
            ),
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    files = uploaded["org/cots-base"]
    assert set(files) >= CODE | {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in ("model.safetensors", *CODE):
        assert files[name] == (folder / "model" / name).read_bytes(), name
    config = json.loads(files["config.json"])
    assert config["auto_map"]["AutoModel"] == "modeling_cots.COTSModel"
    assert config["architectures"] == ["COTSModel"]
