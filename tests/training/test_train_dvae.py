"""`python -m hf_cots.train_dvae`: schedules, what is logged and drawn, and exact resumption."""

import logging
import shutil

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel, TrainerCallback

import hf_cots.train_dvae
from hf_cots import COTSImageTokenizer, COTSImageTokenizerConfig
from hf_cots.training.arguments import DVAETrainingArguments, parse_image_tokenizer_arguments, to_flags
from hf_cots.training.image_tokenizer import cosine
from tests.support.runs import assert_same_checkpoints, assert_same_weights
from tests.support.tiny import QUIET, TINY_IMAGE_TOKENIZER
from tests.support.worlds import all_pairs, log_history, write_images


CONFIG = TINY_IMAGE_TOKENIZER | {"kl_weight": 0.001}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of images and nothing else."""
    return write_images(tmp_path_factory.mktemp("bare") / "images")


def flags(data, output_dir, **settings):
    """A few steps with CONFIG; a setting of None leaves a flag out."""
    defaults = {
        "config": CONFIG,
        "train_data": data,
        "output_dir": output_dir,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 5,
    }
    return to_flags(QUIET | defaults | settings)


def train(*args, **settings):
    return hf_cots.train_dvae.train(flags(*args, **settings))


def make_trainer(*args, **settings):
    return hf_cots.train_dvae.build_trainer(*parse_image_tokenizer_arguments(flags(*args, **settings)))


def test_the_cosine():
    assert [cosine(1, 1 / 16, x) for x in (0, 1, 7)] == [1, 1 / 16, 1 / 16]
    assert cosine(1, 0.5, 0.5) == pytest.approx(0.75)
    assert cosine(0, 6.6, 0.25) == pytest.approx(6.6 * (1 - 2**-0.5) / 2)


def test_the_schedules_are_dalle_s_scaled_to_the_steps(bare, tmp_path):
    """Temperature 1 to 1/16 in a twentieth of the steps, KL weight 0 to the config's in a 600th, and the learning rate
    1e-4 to 1.25e-6; as they reach the model, step by step."""
    seen = []

    class Witness(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            rate = kwargs["lr_scheduler"].get_last_lr()[0]
            seen.append((trainer.temperature(), trainer.kl_weight(), rate))

    settings = {"max_steps": 40, "learning_rate": None, "kl_warmup_fraction": 0.1, "per_device_train_batch_size": 2}
    trainer = make_trainer(bare, tmp_path, config=CONFIG | {"hidden_size": 4, "image_size": 8}, **settings)
    trainer.add_callback(Witness())
    trainer.train()
    temperatures, weights, rates = zip(*seen)
    assert temperatures[:3] == pytest.approx((1, (1 + 1 / 16) / 2, 1 / 16))
    assert set(temperatures[2:]) == {1 / 16}
    assert weights[:5] == pytest.approx([0.001 * x for x in (0, (1 - 0.5**0.5) / 2, 0.5, (1 + 0.5**0.5) / 2, 1)])
    assert rates[0] == pytest.approx(1e-4)
    assert rates[20] == pytest.approx((1e-4 + 1.25e-6) / 2)
    assert rates[-1] == pytest.approx(1.25e-6, rel=0.2)
    defaults = DVAETrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (defaults.temperature_anneal_fraction, defaults.kl_warmup_fraction) == (150e3 / 3e6, 5e3 / 3e6)
    assert defaults.lr_scheduler_kwargs["min_lr_rate"] * defaults.learning_rate == 1.25e-6


@pytest.mark.parametrize("reconstruction", ["l2", "logit_laplace"])
def test_a_run_leaves_model_card_log_and_images(bare, tmp_path, capsys, reconstruction):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    results = train(bare, tmp_path, config=CONFIG | {"reconstruction": reconstruction}, eval_data=bare, **settings)
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert type(loaded).__name__ == "COTSImageTokenizer"
    assert loaded.config.reconstruction == reconstruction
    assert {"mse", "mae", "psnr", "perplexity", "used_codes"} <= results.keys()
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| mse | {results['mse']:.5g} |" in card
    assert "(reconstructions.png)" in card
    assert ("**The codebook has collapsed**" in card) == bool(results["collapsed"])
    last = tmp_path / "reconstructions-000004.png"
    assert (tmp_path / "model" / "reconstructions.png").read_bytes() == last.read_bytes()
    assert f"mse          {results['mse']:.5g}" in capsys.readouterr().out
    steps = [line for line in log_history(tmp_path, 4) if "loss" in line]
    assert len(steps) == 4
    for line, weight in zip(steps, [0.0, 0.001, 0.001, 0.001]):
        assert 1 <= line["perplexity"] <= line["used_codes"] <= 64
        assert line["loss"] == pytest.approx(line["reconstruction_loss"] + weight * line["kl"], abs=1e-4)
    evaluated = [line for line in log_history(tmp_path, 4) if "eval_mse" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    for name in ("reconstructions-000002.png", "reconstructions-000004.png"):
        with Image.open(tmp_path / name) as opened:
            sheet = opened.convert("RGB")
        assert sheet.size == (12 * 76 + 4, 2 * 76 + 4)
        first = all_pairs()[0][1].resize((72, 72), Image.Resampling.NEAREST)
        assert sheet.crop((4, 4, 76, 76)).tobytes() == first.tobytes()
        assert sheet.crop((4, 80, 76, 152)).getcolors() != [(72 * 72, (255, 255, 255))]


def test_an_interrupted_run_equals_the_uninterrupted_one(world, tmp_path):
    """Weights, optimizer, schedule and log; with annealed temperatures, whose noise differs at every step."""
    settings = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "max_steps": 6}
    settings |= {"temperature_anneal_fraction": 1, "kl_warmup_fraction": 0.5}
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    train(world.parquet, uninterrupted, **settings)

    class Killer(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    trainer = make_trainer(world.parquet, resumed, **settings)
    trainer.add_callback(Killer())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(world.parquet, resumed, resume_from_checkpoint="last", **settings)
    assert_same_checkpoints(resumed, uninterrupted, 6)
    logs = [[line for line in log_history(run, 6) if "loss" in line] for run in (resumed, uninterrupted)]
    assert logs[0] == logs[1]


def prepared(folder, bias):
    """An image tokenizer that always gives code 3, or, with a bias of 0, as many codes as random weights can."""
    model = COTSImageTokenizer(COTSImageTokenizerConfig(**CONFIG)).eval()
    patches = torch.rand(8, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        model.encoder.head.bias -= model.get_logits(patches).mean(dim=(0, 2, 3))
        model.encoder.head.bias[3] += bias
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bias", "collapsed"), [(50.0, 1), (0.0, 0)])
def test_a_collapsed_codebook_and_no_other_gives_a_warning(bare, tmp_path, caplog, bias, collapsed):
    model = prepared(tmp_path / "start", bias)
    with caplog.at_level(logging.WARNING):
        results = train(bare, tmp_path / "run", config=None, model=model, eval_data=bare, learning_rate=1e-6)
    assert results["collapsed"] == collapsed
    assert (results["used_codes"] < 6.4) == bool(collapsed)
    warnings = [message for message in caplog.messages if "collapsed" in message]
    assert len(warnings) == 2 * collapsed, "once in training, once in the evaluation"
    if collapsed:
        assert "at step 1: 1 of 64 codes are in use" in warnings[0]
        assert "1 of 64 codes are used on 40 images" in warnings[1]


def test_streams_and_broken_images(bare, world, tmp_path):
    settings = {"streaming": True, "shuffle_buffer_size": 16, "image_column": "png", "max_steps": 6}
    train(str(world.tars / "*.tar"), tmp_path / "stream", **settings)
    assert (tmp_path / "stream" / "model" / "model.safetensors").is_file()
    folder = shutil.copytree(bare, tmp_path / "some")
    (folder / "p05.png").write_bytes(b"no image")
    train(folder, tmp_path / "broken", max_steps=5)
    assert "p05.png" in (tmp_path / "broken" / "broken_images.jsonl").read_text()


def test_training_continues_from_a_trained_one(bare, tmp_path):
    train(bare, tmp_path / "one")
    train(bare, tmp_path / "two", config=None, model=tmp_path / "one" / "model", learning_rate=0)
    one, two = (AutoModel.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two"))
    assert_same_weights(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"codebook": 3}}, "COTSImageTokenizerConfig has no field codebook"),
        ({"config": "{3"}, "--config is not valid JSON"),
        ({"config": "[3]"}, "--config must be a mapping"),
        ({"model": "/some/where"}, "leave out --config"),
        ({"config": {"has_decoder": False}}, "has no decoder and cannot be trained"),
        ({"per_device_train_batch_size": 64}, "has only 40 images, less than a batch of 64"),
        ({"train_data": "/nothing/here"}, "/nothing/here"),
        ({"image_column": "nothing"}, "no column 'nothing'"),
    ],
)
def test_errors_are_one_line(bare, tmp_path, change, message):
    with pytest.raises(SystemExit) as stopped:
        hf_cots.train_dvae.main(flags(bare, tmp_path, **change))
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_recipe(bare, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"config": CONFIG, "max_steps": 1, "seed": 3}))
    hf_cots.train_dvae.train([str(recipe), *flags(bare, tmp_path / "out", config=None, max_steps=None)])
    assert (tmp_path / "out" / "model" / "config.json").is_file()
