"""The configuration: defaults, JSON, and a clear refusal of every contradiction."""

import json

import pytest
from transformers import AutoConfig, BertConfig, DistilBertConfig, RobertaConfig, ViTConfig

from hf_cots import COTSConfig, COTSImageTokenizerConfig
from tests.support.tiny import tiny_config


def test_defaults_are_cots_base():
    config = COTSConfig()
    vision, text, codes = config.vision_config, config.text_config, config.image_tokenizer_config
    assert (vision.model_type, vision.image_size, vision.patch_size, vision.hidden_size) == ("vit", 384, 16, 768)
    assert (text.model_type, text.vocab_size, text.hidden_size, text.num_hidden_layers) == ("bert", 30522, 768, 12)
    assert (codes.image_size, codes.codebook_size, codes.grid_size) == (192, 8192, 24)
    assert (config.projection_dim, config.queue_size, config.momentum, config.temperature) == (256, 12_800, 0.99, 0.05)
    assert (config.patch_grid, config.num_patches, config.num_masked_patches) == (24, 576, 230)
    assert config.contrast == "momentum"
    assert config.center_keys
    assert config.enqueue_before_loss
    assert not config.learn_temperature
    assert (config.patch_mask_ratio, config.word_mask_ratio, config.filter_lambda) == (0.4, 0.15, 2.0)
    assert {config.instance_weight, config.mvm_weight, config.mlm_weight, config.task_weight} == {1.0}
    assert config.uses_momentum_encoder


def test_json_round_trip(tmp_path):
    config = tiny_config(
        contrast="in_batch",
        temperature=0.2,
        learn_temperature=True,
        filter_lambda=None,
    )
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text)["model_type"] == "cots"
    for loaded in (COTSConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, COTSConfig)
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert isinstance(loaded.vision_config, ViTConfig)
        assert isinstance(loaded.text_config, BertConfig)
        assert isinstance(loaded.image_tokenizer_config, COTSImageTokenizerConfig)
        assert loaded.filter_lambda is None
        assert not loaded.uses_momentum_encoder
        assert loaded.patch_grid == 4
    again = COTSConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"})
    assert again.to_dict() == config.to_dict()


def test_other_towers_survive_json(tmp_path):
    config = tiny_config(text_config=DistilBertConfig(dim=24, n_heads=2, hidden_dim=48))
    config.save_pretrained(tmp_path)
    assert isinstance(COTSConfig.from_pretrained(tmp_path).text_config, DistilBertConfig)


def test_tower_dicts_become_configs():
    config = tiny_config(text_config={"model_type": "roberta", "hidden_size": 24, "num_attention_heads": 2})
    assert isinstance(config.text_config, RobertaConfig)
    assert config.text_config.hidden_size == 24


def test_whole_numbers_are_accepted_for_floats():
    assert tiny_config(filter_lambda=3, task_weight=0, momentum=0).filter_lambda == 3


@pytest.mark.parametrize(
    ("contrast", "filter_lambda", "uses"),
    [
        ("momentum", 2.0, True),
        ("momentum", None, True),
        ("in_batch", 2.0, True),
        ("in_batch", None, False),
    ],
)
def test_momentum_encoder_exists_where_it_is_used(contrast, filter_lambda, uses):
    assert tiny_config(contrast=contrast, filter_lambda=filter_lambda).uses_momentum_encoder == uses


def vit(**fields):
    return ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **fields)


CONTRADICTIONS = {
    "image_size": {"vision_config": vit(image_size=30, patch_size=8)},
    "image_tokenizer_config.image_size": {"image_tokenizer_config": {"image_size": 64}},
    "projection_dim": {"projection_dim": 0},
    "queue_size": {"queue_size": 0},
    "similarity_queue_size": {"similarity_queue_size": -1},
    "filter_warmup_steps": {"filter_warmup_steps": -1},
    "instance_weight": {"instance_weight": -0.5},
    "mvm_weight": {"mvm_weight": -1},
    "mlm_weight": {"mlm_weight": -1e-9},
    "task_weight": {"task_weight": -1.0},
    "task_weight > 0 needs instance_weight": {"instance_weight": 0.0, "task_weight": 1.0},
    "patch_mask_ratio": {"patch_mask_ratio": 0},
    "word_mask_ratio": {"word_mask_ratio": 1.01},
    "masked_fraction": {"masked_fraction": 0.0},
    "momentum": {"momentum": 1.0},
    "min_temperature": {"min_temperature": 0.0},
    "max_temperature": {"temperature": 0.6},
    "temperature": {"temperature": 0.005},
    "contrast": {"contrast": "moco"},
    "image_pooling": {"image_pooling": "max"},
    "text_pooling": {"text_pooling": "last"},
    "image_mean": {"image_mean": [0.5]},
    "image_std": {"image_std": [0.5, 0.5, 0.0]},
    "learn_temperature": {"learn_temperature": "yes"},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_each_contradiction_is_refused_by_name(name):
    with pytest.raises(Exception, match=name) as caught:
        tiny_config(**CONTRADICTIONS[name])
    assert "Strict" in type(caught.value).__name__ or isinstance(caught.value, ValueError)


def test_a_contradiction_made_later_is_refused_on_saving(tmp_path):
    config = tiny_config()
    config.task_weight, config.instance_weight = 1.0, 0.0
    with pytest.raises(Exception, match="task_weight"):
        config.save_pretrained(tmp_path)


def test_grid_mismatch_does_not_matter_without_the_visual_token_level():
    assert tiny_config(mvm_weight=0.0, image_tokenizer_config={"image_size": 64}).patch_grid == 4


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"image_size": 100}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"num_groups": 0}, "num_groups"),
        ({"codebook_size": 0}, "codebook_size"),
        ({"hidden_size": 3}, "hidden_size"),
        ({"num_channels": 0}, "num_channels"),
    ],
)
def test_image_tokenizer_refuses_sizes_that_cannot_be_built(fields, name):
    with pytest.raises(Exception, match=name):
        COTSImageTokenizerConfig(**fields)


@pytest.mark.parametrize(("groups", "expected"), [(4, 32), (3, 16), (1, 4)])
def test_config_from_towers_fits_the_image_tokenizer_to_the_patches(groups, expected):
    config = COTSConfig.from_towers(
        vit(image_size=32, patch_size=8), BertConfig(), image_tokenizer_config={"num_groups": groups}
    )
    assert config.image_tokenizer_config.image_size == expected
    assert config.image_tokenizer_config.grid_size == config.patch_grid == 4
