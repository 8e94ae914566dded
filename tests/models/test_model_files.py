"""Damaged files of a saved model are named; new files have the mode that the user's umask gives."""

import os
import stat

import pytest
from safetensors import SafetensorError
from transformers import AutoModel

from hf_cots import COTSForPreTraining, COTSImageTokenizer, COTSModel, COTSProcessor, load_encoder, load_reranker
from hf_cots.data.shards import replace_file
from hf_cots.models.model_files import find_damage, named_damage
from hf_cots.models.towers import load_tower
from tests.support.model_classes import make
from tests.support.tiny_simla import tiny_simla


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 403704\n"


def damages(whole):
    return {
        "git-lfs": POINTER,
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "not a safetensors file": b"<!DOCTYPE html><html>403</html>" * 20,
    }


@pytest.fixture
def folder(tmp_path):
    make(COTSModel).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("damage", ["git-lfs", "truncated", "empty", "not a safetensors file"])
def test_damaged_weights_are_named_in_one_line(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damages(path.read_bytes())[damage])
    for load in (
        COTSModel.from_pretrained,
        COTSForPreTraining.from_pretrained,
        AutoModel.from_pretrained,
        lambda name: COTSModel.from_pretrained(pretrained_model_name_or_path=name),
        lambda name: load_encoder(str(name)),
    ):
        with pytest.raises(OSError, match=damage) as error:
            load(folder)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_damaged_towers_image_tokenizers_and_rerankers(tmp_path):
    model = make(COTSForPreTraining)
    model.image_tokenizer.save_pretrained(tmp_path / "codes")
    tiny_simla().simla.float().save_pretrained(tmp_path / "simla")
    type(model.cots.vision_model).__base__(model.config.vision_config).save_pretrained(tmp_path / "vit")
    for name, load in (
        ("codes", COTSImageTokenizer.from_pretrained),
        ("simla", load_reranker),
        ("vit", load_tower),
    ):
        (tmp_path / name / "model.safetensors").write_bytes(POINTER)
        with pytest.raises(OSError, match=rf"{name}/model\.safetensors is a git-lfs pointer"):
            load(str(tmp_path / name))


def test_one_shard_of_several(folder):
    make(COTSModel).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(OSError, match=shard.name):
        COTSModel.from_pretrained(folder)


def test_other_files_of_the_folder(folder):
    """The config is read first; a tokenizer's reader names no file; what nothing reads is not blamed."""
    assert find_damage(folder) is None
    assert find_damage("no/such/folder") is find_damage("a folder that is no Hub id") is None
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    assert find_damage(folder) is None, "nobody reads it: there are safetensors"
    (folder / "tokenizer.json").write_bytes(b'{"version": "1.0", "trunc')
    assert "tokenizer.json is truncated or not JSON" in find_damage(folder)
    whole = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(whole[:100])
    assert "config.json is truncated" in find_damage(folder)
    (folder / "config.json").write_bytes(whole)
    (folder / "model.safetensors").unlink()
    assert "pytorch_model.bin is a git-lfs pointer" in find_damage(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 half an archive")
    assert "pytorch_model.bin is truncated" in find_damage(folder)


def test_other_errors_pass(folder):
    """A bug, or a shape that does not fit, is no damaged file."""
    with pytest.raises(ZeroDivisionError), named_damage(folder):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        COTSModel.from_pretrained(folder, projection_dim=32)
    with pytest.raises(SafetensorError), named_damage(""):
        raise SafetensorError("of another file")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_saved_files_have_the_modes_of_new_ones(tmp_path, umask):
    before = os.umask(umask)
    try:
        model = make(COTSForPreTraining)
        model.save_pretrained(tmp_path / "checkpoint")
        model.cots.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
        model.image_tokenizer.save_pretrained(tmp_path / "codes")
        (tmp_path / "cache").mkdir()
        replace_file(tmp_path / "cache" / "x.safetensors", lambda path: os.close(os.open(path, os.O_CREAT, 0o600)))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) > 4
    code = {path for path in files if path.suffix == ".py"}  # transformers copies these with their own modes
    assert {stat.S_IMODE(path.stat().st_mode) for path in set(files) - code} == {0o666 & ~umask}
    assert not list(tmp_path.rglob("*.mode"))


def test_a_processor_that_is_a_pointer(folder, tmp_path):
    (folder / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(OSError, match=r"tokenizer\.json is a git-lfs pointer"), named_damage(folder):
        COTSProcessor.from_pretrained(folder)
