"""Saved models as other people get them: from a folder or the Hub, with the package and without it."""

import ast
import json
import os

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from hf_cots import CookieForPreTraining, COTSForPreTraining, COTSModel, COTSProcessor, SimlaForPreTraining
from tests.support import processes
from tests.support.clips import make_animation
from tests.support.hub_stub import hub
from tests.support.paths import SCRIPTS
from tests.support.runs import assert_same_weights, load_exactly
from tests.support.tiny import tiny_batch, tiny_config
from tests.support.tiny_cookie import cookie_batch, tiny_cookie_config
from tests.support.tiny_simla import simla_batch, tiny_simla_config
from tests.support.words import tiny_processor
from tests.support.worlds import noise


# Hard negatives are drawn: of SIMLA's whole loss the other terms can be compared.
MODELS = {
    "cots": (COTSForPreTraining, tiny_config, {}, lambda model: tiny_batch(2), ("", "_mvm", "_mlm")),
    "simla": (SimlaForPreTraining, tiny_simla_config, {}, simla_batch, ("_itc", "_mlm", "_mim", "_psl")),
    "cookie": (
        CookieForPreTraining,
        tiny_cookie_config,
        {"share_weights": False},
        lambda model: cookie_batch(),
        ("", "_cross_modal", "_visual", "_textual"),
    ),
}
CODE = {"image_processing_cots.py", "losses.py", "processing_cots.py", "video_frames.py", "video_processing_cots.py"}
ONLY_COTS = pytest.mark.parametrize("saved", ["cots"], indirect=True)


def new_learner(kind):
    learner, config, fields, *_ = MODELS[kind]
    return learner(config(**fields)).eval()


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """The architecture, and a folder: saved models, image tokenizer, a hand-made Hub cache; and what they give."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    learner, processor = new_learner(kind), tiny_processor()
    *_, draw, terms = MODELS[kind]
    model = learner.encoder
    picture, texts = noise(50, 40), ["a photo of the dog", "a small cat", "犬"]
    picture.save(folder / "image.png")
    inputs = processor(images=[picture], text=texts, return_tensors="pt")
    batch = {name: rows.float() if rows.is_floating_point() else rows for name, rows in draw(learner).items()}
    with torch.no_grad():
        output, losses, pixels = model(**inputs), learner(**batch), torch.rand(2, 3, 32, 32)
        expected = {"kind": kind, "class": type(model).__name__, "texts": texts, "batch": batch, "pixels": pixels}
        expected |= {"losses": {f"loss{term}": losses[f"loss{term}"] for term in terms}}
        expected |= {name: inputs[name] for name in ("pixel_values", "input_ids")}
        expected |= {name: output[name] for name in ("image_embeds", "text_embeds")}
        if kind == "cots":
            clip = make_animation(folder / "clip.gif")
            expected["video_embeds"] = model(**processor(videos=[clip], return_tensors="pt")).video_embeds
        if kind == "simla":
            expected["match"] = model.match(**inputs)
            expected["keywords"] = model.predict_keywords(inputs["pixel_values"])
        if kind != "cookie":
            learner.image_tokenizer.save_pretrained(folder / "image_tokenizer")
            expected["codes"] = learner.image_tokenizer.get_codebook_indices(pixels)
    torch.save(expected, folder / "expected.pt")
    cached = folder / "home" / "hub" / "models--org--base"
    for path in (folder / "model", cached / "snapshots" / ("a" * 40)):
        model.save_pretrained(path)
        processor.save_pretrained(path)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    learner.save_pretrained(folder / "pretraining")
    return kind, folder


def run_python(folder, *arguments, **variables):
    """No PYTHONPATH, an own Hub home, no network; returns what the process printed on stderr."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    kept |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables
    return processes.run_python("-I", "-c", *arguments, cwd=folder, env=kept).stderr[-3000:]


@pytest.fixture(scope="module", params=["with", "without"])
def user(request, saved):
    """Results of all checks of `hub_user.py` in a fresh process with, or without, the package."""
    _, folder = saved
    output, script = folder / f"{request.param}.json", SCRIPTS / "hub_user.py"
    prelude = "import hf_cots\n" if request.param == "with" else ""
    code = f"exec(compile(open({str(script)!r}).read(), 'hub_user.py', 'exec'))"
    errors = run_python(folder, prelude + code, folder, request.param, output)
    assert output.exists(), errors
    return json.loads(output.read_text())


def test_a_fresh_process(user):
    assert {check: outcome for check, outcome in user.items() if outcome != "ok"} == {}
    assert len(user) == 10


