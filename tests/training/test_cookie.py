"""COOKIE through the same entry point: what a run leaves and logs, resuming, evaluation, search, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from hf_cots import CookieForPreTraining, CookieModel
from hf_cots.cli import app
from hf_cots.search.index import ImageIndex
from hf_cots.search.loading import load_encoder
from hf_cots.train import main, train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_data import build_data, build_views
from hf_cots.training.build_model import build_model, build_tokenizer
from tests.support.worlds import World, all_pairs, checkpoint, log_history


TERMS = ("loss_cross_modal", "loss_visual", "loss_textual")
RUN = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "text_learning_rate": 1e-4}


def cookie_flags(world: World, output_dir: Path, overrides: dict | None = None, **settings) -> list[str]:
    """[`World.flags`] of a COOKIE with all three contrasts."""
    fields = {"projection_dim": 16, "num_shared_heads": 2, "shared_intermediate_size": 32, "learn_temperature": True}
    settings = {"architecture": "cookie", "image_tokenizer": None, "config_overrides": fields | (overrides or {})} | (
        settings
    )
    return world.flags(output_dir, **settings)


def build(world, overrides=None, **settings):
    arguments, _, _ = parse_arguments(cookie_flags(world, world.root / "out", overrides, **settings))
    return build_model(arguments, build_tokenizer(arguments))


@pytest.fixture(scope="module")
def finished(world):
    folder = world.root / "finished"
    return folder, train(cookie_flags(world, folder, eval_data=world.imagefolder, dropout=0.1, **RUN))


def test_a_run_logs_every_term(finished):
    folder, _ = finished
    lines = [line for line in log_history(folder, 4) if "loss" in line]
    assert len(lines) == 4
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[term] for term in TERMS), abs=1e-3)
        assert all(line[term] > 0 for term in TERMS)
        assert line["temperature"] > 0
        assert not {"filter_drop_rate", "queue_filled"} & set(line)


def test_a_run_leaves_a_dual_encoder(finished):
    """Its figures are those of the folder, opened as any dual encoder is."""
    folder, results = finished
    encoder = load_encoder(str(folder / "model"), "cpu")
    assert type(encoder.model) is CookieModel
    trained = checkpoint(folder, 4)
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, trained[f"cookie.{name}"]), name
    texts, images = ([pair[i] for pair in all_pairs()] for i in (2, 1))
    scores = encoder.encode_texts(texts) @ encoder.encode_images(images).t()
    hits = (scores.argmax(dim=1) == torch.arange(40)).float().mean()
    assert results["text_to_image"]["R@1"] == pytest.approx(100 * hits.item())
    card = (folder / "model" / "README.md").read_text()
    assert "Contrastive Cross-Modal Knowledge Sharing" in card
    assert "cross_modal 1, visual 1, textual 1" in card
    assert "info_nce within the batch, temperature 0.07, 2 shared layers" in card


def test_a_killed_run_goes_on_as_if_nothing_had_been(finished, world):
    folder, _ = finished
    again = world.root / "again"
    shutil.copytree(folder / "checkpoint-2", again / "checkpoint-2")
    train(cookie_flags(world, again, dropout=0.1, resume_from_checkpoint="last", **RUN))
    wanted, given = (load_file(f / "checkpoint-4" / "model.safetensors") for f in (folder, again))
    assert wanted.keys() == given.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, given[name]), name


def test_evaluate_and_search_with_the_same_commands(finished, world, tmp_path):
    folder, results = finished
    report = tmp_path / "report.json"
    words = ["evaluate", str(folder / "model"), str(world.imagefolder), "--output", str(report)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(report.read_text())["text_to_image"]["R@1"] == pytest.approx(results["text_to_image"]["R@1"])
    index = ImageIndex.from_folder(str(folder / "model"), world.imagefolder)
    best = index.search(all_pairs()[7][1], k=1)[0]
    assert best.path.name == all_pairs()[7][0]
    assert best.score == pytest.approx(1, abs=1e-5)
    done = CliRunner().invoke(app, ["search", str(folder / "model"), str(world.imagefolder), "red square"])
    assert done.exit_code == 0, done.output


def test_a_checkpoint_knows_what_it_is(finished, world):
    folder, _ = finished
    source = {"vision": None, "text": None, "architecture": None}
    for name in ("checkpoint-4", "model"):
        model = build(world, model=folder / name, **source)
        assert type(model) is CookieForPreTraining
        wanted = checkpoint(folder, 4)["cookie.transformer.norm.weight"]
        assert torch.equal(model.cookie.transformer.norm.weight, wanted)
        assert int(model.pairs_seen) == 0
    tuned = build(world, {"cross_modal_loss": "hinge", "visual_weight": 0}, model=folder / "model", **source)
    assert tuned.config.cross_modal_loss == "hinge"


def test_fine_tuning_with_the_hinge_loss(finished, world):
    folder, _ = finished
    overrides = {"cross_modal_loss": "hinge", "visual_weight": 0, "textual_weight": 0}
    source = {"vision": None, "text": None, "architecture": None, "model": folder / "model"}
    output = world.root / "tuned"
    train(cookie_flags(world, output, overrides, save_strategy="steps", save_steps=6, max_steps=6, **source))
    lines = [line for line in log_history(output, 6) if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["loss_cross_modal"], abs=1e-3) for line in lines)
    assert all(line["loss_visual"] == line["loss_textual"] == 0 for line in lines)


def test_a_stream_trains_too(world):
    output = world.root / "streamed"
    settings = {"train_data": world.parquet, "streaming": True, "save_strategy": "steps", "save_steps": 3}
    train(cookie_flags(world, output, **settings))
    assert all(log_history(output, 3)[0][term] > 0 for term in TERMS)


def test_other_captions_are_asked_of_the_pairs_only_where_they_are_contrasted(world):
    for overrides, wanted in (({}, False), ({"text_view": "other_caption"}, True), ({"textual_weight": 0}, False)):
        model, data, training = parse_arguments(cookie_flags(world, world.root / "out", overrides))
        pairs, _ = build_data(data, training)
        views = build_views(build_model(model, build_tokenizer(model)).config, data, pairs)
        assert pairs.other_captions == wanted
        assert (views.text is None) == ("textual_weight" in overrides)


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ({"queue_size": 8}, {}, "no field of CookieConfig: queue_size"),
        ({}, {"image_tokenizer": "org/dvae"}, "masks no patches"),
        ({}, {"lora_rank": 2}, "--lora_rank is for COTS"),
        ({}, {"code_cache": "codes"}, "--code_cache is for masked image modeling"),
        ({"text_view": "other_caption"}, {"streaming": True}, "leave out --streaming"),
    ],
)
def test_what_does_not_go_is_one_line(world, overrides, settings, message):
    with pytest.raises(SystemExit, match=message):
        main(cookie_flags(world, world.root / "refused", overrides, **settings))
