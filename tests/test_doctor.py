"""`hf-cots doctor`: what it finds is what is there, and a plan is made of real steps."""

import json

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from hf_cots import doctor
from hf_cots.doctor import check_requirement, describe_size, find_extras, find_hub, read_requirements
from hf_cots.training.plan_run import count_parameters, plan_run
from hf_cots.training.timed_steps import Stepper
from tests.support.cli import call, succeed
from tests.support.runs import make_trainer


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hf_cots.cli.doctor.console", Console(width=200))  # no line is folded


def test_one_screen_has_every_section(offline):
    printed = succeed("doctor").output
    for word in ("versions", "torch", "CPU, bfloat16", "sentence-transformers", "HF_HUB_OFFLINE is set", "free here"):
        assert word in printed
    assert set(json.loads(succeed("doctor", "--json").output)) == {"versions", "devices", "extras", "hub", "caches"}


def test_a_package_that_is_too_old_or_missing_is_wrong_and_ends_with_code_1(offline, monkeypatch):
    assert not check_requirement(Requirement("torch>=1")).wrong
    old, missing = check_requirement(Requirement("torch>=99")), check_requirement(Requirement("no-such-package>=2"))
    assert (old.wrong, old.advice) == (True, "pip install 'torch>=99'")
    assert (missing.wrong, missing.value) == (True, "missing")
    plain = doctor.requires
    monkeypatch.setattr(doctor, "requires", lambda name: [*plain(name), "no-such-package>=2"])
    result = call("doctor")
    assert result.exit_code == 1
    assert "pip install 'no-such-package>=2'" in result.output


def test_extras_say_what_they_lack(monkeypatch):
    assert {each.name for each in read_requirements("")} >= {"torch", "transformers", "datasets"}
    assert {each.name for each in read_requirements("search")} == {"faiss-cpu"}
    assert next(each for each in find_extras() if each.name == "search").value == "complete"
    plain = doctor.requires
    monkeypatch.setattr(doctor, "requires", lambda name: [*plain(name), 'no-such-package; extra == "search"'])
    (found,) = (each for each in find_extras() if each.name == "search")
    assert (found.value, found.advice) == ("missing: no-such-package", "pip install 'hf-cots[search]'")
    assert not found.wrong
    assert "dev" not in {each.name for each in find_extras()}


def test_a_hub_that_is_not_reached_is_no_error(monkeypatch):
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor.constants, "ENDPOINT", "http://127.0.0.1:9")
    endpoint, _ = find_hub()
    assert endpoint.value.startswith("not reached")
    assert not endpoint.wrong


def test_sizes_count_a_file_once(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 2**20)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    assert describe_size(tmp_path) == "0.00 GiB in 1 files"
    assert describe_size(tmp_path / "nothing") == "none"


# ---------------------------------------------------------------------- plans


def test_a_plan_is_made_of_timed_steps(world, tmp_path):
    flags = world.flags(tmp_path, max_steps=50, gradient_accumulation_steps=2)
    trainer = make_trainer(flags)
    plan = plan_run(trainer, tried=2)
    assert (plan.pairs, plan.steps, plan.batch) == (40, 50, 2 * trainer.args.train_batch_size)
    assert plan.seconds > 0
    assert 0 < plan.data_share < 1
    assert plan.gib > 0.1
    counts = count_parameters(make_trainer(flags).model)
    assert plan.parameters == counts
    assert counts["vision_model"][0] == sum(each.numel() for each in trainer.model.cots.vision_model.parameters())
    assert counts["momentum_encoder"][1] == 0


def test_a_plan_of_a_stream_knows_no_number_of_pairs(world, tmp_path):
    plan = plan_run(make_trainer(world.flags(tmp_path, max_steps=9, streaming=True)), tried=1)
    assert (plan.pairs, plan.steps) == (None, 9)


def test_a_step_does_what_training_does(world, tmp_path):
    """Three steps of the stepper leave the weights of three steps of `train` without a schedule of the rate."""
    settings = {"lr_scheduler_type": "constant", "max_steps": 3, "warmup_steps": 0, "learning_rate": 1e-3}
    trained, stepped = (make_trainer(world.flags(tmp_path / name, **settings)) for name in ("train", "steps"))
    trained.train()
    stepper = Stepper(stepped)
    times = [stepper.step() for _ in range(3)]
    assert all(0 < each.data < each.total for each in times)
    for name, tensor in trained.model.state_dict().items():
        assert tensor.equal(stepped.model.state_dict()[name]), name


def test_a_plan_of_a_recipe_from_the_command_line(world, tmp_path):
    recipe = tmp_path / "recipe.json"
    pairs = world.flags(tmp_path / "unused", max_steps=7)
    names, values = (flag.removeprefix("--") for flag in pairs[::2]), pairs[1::2]
    recipe.write_text(json.dumps(dict(zip(names, values))))
    plan = json.loads(succeed("doctor", "--plan", recipe, "--json").stdout)
    assert plan["steps"] == 7
    assert plan["parameters"]["text_model"]["trained"] > 0
    assert "steps of" in succeed("doctor", "--plan", recipe).stdout
    assert not (tmp_path / "unused").exists()
