"""A model, tokenizer or image processor that does not fit, or is not there, is refused by every way in."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from hf_cots import train
from hf_cots.search.loading import load_encoder, load_for_pretraining, load_reranker
from hf_cots.search.torch_encoders import TextEncoder
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_model import build_model, build_tokenizer
from tests.support.simla_world import simla_folder
from tests.support.worlds import tiny_tokenizer


LOADERS = (load_encoder, load_reranker, load_for_pretraining)


def copy(source, target):
    shutil.copytree(source, target)
    return target


def without_vocabulary(folder):
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    return str(folder)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/nothing/model", "^no such folder, and not a valid Hub id: runs/nothing/model$"),
        ("a b", "^no such folder, and not a valid Hub id: a b$"),
        ("C:\\models\\x", "^no such folder, and not a valid Hub id: C:"),
        ("", "^no such folder, and not a valid Hub id: $"),
        ("./nothing", r"^no such model folder: \./nothing$"),
        ("/nothing", "^no such model folder: /nothing$"),
        ("~/nothing", "^no such model folder: ~/nothing$"),
        ("runs/nothing", "^cannot load the model 'runs/nothing': no such folder, and on the Hub: "),
    ],
)
def test_a_wrong_name_is_one_line(loader, name, message):
    with pytest.raises(OSError, match=message) as caught:
        loader(name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("loader", LOADERS)
def test_files_and_folders_that_are_no_models(world, tmp_path, loader):
    with pytest.raises(OSError, match=r"config\.json is a file: give the model's folder"):
        loader(str(world.model / "config.json"))
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        loader(str(tmp_path))


def test_a_path_is_as_good_as_a_str(world):
    assert load_encoder(world.model).encode_texts("red").shape == (1, 16)
    assert load_reranker(simla_folder(world))[0].config.model_type == "simla"


def test_a_text_model_without_any_limit():
    """T5 has no table of positions; its tokenizer may have no limit either."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**30
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokenizer)}
    encoder = TextEncoder(T5EncoderModel(T5Config(**sizes)).eval(), tokenizer)
    assert np.isfinite(encoder.encode_texts("red square " * 300)).all()


def test_a_folder_without_a_vocabulary(world, tmp_path):
    for name, source, loader in (
        ("cots", world.model, load_encoder),
        ("simla", simla_folder(world), load_reranker),
        ("text", world.towers()[1], load_encoder),
    ):
        folder = without_vocabulary(copy(source, tmp_path / name))
        with pytest.raises(ValueError, match=f"{name}: the tokenizer has no vocabulary.*tokenizer.json"):
            loader(folder)


def test_a_tokenizer_of_another_model(world, tmp_path):
    folder = copy(world.model, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{i}" for i in range(50)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, but the text tower only \d+"):
        load_encoder(str(folder))


def test_an_image_processor_of_another_size(world, tmp_path):
    folder = copy(world.model, tmp_path / "m")
    path = folder / "processor_config.json"
    fields = json.loads(path.read_text())
    fields["image_processor"]["size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="outputs 64 x 64 pixels, but the image tower needs 32 x 32"):
        load_encoder(str(folder))


# ---------------------------------------------------------------------- training


def build(world, tmp_path, **settings):
    arguments, *_ = parse_arguments(world.flags(tmp_path / "run", **settings))
    return build_model(arguments, build_tokenizer(arguments))


@pytest.mark.parametrize("name", ["runs/nothing/model", "runs/nothing", "/nothing"])
@pytest.mark.parametrize("flag", ["vision", "text", "tokenizer", "image_tokenizer", "model", "config"])
def test_training_names_what_is_missing(world, tmp_path, flag, name):
    others = {"vision": None, "text": None} if flag in ("model", "config") else {}
    with pytest.raises(OSError, match=name):
        build(world, tmp_path, **others | {flag: name})


def test_training_from_a_tokenizer_without_vocabulary(world, tmp_path):
    folder = without_vocabulary(copy(world.towers()[1], tmp_path / "text"))
    with pytest.raises(ValueError, match="text: the tokenizer has no vocabulary"):
        build(world, tmp_path, text=folder)


def test_training_from_an_incomplete_model(world, tmp_path):
    folder = copy(world.model, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    kept = {name: rows for name, rows in weights.items() if not name.startswith("text_projection")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    flags = world.flags(tmp_path / "run", {"mvm_weight": 0, "mlm_weight": 0}, model=folder, vision=None, text=None)
    with pytest.raises(ValueError, match=r"m: the file is missing weights of the model: cots\.text_projection"):
        train.train([flag for flag in flags if flag])


def test_training_from_weights_of_another_shape(world, tmp_path):
    with pytest.raises(ValueError, match="the weights do not fit the config"):
        build(world, tmp_path, overrides={"projection_dim": 8}, model=world.model, vision=None, text=None)
