"""Flags, recipes, and both together."""

import json
import logging

import pytest
import yaml

from hf_cots import COTSImageTokenizerConfig
from hf_cots.training.arguments import (
    parse_arguments,
    parse_distillation_arguments,
    parse_image_tokenizer_arguments,
    parse_recipe,
    to_flags,
)
from tests.support.paths import ROOT


REQUIRED = {"train_data": "d", "output_dir": "out", "use_cpu": True}
FLAGS = to_flags(REQUIRED)


def write_recipe(folder, kind="yaml", **settings):
    """A file with these settings beside the required ones."""
    path = folder / f"recipe.{kind}"
    path.write_text(json.dumps(REQUIRED | settings) if kind == "json" else yaml.safe_dump(REQUIRED | settings))
    return str(path)


def test_flags_and_defaults():
    flags = ["--vision", "v", "--freeze", "vision", "text", "--lora_rank", "4", "--min_scale", "0.5"]
    model, data, training = parse_arguments([*FLAGS, *flags])
    assert (model.vision, model.text, model.model, model.config) == ("v", None, None, None)
    assert (model.freeze, model.lora_rank, model.config_overrides) == (["vision", "text"], 4, {})
    assert (data.train_data, data.eval_data, data.min_scale, data.flip) == ("d", None, 0.5, 0.5)
    assert training.output_dir == "out"
    assert training.remove_unused_columns is training.ddp_broadcast_buffers is False
    assert training.label_names == ["image_ids"]
    assert training.text_learning_rate is training.vision_learning_rate is None


SETTINGS = {
    "model": "m",
    "learning_rate": 1e-4,
    "freeze": ["text"],
    "bf16": False,
    "config_overrides": {"queue_size": 64, "filter_lambda": None, "center_keys": False},
    "caption_column": "a name with spaces",
}


@pytest.mark.parametrize("kind", ["yaml", "yml", "json", "mapping"])
def test_a_recipe(tmp_path, kind):
    recipe = REQUIRED | SETTINGS if kind == "mapping" else write_recipe(tmp_path, kind, **SETTINGS)
    model, data, training = parse_recipe(recipe)
    assert (model.model, model.freeze) == ("m", ["text"])
    assert model.config_overrides == SETTINGS["config_overrides"]
    assert data.caption_column == "a name with spaces"
    assert (training.learning_rate, training.bf16) == (1e-4, False)


def test_flags_and_changes_replace_those_of_a_recipe(tmp_path):
    path = write_recipe(tmp_path, model="m", learning_rate=1e-4, freeze=["text"], max_steps=7)
    by_flag = parse_arguments([path, "--learning_rate", "3e-4", "--freeze", "vision"])
    by_change = parse_recipe(path, learning_rate=3e-4, freeze=["vision"])
    for model, _, training in (by_flag, by_change):
        assert (training.learning_rate, training.max_steps) == (3e-4, 7)
        assert (model.model, model.freeze) == ("m", ["vision"])
    assert parse_recipe(path, max_steps=None)[2].max_steps == -1


def test_an_exponent_without_a_point_is_a_number():
    """YAML reads 1e-4 as a text."""
    assert parse_recipe(REQUIRED | yaml.safe_load("learning_rate: 1e-4"))[2].learning_rate == 1e-4


def test_a_mapping_as_flags():
    """Entries without a value leave the default."""
    settings = {"a": 1, "b": [1, "x"], "c": {"d": None}, "e": True, "f": None, "g": []}
    assert to_flags(settings) == ["--a", "1", "--b", "1", "x", "--c", '{"d": null}', "--e", "True"]


# ---------------------------------------------------------------------- old names


def test_recipes_may_use_old_names(caplog):
    overrides = {"masked_share": 0.5, "queue_size": 8, "text_view": "sibling"}
    old = {"standardize": True, "shuffle_block": 3, "config_overrides": overrides}
    with caplog.at_level(logging.WARNING):
        model, data, _ = parse_recipe(REQUIRED | old)
    assert (model.standardize_features, data.shuffle_buffer_size) == (True, 3)
    assert model.config_overrides == {"masked_fraction": 0.5, "queue_size": 8, "text_view": "other_caption"}
    assert caplog.messages == [
        "the recipe uses old names: standardize is now standardize_features, shuffle_block is now shuffle_buffer_size",
        "--config_overrides uses old names: masked_share is now masked_fraction",
        "--config_overrides uses an old value: text_view=sibling is now other_caption",
    ]


def test_old_names_of_an_image_tokenizer_s_recipe(tmp_path):
    path = write_recipe(tmp_path, temperature_share=0.25, kl_share=0.125)
    _, _, training = parse_image_tokenizer_arguments([path])
    assert (training.temperature_anneal_fraction, training.kl_warmup_fraction) == (0.25, 0.125)


