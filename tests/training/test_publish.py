"""`hf-cots publish`: what is checked before a model leaves the machine, and what then is on the Hub."""

import json
import shutil

import pytest
import yaml

from hf_cots.training.check_folder import check_card, check_folder, check_without_package
from hf_cots.training.recipe_file import read_flags, write_recipe
from tests.models.test_hub import MODELS
from tests.support.cli import call, error_of, succeed
from tests.support.hub_stub import hub
from tests.support.processes import ENVIRONMENT, run_python
from tests.support.words import tiny_processor


SHOWS_IMAGES = "queries.png shows images of the evaluation data: delete it if they must not be public"


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A model that was trained with evaluation, in its folder."""
    from hf_cots.train import train

    folder = tmp_path_factory.mktemp("trained")
    train(world.flags(folder, max_steps=1, eval_data=world.imagefolder, license="cc0-1.0"))
    return folder / "model"


@pytest.fixture
def model(trained, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "model")


def test_a_trained_model_has_all_that_is_published(trained, world):
    files = {path.name for path in trained.iterdir()}
    assert files >= {
        "model.safetensors",
        "config.json",
        "README.md",
        "recipe.yaml",
        "results.json",
        "modeling_cots.py",
    }
    assert json.loads((trained / "results.json").read_text())["text_to_image"]["queries"] == 40
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert recipe["max_steps"] == 1
    assert recipe["train_data"] == world.imagefolder.name
    assert str(world.root) not in (trained / "recipe.yaml").read_text()
    assert check_folder(trained) == [SHOWS_IMAGES]


@pytest.mark.parametrize("kind", ["simla", "cookie"])
def test_other_models_are_checked_too(kind, tmp_path):
    learner, config, fields, *_ = MODELS[kind]
    learner(config(**fields)).eval().encoder.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    check_without_package(tmp_path)


def test_it_is_uploaded_after_the_check(trained, tmp_path):
    with hub() as server:
        variables = ENVIRONMENT | server.variables(tmp_path)
        done = run_python("-m", "hf_cots", "publish", trained, "org/tiny", env=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("org/tiny")
    local = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert {name: data for name, data in server.files("org/tiny").items() if name != ".gitattributes"} == local
    assert b'from_pretrained("org/tiny"' in local["README.md"]


def test_code_that_computes_something_else_is_refused(model):
    code = model / "modeling_cots.py"
    code.write_text(code.read_text().replace("image_embeds @ text_embeds.t()", "1.5 * image_embeds @ text_embeds.t()"))
    message = error_of(call("publish", model, "org/tiny", "--check-only"))
    assert "its own code gives different logits_per_image, logits_per_text than the package" in message


def test_code_that_needs_the_package_is_refused(model):
    code = model / "modeling_cots.py"
    code.write_text(code.read_text().replace("import torch\n", "import torch\nimport hf_cots\n", 1))
    assert "does not load without hf_cots installed" in error_of(call("publish", model, "org/tiny", "--check-only"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".env", "checkpoint-3"])
def test_what_is_no_part_of_a_model_is_refused(model, name):
    (model / name).write_bytes(b"x")
    assert name in error_of(call("publish", model, "org/tiny", "--check-only"))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    assert "no config.json" in error_of(call("publish", tmp_path, "org/tiny"))


def test_faults_of_the_card_are_named(model):
    card = model / "README.md"
    text = card.read_text()
    assert check_card(model) == [SHOWS_IMAGES]
    (model / "queries.png").unlink()
    assert check_card(model) == []
    card.write_text(text.replace("license: cc0-1.0", "license: unknown"))
    assert "names no license" in check_card(model)[0]
    for right, wrong in (("model-index:\n", "model-index: 3\nother:\n"), ("license: cc0-1.0", "license: [")):
        assert right in text
        card.write_text(text.replace(right, wrong, 1))
        with pytest.raises(ValueError, match=r"README\.md: invalid metadata"):
            check_card(model)


def test_a_check_alone_uploads_nothing(trained):
    assert "is ready to publish" in succeed("publish", trained, "org/tiny", "--check-only").output


def test_flags_as_they_were_given(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1.0e-3\nfreeze: [text]\ntrain_data: old\n")
    argv = [str(recipe), "--train_data", "/home/me/pairs", "--bf16", "--seed=3", "--freeze", "vision", "text"]
    given = read_flags([*argv, "--config_overrides", '{"queue_size": 8}', "--hub_token", "hf_secret"])
    assert given["config_overrides"] == {"queue_size": 8}
    assert (given["learning_rate"], given["seed"], given["bf16"]) == (1e-3, 3, True)
    assert given["freeze"] == ["vision", "text"]
    odd = read_flags(["--train_data", "{00..99}.tar", "--eval_data", "a: b", "--vision", '{"model_type": "vit"}'])
    assert odd == {"train_data": "{00..99}.tar", "eval_data": "a: b", "vision": '{"model_type": "vit"}'}
    assert read_flags(["--license", "2024-01-01", "--tf32", "False"]) == {"license": "2024-01-01", "tf32": False}
    write_recipe(tmp_path, [*argv, "--hub_token", "hf_secret"])
    text = (tmp_path / "recipe.yaml").read_text()
    assert "hf_secret" not in text
    assert "/home" not in text
    assert yaml.safe_load(text)["train_data"] == "pairs"
