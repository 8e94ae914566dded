"""`python -m hf_cots.train_dvae`: schedules, what is logged and drawn, and that a run goes on exactly."""

import json
import logging

import pytest
import torch
from PIL import Image
from transformers import AutoModel, TrainerCallback

import hf_cots.train_dvae
from hf_cots import COTSImageTokenizer, COTSImageTokenizerConfig
from hf_cots.training.image_tokenizer import DVAETrainer, cosine
from tests.support.worlds import all_pairs, checkpoint, log_history


CONFIG = {
    "image_size": 32,
    "codebook_size": 64,
    "hidden_size": 8,
    "decoder_input_size": 8,
    "blocks_per_group": 1,
    "kl_weight": 0.001,
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of pictures and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    for name, picture, _ in all_pairs():
        picture.save(folder / name)
    return folder


def flags(data, output_dir, config=None, **settings):
    """`config` holds fields beside CONFIG's, or is the flag's own text; a setting of None or "" leaves a flag out."""
    defaults = {
        "config": config if isinstance(config, str) else json.dumps(CONFIG | (config or {})),
        "train_data": data,
        "output_dir": output_dir,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 5,
    }
    merged = {name: value for name, value in (defaults | settings).items() if value not in (None, "")}
    return [word for name, value in merged.items() for word in (f"--{name}", str(value))]


def train(*args, **settings):
    return hf_cots.train_dvae.train(flags(*args, **settings))


def test_the_cosine():
    assert [cosine(1, 1 / 16, x) for x in (0, 1, 7)] == [1, 1 / 16, 1 / 16]
    assert cosine(1, 0.5, 0.5) == pytest.approx(0.75)
    assert cosine(0, 6.6, 0.25) == pytest.approx(6.6 * (1 - 2**-0.5) / 2)


def test_the_schedules_are_dalle_s_scaled_to_the_steps(bare, tmp_path, monkeypatch):
    """Temperature 1 to 1/16 in a twentieth of the steps, KL weight 0 to the config's in a 600th, and the learning rate
    1e-4 to 1.25e-6; as they reach the model, step by step."""
    seen = []

    class Witness(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            rate = kwargs["lr_scheduler"].get_last_lr()[0]
            seen.append((trainer.temperature(), trainer.kl_weight(), rate))

    def keep(self, *args, **kwargs):
        nonlocal trainer
        trainer = self
        original(self, *args, **kwargs)
        self.add_callback(Witness())

    trainer, original = None, DVAETrainer.__init__
    monkeypatch.setattr(DVAETrainer, "__init__", keep)
    settings = {"max_steps": 40, "learning_rate": None, "kl_warmup_fraction": 0.1, "per_device_train_batch_size": 2}
    train(bare, tmp_path, {"hidden_size": 4, "image_size": 8}, **settings)
    temperatures, weights, rates = zip(*seen)
    assert temperatures[:3] == pytest.approx((1, (1 + 1 / 16) / 2, 1 / 16))
    assert set(temperatures[2:]) == {1 / 16}
    assert weights[:5] == pytest.approx([0.001 * x for x in (0, (1 - 0.5**0.5) / 2, 0.5, (1 + 0.5**0.5) / 2, 1)])
    assert rates[0] == pytest.approx(1e-4)
    assert rates[20] == pytest.approx((1e-4 + 1.25e-6) / 2)
    assert rates[-1] == pytest.approx(1.25e-6, rel=0.2)
    defaults = hf_cots.train_dvae.DVAETrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (defaults.temperature_anneal_fraction, defaults.kl_warmup_fraction) == (150e3 / 3e6, 5e3 / 3e6)
    assert defaults.lr_scheduler_kwargs["min_lr_rate"] * defaults.learning_rate == 1.25e-6


@pytest.mark.parametrize("reconstruction", ["l2", "logit_laplace"])
def test_a_run_leaves_model_card_log_and_pictures(bare, tmp_path, capsys, reconstruction):
    fields = {"reconstruction": reconstruction}
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    results = train(bare, tmp_path, fields, eval_data=bare, **settings)
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert type(loaded).__name__ == "COTSImageTokenizer"
    assert loaded.config.reconstruction == reconstruction
    assert {"mse", "mae", "psnr", "perplexity", "used_codes"} <= results.keys()
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| mse | {results['mse']:.5g} |" in card
    assert "![Pictures above what their codes keep](reconstructions.png)" in card
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


def test_an_interrupted_run_equals_the_whole_one(world, tmp_path):
    """Weights, optimizer, schedule and log; with annealed temperatures, whose noise differs at every step."""
    settings = {
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
        "temperature_anneal_fraction": 1,
        "kl_warmup_fraction": 0.5,
    }
    train(world.parquet, tmp_path / "whole", max_steps=6, **settings)
    parts = tmp_path / "parts"

    class Killed(Exception):
        pass

    class Killer(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        original = DVAETrainer.__init__

        def with_killer(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(Killer())

        patch.setattr(DVAETrainer, "__init__", with_killer)
        with pytest.raises(Killed):
            train(world.parquet, parts, max_steps=6, **settings)
    train(world.parquet, parts, max_steps=6, resume_from_checkpoint="last", **settings)
    one, other = checkpoint(parts, 6), checkpoint(tmp_path / "whole", 6)
    assert all(torch.equal(one[name], other[name]) for name in other)
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(f / "checkpoint-6" / name, weights_only=True) for f in (parts, tmp_path / "whole")]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    logs = [[line for line in log_history(f, 6) if "loss" in line] for f in (parts, tmp_path / "whole")]
    assert logs[0] == logs[1]


def prepared(folder, bias):
    """An image tokenizer that always says code 3, or, with a bias of 0, as many as random weights can."""
    model = COTSImageTokenizer(COTSImageTokenizerConfig(**CONFIG)).eval()
    patches = torch.rand(8, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        model.encoder.head.bias -= model.get_logits(patches).mean(dim=(0, 2, 3))
        model.encoder.head.bias[3] += bias
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bias", "collapsed"), [(50.0, 1), (0.0, 0)])
def test_a_collapsed_codebook_is_said_and_no_other(bare, tmp_path, caplog, bias, collapsed):
    model = prepared(tmp_path / "start", bias)
    with caplog.at_level(logging.WARNING):
        results = train(bare, tmp_path / "run", "", model=model, eval_data=bare, learning_rate=1e-6)
    assert results["collapsed"] == collapsed
    assert (results["used_codes"] < 6.4) == bool(collapsed)
    said = [message for message in caplog.messages if "collapsed" in message]
    assert len(said) == 2 * collapsed, "once in training, once in the evaluation"
    if collapsed:
        assert "at step 1: 1 of 64 codes are in use" in said[0]
        assert "1 of 64 codes are in use on 40 pictures" in said[1]


def test_streams_and_broken_pictures(world, tmp_path):
    settings = {"streaming": True, "shuffle_buffer_size": 16, "image_column": "png", "max_steps": 6}
    train(str(world.tars / "*.tar"), tmp_path / "stream", **settings)
    assert (tmp_path / "stream" / "model" / "model.safetensors").is_file()
    folder = tmp_path / "some"
    folder.mkdir()
    for name, picture, _ in all_pairs():
        picture.save(folder / name)
    (folder / "p05.png").write_bytes(b"no picture")
    train(folder, tmp_path / "broken", max_steps=5)
    assert "p05.png" in (tmp_path / "broken" / "broken_images.jsonl").read_text()


def test_training_goes_on_from_a_trained_one(bare, tmp_path):
    train(bare, tmp_path / "one")
    train(bare, tmp_path / "two", "", model=tmp_path / "one" / "model", learning_rate=0)
    one, two = (AutoModel.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": '{"codebook": 3}'}, "no field of COTSImageTokenizerConfig: codebook"),
        ({"config": "{3"}, "--config is no JSON"),
        ({"config": "[3]"}, "--config must be a mapping"),
        ({"model": "/some/where"}, "leave --config away"),
        ({"config": '{"has_decoder": false}'}, "without a decoder cannot be trained"),
        ({"per_device_train_batch_size": 64}, "holds 40 pictures, a batch 64"),
        ({"train_data": "/nothing/here"}, "/nothing/here"),
        ({"image_column": "picture"}, "no column 'picture'"),
    ],
)
def test_errors_are_one_line(bare, tmp_path, change, message):
    with pytest.raises(SystemExit) as stopped:
        hf_cots.train_dvae.main(flags(bare, tmp_path, **change))
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_recipe_file(bare, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    lines = ["config:", *(f"  {name}: {value}" for name, value in CONFIG.items()), "max_steps: 1", "seed: 3"]
    recipe.write_text("\n".join(lines) + "\n")
    words = [recipe, *flags(bare, tmp_path / "out", "", max_steps=None)]
    hf_cots.train_dvae.train([str(word) for word in words])
    assert (tmp_path / "out" / "model" / "config.json").is_file()
