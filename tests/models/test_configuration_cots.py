"""The configurations: COTS's defaults and JSON, and a clear refusal of every contradiction in any of them."""

import json

import pytest
from transformers import AutoConfig, BertConfig, DistilBertConfig, RobertaConfig, ViTConfig

from hf_cots import COTSConfig, COTSImageTokenizerConfig
from tests.support.tiny import SIZES, tiny_config
from tests.support.tiny_cookie import tiny_cookie_config
from tests.support.tiny_simla import tiny_simla_config


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
    config = tiny_config(contrast="in_batch", temperature=0.2, learn_temperature=True, filter_lambda=None)
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


@pytest.mark.parametrize("contrast", ["momentum", "in_batch"])
@pytest.mark.parametrize("filter_lambda", [2.0, None])
def test_momentum_encoder_exists_where_it_is_used(contrast, filter_lambda):
    uses = contrast == "momentum" or filter_lambda is not None
    config = tiny_config(contrast=contrast, filter_lambda=filter_lambda)
    assert config.uses_keys == config.uses_momentum_encoder == uses
    config = tiny_config(contrast=contrast, filter_lambda=filter_lambda, momentum=0.0)
    assert config.uses_keys == uses
    assert not config.uses_momentum_encoder


def vit(**fields):
    return ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **fields)


