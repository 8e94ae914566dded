"""Training through `hf_cots.train` with the codes of `hf-cots tokenize`: the same run, without the image tokenizer."""

import json
import logging

import numpy as np
import pytest

import hf_cots.train
from hf_cots import COTSImageTokenizer
from hf_cots.data.keep_mask import write_keep_mask
from hf_cots.data.sources import load_pairs
from tests.data.test_code_cache import varied_tokenizer
from tests.support.cli import call, error_of
from tests.support.runs import assert_same_weights
from tests.support.worlds import checkpoint, log_history


TIMES = ("pairs_per_second", "data_wait_share", "train_runtime", "train_samples_per_second", "train_steps_per_second")


@pytest.fixture(scope="module")
def world(world):
    world.__dict__["image_tokenizer"] = world.root / "lively"
    varied_tokenizer().save_pretrained(world.image_tokenizer)
    return world


def tokenize(world, output, *options, **settings):
    """`hf-cots tokenize` with the recipe of [`train`]."""
    recipe = world.root / "recipe.json"
    written = world.settings(world.root / "run", dropout=0.1, **({"min_scale": 0.3, "flip": 0.5} | settings))
    recipe.write_text(json.dumps(written, default=str))
    return call("tokenize", recipe, "--output", output, *options)


@pytest.fixture(scope="module")
def cache(world):
    """Two epochs of five steps."""
    result = tokenize(world, world.root / "cache", "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert "80 crops tokenized, 0 already in" in result.output
    return world.root / "cache"


def train(world, folder, **settings):
    defaults = {"min_scale": 0.3, "flip": 0.5, "max_steps": 7, "save_strategy": "steps", "save_steps": 7}
    hf_cots.train.train(world.flags(folder, dropout=0.1, **(defaults | settings)))
    logs = [{k: v for k, v in line.items() if k not in TIMES} for line in log_history(folder, 7)]
    return checkpoint(folder, 7), logs


@pytest.fixture(scope="module")
def without(world):
    return train(world, world.root / "without")


@pytest.fixture
def no_tokenizer(monkeypatch):
    def refuse(self, pixels):
        raise AssertionError("the image tokenizer ran")

    monkeypatch.setattr(COTSImageTokenizer, "get_codebook_indices", refuse)


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_and_weights_are_bit_for_bit_those_of_online_codes(
    world, cache, without, tmp_path, no_tokenizer, caplog, workers
):
    with caplog.at_level(logging.INFO):
        weights, logs = train(world, tmp_path, code_cache=cache, dataloader_num_workers=workers)
    assert f"80 crops have precomputed codes in {cache}" in caplog.text
    assert logs == without[1]
    assert sum(line.get("loss_mvm", 0) > 0 for line in logs) == 7
    assert_same_weights(weights, without[0])


def test_a_stream_reads_it_too(world, cache, tmp_path, no_tokenizer):
    """Its pairs have the same ids, in another order."""
    _, logs = train(world, tmp_path, code_cache=cache, streaming=True)
    assert sum(line.get("loss_mvm", 0) > 0 for line in logs) == 7


def test_what_the_cache_lacks_is_computed(world, without, tmp_path, caplog, monkeypatch):
    """An epoch that is not in the cache: the same losses again, and one warning."""
    assert tokenize(world, tmp_path / "cache", "--epochs", 1).exit_code == 0
    calls, encode = [], COTSImageTokenizer.get_codebook_indices
    monkeypatch.setattr(
        COTSImageTokenizer, "get_codebook_indices", lambda self, pixels: calls.append(1) or encode(self, pixels)
    )
    weights, logs = train(world, tmp_path / "run", code_cache=tmp_path / "cache")
    assert len(calls) == 2, "steps 6 and 7 belong to the second epoch"
    assert sum("is missing 8 of 8 crops" in message for message in caplog.messages) == 1
    assert logs == without[1]
    assert_same_weights(weights, without[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_scale": 0.5}, "made with min_scale 0.3, not 0.5"),
        ({"seed": 8}, "made with seed 7, not 8"),
        ({"overrides": {"mvm_weight": 0}}, "mvm_weight is 0"),
        ({"code_cache": "/no/cache"}, "no such code cache: /no/cache"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_before_training(world, cache, tmp_path, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(world, tmp_path, **({"code_cache": cache} | settings))
    assert not (tmp_path / "checkpoint-7").exists()


def test_pairs_that_training_leaves_out_are_left_out(world, tmp_path):
    pairs = load_pairs(str(world.imagefolder))
    write_keep_mask(tmp_path / "mask.json", pairs, np.arange(40) >= 3)
    result = tokenize(world, tmp_path / "cache", keep_mask=tmp_path / "mask.json")
    assert "37 crops tokenized" in result.output


def test_the_command_resumes_and_tells_errors_in_one_line(world, cache, tmp_path):
    assert "0 crops tokenized, 80 already in" in tokenize(world, cache, "--epochs", 2).output
    flags = ("--config_overrides", json.dumps({"image_mean": [0.4, 0.5, 0.5]}))  # of training, on top of the recipe
    assert "was made with image_mean" in error_of(tokenize(world, cache, "--epochs", 2, *flags))
    for settings, message in (
        ({"streaming": True}, "leave out --streaming"),
        ({"image_tokenizer": None}, "needs a trained image tokenizer"),
        ({"image_tokenizer": None, "overrides": {"mvm_weight": 0}}, "has no image tokenizer"),
    ):
        assert message in error_of(tokenize(world, tmp_path / "new", **settings))
    assert not (tmp_path / "new").exists()