# ---------------------------------------------------------------------- errors and help


@pytest.mark.parametrize("name", ["quue_size", "shuffle_block"])
def test_unknown_flags_and_old_ones_outside_of_recipes_are_errors(name):
    with pytest.raises(ValueError, match=f"unknown flags: --{name} 3"):
        parse_arguments([*FLAGS, f"--{name}", "3"])


def test_data_in_a_recipe_s_place_is_told():
    with pytest.raises(ValueError, match=r"my_pairs/ is neither a recipe \(.*: give the data with --train_data"):
        parse_arguments(["my_pairs/", *FLAGS])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quue_size": 3}, "unknown flags: --quue_size 3"),
        ({"shuffle_block": 3, "shuffle_buffer_size": 3}, "size twice, once under its old name shuffle_block"),
    ],
)
def test_errors_in_recipes(settings, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(REQUIRED | settings)


@pytest.mark.parametrize("text", ["{queue_size: 64}", "queue_size=64", '{"queue_size": 64', "[1]", "3", '"x"'])
def test_overrides_that_are_no_mapping_in_json(text):
    problem = "must be a mapping" if text in ("[1]", "3", '"x"') else "is not valid JSON"
    with pytest.raises(ValueError, match=f"--config_overrides {problem}"):
        parse_arguments([*FLAGS, "--config_overrides", text])


def test_a_recipe_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        parse_arguments([str(tmp_path / "nothing.yaml")])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just a text", ""])
def test_a_recipe_that_holds_no_mapping(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml must contain a mapping"):
        parse_arguments([str(tmp_path / "recipe.yaml")])


def test_help_shows_our_flags_in_groups_before_those_of_transformers(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--help"])
    assert stopped.value.code == 0
    model, data, training, inherited = capsys.readouterr().out.split("\n\n")[-4:]
    for group, title, flag in [
        (model, "Model:", "--lora_rank"),
        (data, "Data:", "--caption_column"),
        (training, "Training:", "--gradient_cache"),
        (inherited, "Training (transformers.TrainingArguments):", "--warmup_steps"),
    ]:
        assert group.startswith(title)
        assert flag in group
    assert "--warmup_steps" not in training


# ---------------------------------------------------------------------- the recipes of the model cards


CARDS = ROOT / "model_cards"
DISTILL = CARDS / "minilm-multilingual" / "recipe.yaml"


def test_the_recipe_of_the_multilingual_tower_parses(caplog):
    teacher, data, training = parse_distillation_arguments([str(DISTILL), "--teacher", "some/tower"])
    assert (teacher.teacher, training.embedding_learning_rate) == ("some/tower", 1e-3)
    assert "it" not in data.languages
    assert not caplog.messages


def test_rates_and_sizes_of_a_distillation_are_checked():
    needed = ["--teacher", "t", "--train_data", "d", "--output_dir", "o"]
    for flag, value in (("embedding_learning_rate", "-1"), ("vocab_size", "0"), ("max_text_length", "0")):
        with pytest.raises(ValueError, match=flag):
            parse_distillation_arguments([*needed, f"--{flag}", value])
    assert parse_distillation_arguments([*needed, "--language_column", ""])[1].columns["language_column"] is None


@pytest.mark.parametrize("recipe", sorted(CARDS.glob("dvae-*/recipe.yaml")), ids=str)
def test_every_recipe_of_an_image_tokenizer_parses(recipe):
    model, images, training = parse_image_tokenizer_arguments([str(recipe)])
    assert COTSImageTokenizerConfig(**model.config).codebook_size > 0
    assert images.train_data
    assert training.max_steps > 0


@pytest.mark.parametrize("recipe", sorted({*CARDS.glob("*/*.yaml")} - {*CARDS.glob("dvae-*/*"), DISTILL}), ids=str)
def test_every_recipe_of_the_model_cards_parses(recipe, caplog):
    # transformers refuses bf16 on a machine without a GPU unless the CPU is asked for
    model, data, training = parse_recipe(recipe, use_cpu=True)
    named = ("cots-emoji", "e5-multilingual", "minilm-multilingual")  # on the command line
    assert model.vision or model.model or recipe.parent.name in named
    assert model.text or model.model or recipe.parent.name in (*named, "cookie-emoji", "cots-icons")
    assert data.train_data
    assert training.learning_rate > 0
    assert not caplog.messages, "no old names"


def test_fsdp_is_a_switch(monkeypatch):
    """Not a text of options, which transformers deprecates, and of which "True" is none."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which transformers sets
    layers = {"transformer_layer_cls_to_wrap": ["ViTLayer"]}
    training = parse_recipe(REQUIRED | {"fsdp": True, "fsdp_config": layers})[2]
    assert training.fsdp is True
    assert training.fsdp_plugin_args["transformer_cls_names_to_wrap"] == "ViTLayer"
