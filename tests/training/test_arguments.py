"""Flags, files of flags, and both together."""

import json

import pytest
import yaml

from hf_cots import COTSImageTokenizerConfig
from hf_cots.training.arguments import (
    DVAETrainingArguments,
    ImageArguments,
    ImageTokenizerArguments,
    fields_of,
    flags_of,
    parse_arguments,
    parse_flags,
)
from tests.support.paths import ROOT


def base(tmp_path):
    return ["--vision", "v", "--text", "t", "--train_data", "d", "--output_dir", str(tmp_path), "--use_cpu", "True"]


def recipe(tmp_path, settings, kind="yaml"):
    path = tmp_path / f"recipe.{kind}"
    settings = {"train_data": "d", "output_dir": str(tmp_path / "out"), "use_cpu": True} | settings
    path.write_text(yaml.safe_dump(settings) if kind != "json" else json.dumps(settings))
    return str(path)


def test_flags(tmp_path):
    model, data, training = parse_arguments(
        [*base(tmp_path), "--freeze", "vision", "text", "--lora_rank", "4", "--min_scale", "0.5"]
    )
    assert (model.vision, model.text, model.model, model.config) == ("v", "t", None, None)
    assert model.freeze == ["vision", "text"]
    assert model.lora_rank == 4
    assert (data.train_data, data.eval_data, data.min_scale, data.flip) == ("d", None, 0.5, 0.5)
    assert training.output_dir == str(tmp_path)


def test_what_a_run_needs_is_the_default(tmp_path):
    _, _, training = parse_arguments(base(tmp_path))
    assert training.remove_unused_columns is False
    assert training.ddp_broadcast_buffers is False
    assert training.label_names == ["image_ids"]
    assert training.text_learning_rate is training.vision_learning_rate is None


@pytest.mark.parametrize("kind", ["yaml", "yml", "json"])
def test_a_file_of_flags(tmp_path, kind):
    settings = {
        "model": "m",
        "learning_rate": 1e-4,
        "freeze": ["text"],
        "bf16": False,
        "config_overrides": {"queue_size": 64, "filter_lambda": None, "center_keys": False},
        "caption_column": "a name with spaces",
    }
    model, data, training = parse_arguments([recipe(tmp_path, settings, kind)])
    assert (model.model, model.freeze) == ("m", ["text"])
    assert model.config_overrides == settings["config_overrides"]
    assert data.caption_column == "a name with spaces"
    assert training.learning_rate == 1e-4
    assert training.bf16 is False


def test_flags_stand_on_top_of_a_file(tmp_path):
    path = recipe(tmp_path, {"model": "m", "learning_rate": 1e-4, "freeze": ["text"], "max_steps": 7})
    model, _, training = parse_arguments([path, "--learning_rate", "3e-4", "--freeze", "vision"])
    assert training.learning_rate == 3e-4
    assert training.max_steps == 7
    assert (model.model, model.freeze) == ("m", ["vision"])


def test_an_exponent_without_a_point_is_a_number(tmp_path):
    """YAML reads 1e-4 as a text."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"train_data: d\noutput_dir: {tmp_path}\nlearning_rate: 1e-4\nuse_cpu: true\n")
    assert parse_arguments([str(path)])[2].learning_rate == 1e-4


def test_empty_entries_of_a_file_leave_the_default(tmp_path):
    path = recipe(tmp_path, {"model": "m", "eval_data": None, "freeze": [], "image_id_column": None})
    model, data, _ = parse_arguments([path])
    assert data.eval_data is None
    assert data.image_id_column is None
    assert model.freeze == []


def test_flags_of_a_mapping():
    settings = {"a": 1, "b": [1, "x"], "c": {"d": None}, "e": True}
    assert flags_of(settings) == ["--a", "1", "--b", "1", "x", "--c", '{"d": null}', "--e", "True"]


def test_an_unknown_flag_is_an_error(tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse_arguments([*base(tmp_path), "--learning_rat", "1", "--quue_size", "3"])
    assert "quue_size" in str(caught.value) + capsys.readouterr().err


def test_an_unknown_name_in_a_file_is_an_error(tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse_arguments([recipe(tmp_path, {"quue_size": 3})])
    assert "quue_size" in str(caught.value) + capsys.readouterr().err


def test_overrides_as_json(tmp_path):
    model, _, _ = parse_arguments(
        [*base(tmp_path), "--config_overrides", '{"queue_size": 64, "contrast": "in_batch"}']
    )
    assert model.config_overrides == {"queue_size": 64, "contrast": "in_batch"}


@pytest.mark.parametrize("text", ["{queue_size: 64}", "queue_size=64", '{"queue_size": 64'])
def test_overrides_that_are_no_json(tmp_path, text):
    with pytest.raises(ValueError, match="--config_overrides is no JSON"):
        parse_arguments([*base(tmp_path), "--config_overrides", text])


@pytest.mark.parametrize("text", ["[1]", "3", '"x"'])
def test_overrides_that_are_no_mapping(tmp_path, text):
    with pytest.raises(ValueError, match="--config_overrides must be a mapping"):
        parse_arguments([*base(tmp_path), "--config_overrides", text])


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        parse_arguments([str(tmp_path / "nothing.yaml")])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just a text", ""])
def test_a_file_that_holds_no_mapping(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml must hold a mapping"):
        parse_arguments([str(tmp_path / "recipe.yaml")])


CARDS = ROOT / "model_cards"


@pytest.mark.parametrize("recipe", sorted(CARDS.glob("dvae-*/recipe.yaml")), ids=str)
def test_every_recipe_of_an_image_tokenizer_parses(recipe):
    kinds = (ImageTokenizerArguments, ImageArguments, DVAETrainingArguments)
    model, pictures, training = parse_flags(kinds, [str(recipe)], "")
    assert COTSImageTokenizerConfig(**fields_of("config", model.config)).codebook_size > 0
    assert pictures.train_data
    assert training.max_steps > 0


@pytest.mark.parametrize("recipe", sorted(CARDS.glob("co*-*/recipe.yaml")), ids=str)
def test_every_recipe_of_the_model_cards_parses(recipe):
    # transformers refuses bf16 on a machine without a GPU unless the CPU is asked for
    model, data, training = parse_arguments([str(recipe), "--use_cpu", "True"])
    assert model.vision
    assert model.text or recipe.parent.name in ("cots-emoji", "cookie-emoji", "simla-emoji"), (
        "the text tower of these is named on the command line"
    )
    assert data.train_data
    assert training.learning_rate > 0
