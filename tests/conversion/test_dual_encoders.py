"""`hf-cots convert dual-encoder`: the folder that it writes gives the source's embeddings by every door."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.utils import is_sentencepiece_available

from hf_cots import COTSModel, COTSProcessor
from hf_cots.conversion import dual_encoders
from hf_cots.search.loading import load_encoder
from tests.support import processes
from tests.support.cli import call, error_of, succeed
from tests.support.dual_folders import (
    DUAL_ENCODERS,
    TEXTS,
    cache_on_hub,
    many_images,
    write_clip,
    write_json,
    write_siglip,
)


@pytest.fixture(scope="module", params=DUAL_ENCODERS)
def converted(request, tmp_path_factory):
    """The kind of a dual encoder, its folder, and that of its conversion."""
    root = tmp_path_factory.mktemp("dual")
    torch.manual_seed(0)
    source, folder = DUAL_ENCODERS[request.param](root / "source"), root / "cots"
    result = succeed("convert", "dual-encoder", source, "--output", folder, "--license", "mit")
    assert "the largest difference from the embeddings of" in result.stdout
    return request.param, source, folder


def their_embeddings(source):
    """Of images and texts, by transformers alone."""
    source = source / "0_CLIPModel" if (source / "0_CLIPModel").is_dir() else source
    model, processor = AutoModel.from_pretrained(source).eval(), AutoProcessor.from_pretrained(source)
    full = {"siglip": 16, "align": 64}.get(model.config.model_type)
    limit = full or min(model.config.text_config.max_position_embeddings, processor.tokenizer.model_max_length)
    padding = {"padding": "max_length" if full else True, "truncation": True, "max_length": limit}
    with torch.no_grad():
        images = model.get_image_features(**processor(images=many_images(), return_tensors="pt")).pooler_output
        texts = model.get_text_features(**processor(text=list(TEXTS), return_tensors="pt", **padding)).pooler_output
    return [torch.nn.functional.normalize(each, dim=-1).numpy() for each in (images, texts)]


def test_embeddings_are_the_sources(converted):
    _, source, folder = converted
    images, texts = their_embeddings(source)
    encoder = load_encoder(folder, "cpu")
    assert type(encoder.model) is COTSModel
    assert type(encoder.processor) is COTSProcessor
    # One by one, so that no batch pads them.
    ours = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    assert np.abs(encoder.encode_images(many_images()) - images).max() < 1e-5
    assert np.abs(ours - texts).max() < 1e-5
    assert np.abs(encoder.encode_texts(TEXTS) - texts).max() < 1e-5


def test_the_source_loads_to_the_same_embeddings(converted):
    """Search and evaluation read either folder alike."""
    kind, source, folder = converted
    if kind == "sentence-clip":
        pytest.importorskip("sentence_transformers")
    before, after = load_encoder(source, "cpu"), load_encoder(folder, "cpu")
    assert np.abs(before.encode_images(many_images()) - after.encode_images(many_images())).max() < 1e-5
    if kind != "align":  # which is cut at 64 tokens by its processor, and at its positions by the bare model
        assert np.abs(before.encode_texts(TEXTS) - after.encode_texts(TEXTS)).max() < 1e-5


def test_the_pipeline_pads_as_the_tower_wants(converted):
    """It takes the bare tokenizer, which pads to the longest label."""
    _, _, folder = converted
    labels = ["a red square", "a", "the blue circle on the left"]
    found = pipeline("zero-shot-image-classification", str(folder))(
        many_images()[0], candidate_labels=labels, hypothesis_template="{}"
    )
    encoder = load_encoder(folder, "cpu")
    logits = (
        encoder.encode_images(many_images()[:1]) @ encoder.encode_texts(labels).T / float(encoder.model.temperature)
    )
    expected = dict(zip(labels, torch.from_numpy(logits).softmax(dim=-1)[0].tolist()))
    assert {each["label"]: each["score"] for each in found} == pytest.approx(expected, abs=1e-5)


def test_the_folder_holds_what_a_model_needs(converted):
    kind, _, folder = converted
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert "Converted from source, of which it has all weights" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["mvm_weight"] == 0
    assert config.get("mlm_weight", 1) == (0 if kind in ("clip", "siglip", "sentence-clip") else 1)
    assert not [path for path in folder.parent.iterdir() if path.name.startswith("tmp")]


def test_search_and_evaluation(world, tmp_path):
    source, folder = write_siglip(tmp_path / "siglip"), tmp_path / "cots"
    succeed("convert", "dual-encoder", source, "--output", folder)
    found = [succeed("search", model, world.imagefolder, "a red circle").stdout for model in (source, folder)]
    assert found[0] == found[1]
    assert ".png" in found[0]
    rows = [succeed("evaluate", model, world.imagefolder).stdout for model in (source, folder)]
    tables = [[line for line in row.splitlines() if "R@" in line or "rank" in line] for row in rows]
    assert tables[0] == tables[1]
    assert len(tables[0]) > 3


WITHOUT_PACKAGE = """
import sys
sys.modules["hf_cots"] = None
import torch
from transformers import AutoModel, AutoProcessor
expected = torch.load("expected.pt")
for kind in ("clip", "siglip"):
    model = AutoModel.from_pretrained(kind, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(kind, trust_remote_code=True)
    inputs = processor(images=expected["images"], text=expected["texts"], return_tensors="pt")
    for name, rows in expected[kind].items():
        found = inputs[name] if name in inputs else model(**inputs)[name]
        assert torch.equal(found, rows), (kind, name)
print("all equal")
"""


def test_without_the_package_and_from_the_hub(tmp_path, monkeypatch):
    """A Hub id from a cache made by hand is converted offline; what is written loads without the package."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    expected = {"images": [torch.from_numpy(np.array(many_images()[0]))], "texts": list(TEXTS)}
    for kind in ("clip", "siglip"):
        name = cache_on_hub(DUAL_ENCODERS[kind](tmp_path / f"source-{kind}"), f"org/{kind}", tmp_path / "hub")
        succeed("convert", "dual-encoder", name, "--output", tmp_path / kind, "--revision", "main")
        assert f"Converted from {name}" in (tmp_path / kind / "README.md").read_text()
        model, processor = COTSModel.from_dual_encoder(name).eval(), COTSProcessor.from_dual_encoder(name)
        inputs = processor(images=expected["images"], text=expected["texts"], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        expected[kind] = dict(inputs) | {name: output[name] for name in ("image_embeds", "text_embeds")}
    torch.save(expected, tmp_path / "expected.pt")
    bare = {name: value for name, value in processes.ENVIRONMENT.items() if name != "PYTHONPATH"}
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = processes.run_python("-c", WITHOUT_PACKAGE, cwd=tmp_path, env=bare | home)
    assert "all equal" in done.stdout, done.stderr[-2000:]


# ---------------------------------------------------------------------- refusals


def test_other_embeddings_are_not_written(tmp_path, monkeypatch):
    source = write_clip(tmp_path / "clip")
    original = COTSModel.from_dual_encoder

    def wrong(*arguments, **fields):
        model = original(*arguments, **fields)
        model.text_projection.weight.data[0] *= 1.001
        return model

    monkeypatch.setattr(dual_encoders.COTSModel, "from_dual_encoder", wrong)
    line = error_of(call("convert", "dual-encoder", source, "--output", tmp_path / "new" / "cots"))
    assert "clip: the converted model gives other embeddings, by up to" in line
    assert not (tmp_path / "new" / "cots").exists()


def test_what_is_no_dual_encoder_is_refused(world, tmp_path):
    _, text = world.towers()
    assert "it is not a dual encoder" in error_of(call("convert", "dual-encoder", text, "--output", tmp_path / "a"))
    line = error_of(call("convert", "dual-encoder", world.model, "--output", tmp_path / "b"))
    assert "it is one: load it with from_pretrained" in line
    line = error_of(call("convert", "dual-encoder", tmp_path / "none", "--output", tmp_path / "c"))
    assert "no such model folder" in line
    assert not [path for path in tmp_path.iterdir() if path.name in "abc"]


def test_short_texts_for_a_tower_that_reads_padding(tmp_path):
    """The model fills them up, if it knows with what."""
    source = write_siglip(tmp_path / "siglip")
    model, processor = COTSModel.from_dual_encoder(str(source)).eval(), COTSProcessor.from_dual_encoder(source)
    short = processor.tokenizer(["a red square"], padding=True, return_tensors="pt")
    full = processor(text=["a red square"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**full).text_embeds
        assert (model(**short).text_embeds - expected).abs().max() > 1e-3
        model.config.pad_token_id = processor.tokenizer.pad_token_id
        assert torch.equal(model(**short).text_embeds, expected)
        assert model.encode_text(short["input_ids"]).last_hidden_state.shape[1] == short["input_ids"].shape[1]


def test_a_tokenizer_that_needs_a_package_says_so(tmp_path):
    folder = write_siglip(tmp_path / "siglip")
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", fields | {"tokenizer_class": "SiglipTokenizer"})
    if is_sentencepiece_available():
        pytest.skip("sentencepiece is installed here")
    line = error_of(call("convert", "dual-encoder", folder, "--output", tmp_path / "cots"))
    assert "needs sentencepiece: pip install sentencepiece" in line