def test_the_auto_classes_know_it(saved):
    kind, folder = saved
    learner = new_learner(kind)
    assert type(AutoModel.from_pretrained(folder / "pretraining")) is type(learner.encoder)
    assert type(AutoModelForPreTraining.from_pretrained(folder / "pretraining")) is type(learner)
    assert type(AutoProcessor.from_pretrained(folder / "model")) is COTSProcessor
    config = AutoConfig.from_pretrained(folder / "pretraining")
    assert type(config) is type(learner.config)
    assert type(AutoModel.from_config(config)) is type(learner.encoder)
    assert config.text_config.hidden_size == learner.config.text_config.hidden_size
    assert getattr(config, "queue_size", None) == getattr(learner.config, "queue_size", None)


@pytest.mark.parametrize("part", ["model", "pretraining"])
def test_saved_folder_holds_weights_configs_and_code(saved, part):
    kind, folder = saved
    files = {path.name for path in (folder / part).iterdir()}
    assert files >= {f"modeling_{kind}.py", f"configuration_{kind}.py", "model.safetensors", "config.json"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    learner = MODELS[kind][0].__name__
    name, mapped = learner.removesuffix("ForPreTraining"), json.loads((folder / part / "config.json").read_text())
    mapped = mapped["auto_map"]
    assert mapped["AutoConfig"] == f"configuration_{kind}.{name}Config"
    assert mapped["AutoModel"] == mapped["AutoModelForZeroShotImageClassification"] == f"modeling_{kind}.{name}Model"
    if part == "pretraining":
        assert mapped["AutoModelForPreTraining"] == f"pretraining_{kind}.{learner}"
    else:
        assert files >= CODE | {"tokenizer.json", "tokenizer_config.json"}


@ONLY_COTS
def test_a_saved_cots_holds_the_code_of_its_parts(saved):
    _, folder = saved
    parts = ("model", "pretraining", "image_tokenizer")
    files = {part: {path.name for path in (folder / part).iterdir()} for part in parts}
    assert "configuration_dvae.py" in files["model"]
    parts = {"pretraining_cots.py", "queues.py", "towers.py", "masking.py", "modeling_dvae.py"}
    assert parts <= files["pretraining"]
    assert {"configuration_dvae.py", "modeling_dvae.py"} <= files["image_tokenizer"]


def test_travelling_code_needs_nothing_of_the_package(saved):
    """No import of the package, no sub-package, and each relative import finds its file in the same folder."""
    kind, folder = saved
    for part in ("model", "pretraining", "image_tokenizer")[: 2 if kind == "cookie" else 3]:
        paths = list((folder / part).glob("*.py"))
        assert paths
        for path in paths:
            where = f"{part}/{path.name}"
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    assert not [a.name for a in node.names if a.name.split(".")[0] == "hf_cots"], where
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    assert node.module.split(".")[0] != "hf_cots", where
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 1, where
                    assert "." not in (node.module or "."), where
                    assert (folder / part / f"{node.module}.py").exists(), f"{where} wants {node.module}"


def test_files_load_as_either_class(saved):
    kind, folder = saved
    whole = MODELS[kind][0]
    plain = type(new_learner(kind).encoder)
    weights = load_exactly(plain, folder / "model").state_dict()
    assert_same_weights(load_exactly(plain, folder / "pretraining").state_dict(), weights)
    again = whole.from_pretrained(folder / "model")
    assert_same_weights({name: again.encoder.state_dict()[name] for name in weights}, weights)
    assert int(again.steps_seen) == 0
    if kind != "cookie":
        momentum = again.momentum_encoder
        assert_same_weights({name: momentum.state_dict()[name] for name in weights}, weights)
        assert not any(parameter.requires_grad for parameter in momentum.parameters())
        assert int(again.key_queue.filled) == 0


PUSH = """
import sys
from hf_cots import COTSModel, COTSProcessor
folder = sys.argv[1]
COTSModel.from_pretrained(folder).push_to_hub("org/cots-base")
COTSProcessor.from_pretrained(folder).push_to_hub("org/cots-base")
"""


@ONLY_COTS
def test_push_to_hub(saved, tmp_path):
    """Model and processor arrive complete, byte for byte what a save writes."""
    _, folder = saved
    with hub() as server:
        errors = run_python(folder, PUSH, folder / "model", **server.variables(folder / "home"))
    for cls in (COTSModel, COTSProcessor):
        cls.from_pretrained(folder / "model").save_pretrained(tmp_path)
    assert "org/cots-base" in server.repositories, errors
    files = server.files("org/cots-base")
    code = CODE | {"modeling_cots.py", "configuration_cots.py", "configuration_dvae.py"}
    assert set(files) >= code | {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}, errors
    for name in ("model.safetensors", *code):
        assert files[name] == (tmp_path / name).read_bytes(), name
    config = json.loads(files["config.json"])
    assert config["auto_map"]["AutoModel"] == "modeling_cots.COTSModel"
    assert config["architectures"] == ["COTSModel"]
