"""SIMLA through the same entry point: what a run leaves and logs, resuming, and what the flags refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hf_cots import SimlaForPreTraining, SimlaModel
from hf_cots.search.loading import load_encoder
from hf_cots.train import main, train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_model import build_model, build_tokenizer
from tests.support.worlds import World, all_pairs, checkpoint, log_history


def flags(world: World, output_dir: Path, overrides: dict | None = None, **settings) -> list[str]:
    """[`World.flags`] of a SIMLA with all five terms."""
    fields = {
        "projection_dim": 16,
        "queue_size": 24,
        "momentum": 0.9,
        "num_masked_patches": 5,
        "min_block_patches": 2,
        "distillation_warmup_steps": 2,
    }
    settings = {"architecture": "simla", "config_overrides": fields | (overrides or {})} | settings
    return world.flags(output_dir, **settings)


def build(world, overrides=None, **settings):
    arguments, _, _ = parse_arguments(flags(world, world.root / "out", overrides, **settings))
    return build_model(arguments, build_tokenizer(arguments))


@pytest.fixture(scope="module")
def finished(world):
    folder = world.root / "finished"
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "text_learning_rate": 1e-4}
    return folder, train(flags(world, folder, eval_data=world.imagefolder, dropout=0.1, **settings))


def test_a_run_logs_every_term(finished):
    folder, _ = finished
    lines = [line for line in log_history(folder, 4) if "loss" in line]
    terms = ("loss_itc", "loss_itm", "loss_mlm", "loss_mim", "loss_psl")
    assert len(lines) == 4
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[term] for term in terms), abs=1e-3)
        assert all(line[term] > 0 for term in terms)
        assert line["temperature"] > 0
        assert "filter_drop_rate" not in line
    assert [line["queue_filled"] for line in lines] == pytest.approx([8 / 24, 16 / 24, 1, 1], abs=1e-3)


def test_a_run_leaves_a_dual_encoder_with_a_reranker(finished):
    """Its figures are those of the folder, opened as any dual encoder is."""
    folder, results = finished
    encoder = load_encoder(str(folder / "model"), "cpu")
    assert type(encoder.model) is SimlaModel
    trained = checkpoint(folder, 4)
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, trained[f"simla.{name}"]), name
    texts, images = ([pair[i] for pair in all_pairs()] for i in (2, 1))
    scores = encoder.encode_texts(texts) @ encoder.encode_images(images).t()
    hits = (scores.argmax(dim=1) == torch.arange(40)).float().mean()
    assert results["text_to_image"]["R@1"] == pytest.approx(100 * hits.item())
    card = (folder / "model" / "README.md").read_text()
    assert "Single-Stream Multi-Level Alignment" in card
    assert "itc 1, itm 1, mlm 1, mim 1, psl 1" in card


def test_a_killed_run_goes_on_as_if_nothing_had_been(finished, world):
    """Negatives are drawn from torch's generator, whose state a checkpoint holds."""
    folder, _ = finished
    again = world.root / "again"
    shutil.copytree(folder / "checkpoint-2", again / "checkpoint-2")
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "text_learning_rate": 1e-4}
    train(flags(world, again, dropout=0.1, resume_from_checkpoint="last", **settings))
    wanted, given = (load_file(f / "checkpoint-4" / "model.safetensors") for f in (folder, again))
    assert wanted.keys() == given.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, given[name]), name


def test_the_text_stack_reads_without_separator(world):
    arguments, _, _ = parse_arguments(flags(world, world.root / "out"))
    tokenizer = build_tokenizer(arguments)
    ids = tokenizer("A red, light-blue circle!")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "red", "light", "blue", "circle"]
    _, text = world.towers()
    assert AutoTokenizer.from_pretrained(text)("red")["input_ids"][-1] == tokenizer.sep_token_id


def test_a_checkpoint_knows_what_it_is(finished, world):
    folder, _ = finished
    source = {"vision": None, "text": None, "image_tokenizer": None, "architecture": None}
    model = build(world, {"queue_size": 5}, model=folder / "checkpoint-4", **source)
    assert type(model) is SimlaForPreTraining
    assert torch.equal(model.simla.itm_head.weight, checkpoint(folder, 4)["simla.itm_head.weight"])
    assert len(model.key_queue) == 5
    assert int(model.key_queue.filled) == 0
    with pytest.raises(ValueError, match="mim_weight > 0 needs a trained image tokenizer"):
        build(world, model=folder / "model", **source)
    assert build(world, {"mim_weight": 0}, model=folder / "model", **source).image_tokenizer is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overrides": {"similarity_queue_size": 8}}, "no field of SimlaConfig: similarity_queue_size"),
        ({"image_tokenizer": None}, "mim_weight > 0 needs a trained image tokenizer"),
        ({"lora_rank": 2}, "--lora_rank is for COTS"),
    ],
)
def test_what_does_not_go_is_one_line(world, settings, message):
    with pytest.raises(SystemExit, match=message):
        main(flags(world, world.root / "refused", **settings))


def test_towers_of_two_widths(world, tmp_path):
    narrow = {"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2}
    narrow |= {"num_hidden_layers": 1, "intermediate_size": 16}
    with pytest.raises(Exception, match="a single stream has one width: vision_config has 16, text_config 32"):
        build(world, vision=json.dumps(narrow))