COOKIE_WEIGHTS = ("cross_modal_weight", "visual_weight", "textual_weight")
CONTRADICTIONS = [
    (tiny_config, {"vision_config": vit(image_size=30, patch_size=8)}, "image_size"),
    (tiny_config, {"image_tokenizer_config": {"image_size": 64}}, "image_tokenizer_config.image_size"),
    (tiny_config, {"projection_dim": 0}, "projection_dim"),
    (tiny_config, {"queue_size": 0}, "queue_size"),
    (tiny_config, {"similarity_queue_size": -1}, "similarity_queue_size"),
    (tiny_config, {"filter_warmup_steps": -1}, "filter_warmup_steps"),
    (tiny_config, {"instance_weight": -0.5}, "instance_weight"),
    (tiny_config, {"mvm_weight": -1}, "mvm_weight"),
    (tiny_config, {"mlm_weight": -1e-9}, "mlm_weight"),
    (tiny_config, {"task_weight": -1.0}, "task_weight"),
    (tiny_config, {"instance_weight": 0.0, "task_weight": 1.0}, "task_weight > 0 needs instance_weight"),
    (tiny_config, {"patch_mask_ratio": 0}, "patch_mask_ratio"),
    (tiny_config, {"word_mask_ratio": 1.01}, "word_mask_ratio"),
    (tiny_config, {"masked_fraction": 0.0}, "masked_fraction"),
    (tiny_config, {"momentum": 1.0}, "momentum"),
    (tiny_config, {"min_temperature": 0.0}, "min_temperature"),
    (tiny_config, {"temperature": 0.6}, "max_temperature"),
    (tiny_config, {"temperature": 0.005}, "temperature"),
    (tiny_config, {"contrast": "moco"}, "contrast"),
    (tiny_config, {"image_pooling": "max"}, "image_pooling"),
    (tiny_config, {"text_pooling": "last"}, "text_pooling"),
    (tiny_config, {"image_mean": [0.5]}, "image_mean"),
    (tiny_config, {"image_std": [0.5, 0.5, 0.0]}, "image_std"),
    (tiny_config, {"learn_temperature": "yes"}, "learn_temperature"),
    (tiny_config, {"soft_target_alpha": 0.4, "contrast": "in_batch"}, "soft_target_alpha > 0 needs contrast"),
    (tiny_config, {"soft_target_alpha": 1.5}, r"soft_target_alpha must lie in \[0, 1\]"),
    (tiny_config, {"center_momentum": 1.0}, r"center_momentum must lie in \[0, 1\)"),
    (tiny_config, {"momentum_warmup_steps": -1}, "momentum_warmup_steps must not be negative"),
    (COTSImageTokenizerConfig, {"image_size": 100}, "image_size"),
    (COTSImageTokenizerConfig, {"image_size": 0}, "image_size"),
    (COTSImageTokenizerConfig, {"num_groups": 0}, "num_groups"),
    (COTSImageTokenizerConfig, {"codebook_size": 0}, "codebook_size"),
    (COTSImageTokenizerConfig, {"hidden_size": 3}, "hidden_size"),
    (COTSImageTokenizerConfig, {"num_channels": 0}, "num_channels"),
    (tiny_simla_config, {"text_config": BertConfig(**(SIZES | {"hidden_size": 64}))}, "hidden_size, got 32 and 64"),
    (tiny_simla_config, {"image_tokenizer_config": {"image_size": 64}}, "image_tokenizer_config.image_size to 32"),
    (tiny_simla_config, {"num_masked_patches": 17}, "of 16 patches"),
    (tiny_simla_config, {"min_block_patches": 6}, "at least min_block_patches=6"),
    (tiny_simla_config, {"text_config": BertConfig(max_position_embeddings=16, **SIZES)}, "set mim_weight=0"),
    (tiny_simla_config, {"temperature": 0.6}, "must be between"),
    (tiny_simla_config, {"distillation_weight": 1.1}, "distillation_weight must lie in"),
    (tiny_simla_config, {"momentum": 1}, "momentum must lie in"),
    (tiny_simla_config, {"mlm_weight": -1}, "must not be negative"),
    (tiny_simla_config, {"queue_size": 0}, "queue_size must be at least 1"),
    (tiny_simla_config, {"word_mask_ratio": 0}, "word_mask_ratio must lie in"),
    (tiny_simla_config, {"image_std": [1.0, 1.0, 0.0]}, "those of image_std must be positive"),
    (tiny_cookie_config, {"num_shared_layers": 5}, "num_shared_layers must be from 0 to 4, got 5"),
    (tiny_cookie_config, {"num_shared_heads": 3}, "projection_dim=16 is not divisible by num_shared_heads=3"),
    (tiny_cookie_config, dict.fromkeys(COOKIE_WEIGHTS, 0), "nothing to learn from"),
    (tiny_cookie_config, {"margin": -1}, "margin must not be negative"),
    (tiny_cookie_config, {"word_drop_masked": 0.6, "word_drop_replaced": 0.6}, "add up to at most 1"),
    (tiny_cookie_config, {"temperature": 1.0}, "must be between"),
    (tiny_cookie_config, {"pooling": "last"}, "pooling"),
    (tiny_cookie_config, {"vision_config": vit(image_size=30, patch_size=8)}, "is not divisible by patch_size"),
]


@pytest.mark.parametrize(("make", "fields", "message"), CONTRADICTIONS)
def test_each_contradiction_is_refused_by_name(make, fields, message):
    with pytest.raises(Exception, match=message) as caught:
        make(**fields)
    assert "Strict" in type(caught.value).__name__ or isinstance(caught.value, ValueError)


def test_a_contradiction_made_later_is_refused_on_saving(tmp_path):
    config = tiny_config()
    config.task_weight, config.instance_weight = 1.0, 0.0
    with pytest.raises(Exception, match="task_weight"):
        config.save_pretrained(tmp_path)


def test_grid_mismatch_does_not_matter_without_the_visual_token_level():
    assert tiny_config(mvm_weight=0.0, image_tokenizer_config={"image_size": 64}).patch_grid == 4


@pytest.mark.parametrize(("groups", "expected"), [(4, 32), (3, 16), (1, 4)])
def test_config_from_towers_fits_the_image_tokenizer_to_the_patches(groups, expected):
    config = COTSConfig.from_towers(
        vit(image_size=32, patch_size=8), BertConfig(), image_tokenizer_config={"num_groups": groups}
    )
    assert config.image_tokenizer_config.image_size == expected
    assert config.image_tokenizer_config.grid_size == config.patch_grid == 4
