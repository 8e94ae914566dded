"""COTS, SIMLA and COOKIE through one entry point: what a run leaves and logs, resuming, what the flags refuse."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from hf_cots import CookieForPreTraining, CookieModel, COTSForPreTraining, COTSModel, SimlaForPreTraining, SimlaModel
from hf_cots.search.index import ImageIndex
from hf_cots.search.loading import load_encoder
from hf_cots.train import main, train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_data import build_data, build_views
from hf_cots.training.build_model import build_tokenizer
from tests.support.cli import succeed
from tests.support.runs import assert_same_checkpoints, assert_same_weights, cookie_flags, make_model, simla_flags
from tests.support.worlds import World, all_pairs, checkpoint, log_history


FLAGS = {"cots": World.flags, "simla": simla_flags, "cookie": cookie_flags}
CLASSES = {
    "cots": (COTSForPreTraining, COTSModel),
    "simla": (SimlaForPreTraining, SimlaModel),
    "cookie": (CookieForPreTraining, CookieModel),
}
TERMS = {
    "cots": ("instance", "mvm", "mlm", "task"),
    "simla": ("itc", "itm", "mlm", "mim", "psl"),
    "cookie": ("cross_modal", "visual", "textual"),
}
CARDS = {
    "cots": ("library_name: transformers", "for 4 steps of 8 pairs"),
    "simla": ("Single-Stream Multi-Level Alignment", "itc 1, itm 1, mlm 1, mim 1, psl 1"),
    "cookie": (
        "Contrastive Cross-Modal Knowledge Sharing",
        "cross_modal 1, visual 1, textual 1",
        "info_nce within the batch, temperature 0.07, 2 shared layers",
    ),
}
RUN = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "text_learning_rate": 1e-4, "dropout": 0.1}
NO_SOURCE = {"vision": None, "text": None, "image_tokenizer": None, "architecture": None}
ONLY_SIMLA = pytest.mark.parametrize("finished", ["simla"], indirect=True)
ONLY_COOKIE = pytest.mark.parametrize("finished", ["cookie"], indirect=True)


def build(kind, world, overrides=None, **settings):
    return make_model(FLAGS[kind](world, world.root / "out", overrides, **settings))


@pytest.fixture(scope="module", params=FLAGS)
def finished(request, world):
    """The architecture, the folder of a run, and its results."""
    kind, folder = request.param, world.root / request.param
    return kind, folder, train(FLAGS[kind](world, folder, eval_data=world.imagefolder, **RUN))


def test_a_run_logs_every_term(finished):
    kind, folder, _ = finished
    lines = [line for line in log_history(folder, 4) if "loss" in line]
    assert len(lines) == 4
    for line in lines:
        terms = [line[f"loss_{term}"] for term in TERMS[kind]]
        assert line["loss"] == pytest.approx(sum(terms), abs=1e-3)
        assert min(terms) > 0
        assert line["temperature"] > 0
        assert ("filter_drop_rate" in line) == (kind == "cots")
    filled = [None] * 4 if kind == "cookie" else pytest.approx([8 / 24, 16 / 24, 1, 1], abs=1e-3)
    assert [line.get("queue_filled") for line in lines] == filled


def test_a_run_leaves_a_dual_encoder(finished):
    """Its figures are those of the folder, opened as any dual encoder is."""
    kind, folder, results = finished
    encoder = load_encoder(str(folder / "model"), "cpu")
    assert type(encoder.model) is CLASSES[kind][1]
    trained, weights = checkpoint(folder, 4), encoder.model.state_dict()
    assert_same_weights(weights, {name: trained[f"{kind}.{name}"] for name in weights})
    texts, images = ([pair[i] for pair in all_pairs()] for i in (2, 1))
    scores = encoder.encode_texts(texts) @ encoder.encode_images(images).T
    hits = (scores.argmax(axis=1) == range(40)).mean()
    assert results["text_to_image"]["R@1"] == pytest.approx(100 * hits)
    card = (folder / "model" / "README.md").read_text()
    assert card.startswith("---\n")
    assert [text for text in CARDS[kind] if text not in card] == []


def test_a_killed_run_goes_on_as_if_nothing_had_been(finished, world):
    """SIMLA's negatives are drawn from torch's generator, whose state a checkpoint holds."""
    kind, folder, _ = finished
    again = world.root / f"{kind}-again"
    shutil.copytree(folder / "checkpoint-2", again / "checkpoint-2")
    train(FLAGS[kind](world, again, resume_from_checkpoint="last", **RUN))
    assert_same_checkpoints(again, folder, 4)


@pytest.mark.parametrize("source", ["checkpoint-4", "model"])
def test_a_checkpoint_knows_what_it_is(finished, world, source):
    kind, folder, _ = finished
    codes = {"cots": {"mvm_weight": 0}, "simla": {"mim_weight": 0}, "cookie": {}}[kind]
    overrides = codes if source == "model" else {}
    model = build(kind, world, overrides, model=folder / source, **NO_SOURCE)
    assert type(model) is CLASSES[kind][0]
    trained, weights = checkpoint(folder, 4), model.encoder.state_dict()
    assert_same_weights(weights, {name: trained[f"{kind}.{name}"] for name in weights})
    assert int(model.pairs_seen) == 0


@ONLY_SIMLA
def test_a_simla_goes_on_with_another_queue_and_needs_an_image_tokenizer(finished, world):
    _, folder, _ = finished
    model = build("simla", world, {"queue_size": 5}, model=folder / "checkpoint-4", **NO_SOURCE)
    assert len(model.key_queue) == 5
    assert int(model.key_queue.filled) == 0
    with pytest.raises(ValueError, match="mim_weight > 0 needs a trained image tokenizer"):
        build("simla", world, model=folder / "model", **NO_SOURCE)
    assert build("simla", world, {"mim_weight": 0}, model=folder / "model", **NO_SOURCE).image_tokenizer is None


@ONLY_COOKIE
def test_evaluate_and_search_with_the_same_commands(finished, world, tmp_path):
    _, folder, results = finished
    report = tmp_path / "report.json"
    succeed("evaluate", folder / "model", world.imagefolder, "--output", report)
    assert json.loads(report.read_text())["text_to_image"]["R@1"] == pytest.approx(results["text_to_image"]["R@1"])
    index = ImageIndex.from_folder(str(folder / "model"), world.imagefolder)
    best = index.search(all_pairs()[7][1], k=1)[0]
    assert best.path.name == all_pairs()[7][0]
    assert best.score == pytest.approx(1, abs=1e-5)
    succeed("search", folder / "model", world.imagefolder, "red square")


@ONLY_COOKIE
def test_fine_tuning_with_the_hinge_loss(finished, world):
    _, folder, _ = finished
    overrides = {"cross_modal_loss": "hinge", "visual_weight": 0, "textual_weight": 0}
    output, steps = world.root / "tuned", {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    train(cookie_flags(world, output, overrides, model=folder / "model", **steps, **NO_SOURCE))
    lines = [line for line in log_history(output, 6) if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["loss_cross_modal"], abs=1e-3) for line in lines)
    assert all(line["loss_visual"] == line["loss_textual"] == 0 for line in lines)
    saved = json.loads((output / "checkpoint-6" / "config.json").read_text())
    assert saved["cross_modal_loss"] == "hinge"


def test_a_stream_trains_too(world):
    output = world.root / "streamed"
    settings = {"train_data": world.parquet, "streaming": True, "save_strategy": "steps", "save_steps": 3}
    train(cookie_flags(world, output, **settings))
    assert all(log_history(output, 3)[0][f"loss_{term}"] > 0 for term in TERMS["cookie"])


def test_other_captions_are_asked_of_the_pairs_only_where_they_are_contrasted(world):
    for overrides, wanted in (({}, False), ({"text_view": "other_caption"}, True), ({"textual_weight": 0}, False)):
        _, data, training = parse_arguments(cookie_flags(world, world.root / "out"))
        pairs, _ = build_data(data, training)
        views = build_views(build("cookie", world, overrides).config, data, pairs)
        assert pairs.other_captions == wanted
        assert (views.text is None) == ("textual_weight" in overrides)


def test_the_text_stack_reads_without_separator(world):
    arguments, _, _ = parse_arguments(simla_flags(world, world.root / "out"))
    tokenizer = build_tokenizer(arguments)
    ids = tokenizer("A red, light-blue circle!")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "red", "light", "blue", "circle"]
    _, text = world.towers()
    assert AutoTokenizer.from_pretrained(text)("red")["input_ids"][-1] == tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("kind", "overrides", "settings", "message"),
    [
        ("simla", {"similarity_queue_size": 8}, {}, "SimlaConfig has no field similarity_queue_size"),
        ("simla", {}, {"image_tokenizer": None}, "mim_weight > 0 needs a trained image tokenizer"),
        ("simla", {}, {"lora_rank": 2}, "--lora_rank is only supported by COTS"),
        ("cookie", {"queue_size": 8}, {}, "CookieConfig has no field queue_size"),
        ("cookie", {}, {"image_tokenizer": "org/dvae"}, "does not mask patches"),
        ("cookie", {}, {"lora_rank": 2}, "--lora_rank is only supported by COTS"),
        ("cookie", {}, {"code_cache": "codes"}, "--code_cache is only for masked image modeling"),
        ("cookie", {"text_view": "other_caption"}, {"streaming": True}, "leave out --streaming"),
    ],
)
def test_what_does_not_go_is_one_line(world, kind, overrides, settings, message):
    with pytest.raises(SystemExit, match=message):
        main(FLAGS[kind](world, world.root / "refused", overrides, **settings))


def test_towers_of_two_widths(world):
    narrow = {"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2}
    narrow |= {"num_hidden_layers": 1, "intermediate_size": 16}
    with pytest.raises(Exception, match="vision_config and text_config must have the same hidden_size, got 16 and 32"):
        build("simla", world, vision=json.dumps(narrow))
