"""From flags to model and data: each source of the model, each contradiction, frozen towers and adapters."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from hf_cots import COTSForPreTraining, COTSImageTokenizer
from hf_cots.train import main
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_data import build_collator, build_data
from hf_cots.training.build_model import build_model, build_processor, build_tokenizer
from tests.support.runs import make_model
from tests.support.tiny import tiny_batch, tiny_config
from tests.support.worlds import SPECIAL, tiny_tokenizer


NO_TOWERS = {"vision": None, "text": None}


@pytest.fixture(scope="module")
def config_folder(world):
    """A folder with a COTS config and a tokenizer, without weights."""
    folder = world.root / "config"
    tiny_config().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def build(world, overrides=None, **settings):
    return make_model(world.flags(world.root / "out", overrides, **settings))


def same_weights(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs if "pooler" not in name)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------------- sources of the model


def test_from_towers(world):
    model = build(world, {"queue_size": 11})
    _, text = world.towers()
    assert same_weights(model.cots.text_model, BertModel.from_pretrained(text))
    assert same_weights(model.image_tokenizer, COTSImageTokenizer.from_pretrained(world.image_tokenizer))
    assert model.config.queue_size == len(model.key_queue) == 11
    assert same_weights(model.cots, model.momentum_encoder)
    assert list(model.config.special_token_ids) == list(range(len(SPECIAL)))
    assert model.config.mask_token_id == SPECIAL.index("[MASK]")


def test_a_tower_from_random_weights(world):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"model_type": "vit", "image_size": 32, "patch_size": 8, "add_pooling_layer": False} | sizes
    model = build(world, vision=json.dumps(config))
    assert model.config.vision_config.hidden_size == 16
    assert not hasattr(model.config.vision_config, "add_pooling_layer")


def test_from_a_checkpoint(world, tmp_path):
    first = build(world)
    with torch.no_grad():
        first.mlm_bias.add_(1)
        first.key_queue.image_keys.add_(2)
    first.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    source = NO_TOWERS | {"image_tokenizer": None, "model": tmp_path}
    second = build(world, **source)
    assert same_weights(second.cots, first.cots)
    assert torch.equal(second.mlm_bias, first.mlm_bias)
    assert same_weights(second.momentum_encoder, first.momentum_encoder)
    assert int(second.key_queue.filled) == 0
    assert second.key_queue.image_keys.abs().sum() == 0
    short = build(world, {"queue_size": 5}, **source)
    assert len(short.key_queue) == short.config.queue_size == 5
    assert len(short.score_queue.scores) == first.config.similarity_queue_size


def test_from_a_checkpoint_of_the_encoder_alone(world):
    source = NO_TOWERS | {"model": world.model}
    model = build(world, **source)
    assert same_weights(model.image_tokenizer, COTSImageTokenizer.from_pretrained(world.image_tokenizer))
    with pytest.raises(ValueError, match="needs a trained image tokenizer"):
        build(world, image_tokenizer=None, **source)
    assert build(world, {"mvm_weight": 0}, image_tokenizer=None, **source).image_tokenizer is None


@pytest.mark.parametrize("what", ["folder", "file"])
def test_from_a_config(world, config_folder, what):
    source = config_folder if what == "folder" else config_folder / "config.json"
    settings = NO_TOWERS | {"config": source, "tokenizer": config_folder}
    model = build(world, {"momentum": 0.5, "queue_size": 9}, **settings)
    assert model.config.text_config.hidden_size == 24
    assert model.config.momentum == 0.5
    assert len(model.key_queue) == 9
    assert same_weights(model.image_tokenizer, COTSImageTokenizer.from_pretrained(world.image_tokenizer))


def test_a_tower_within_a_config_can_be_overridden(world, config_folder):
    deeper = tiny_config().vision_config.to_dict() | {"num_hidden_layers": 3}
    model = build(world, {"vision_config": deeper}, **NO_TOWERS, config=config_folder)
    assert len(model.cots.vision_model.layers) == len(model.momentum_encoder.vision_model.layers) == 3


# ---------------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    "settings",
    [{"model": "m"}, {"config": "c"}, {"vision": None}, {"text": None, "tokenizer": "t"}, NO_TOWERS],
)
def test_exactly_one_source_of_the_model(world, settings):
    """An error before anything is loaded, through the entry point that users see."""
    with pytest.raises(SystemExit, match="exactly one source for the model"):
        main(world.flags(world.root / "out", **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_tokenizer": None}, r"--image_tokenizer.*mvm_weight"),
        (
            {"freeze": "audio"},
            "--freeze takes vision and text, or one of them with a number of layers as in vision:8, got 'audio'",
        ),
        ({"vision": '{"hidden_size": 16}'}, "needs a model_type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_flags_that_do_not_fit(world, settings, message):
    with pytest.raises(ValueError, match=message):
        build(world, **settings)


def test_a_vocabulary_that_is_too_small(world, tmp_path):
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(f"word{i}" for i in range(500))])}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"505 tokens, but the text tower only {len(tiny_tokenizer())}"):
        build(world, tokenizer=tmp_path)


def test_a_tokenizer_without_a_mask_token(world, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["mask_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if AutoTokenizer.from_pretrained(tmp_path).mask_token is not None:
        pytest.skip("this version of transformers puts BERT's mask token back")
    words = len(AutoTokenizer.from_pretrained(tmp_path))
    config = build(world, tokenizer=tmp_path).config  # one is added, see test_mask_token.py
    assert (config.mask_token_id, config.text_config.vocab_size) == (words, words + 1)


def test_a_config_of_another_model(world, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    _, text = world.towers()
    with pytest.raises(ValueError, match="is not a COTS, SIMLA or COOKIE model: its model_type is 'bert'"):
        build(world, **NO_TOWERS, config=tmp_path, tokenizer=text)


@pytest.mark.parametrize("source", ["towers", "config", "checkpoint"])
@pytest.mark.parametrize(
    ("field", "value", "message"), [("quue_size", 8, "quue_size"), ("queue_size", 0, "queue_size must be at least 1")]
)
def test_wrong_overrides_are_refused(world, config_folder, source, field, value, message):
    """A misspelled field must not be ignored, and a value out of range must not evade the validation."""
    settings = {
        "towers": {},
        "config": NO_TOWERS | {"config": config_folder},
        "checkpoint": NO_TOWERS | {"model": world.model},
    }[source]
    with pytest.raises(Exception, match=message):
        build(world, {field: value}, **settings)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 64, r"grid of 8 x 8 codes .* 4 x 4 patches"),
        ("codebook_size", 32, "codebook_size=64, but the config has 32"),
    ],
)
def test_an_image_tokenizer_that_does_not_fit(world, config_folder, field, value, message):
    other = tiny_config().image_tokenizer_config.to_dict() | {field: value}
    with pytest.raises(Exception, match=message):
        build(world, {"image_tokenizer_config": other}, **NO_TOWERS, config=config_folder)


def test_errors_are_one_line_to_the_user(world, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*no column 'nothing'.*--caption-column"):
        main(world.flags(tmp_path, caption_column="nothing"))


# ---------------------------------------------------------------------- processor and data


def test_texts_are_cut_where_asked_and_where_the_tokenizer_ends(world):
    arguments, _, _ = parse_arguments(world.flags(world.root / "out", max_text_length=4))
    tokenizer = build_tokenizer(arguments)
    processor = build_processor(build_model(arguments, tokenizer).config, tokenizer)
    assert processor(text=["red red red red red red red"], return_tensors="pt")["input_ids"].shape == (1, 4)
    arguments.max_text_length = 1000
    assert build_tokenizer(arguments).model_max_length == 24


def test_the_processor_has_the_size_and_mean_of_the_config(world):
    config = tiny_config(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    image_processor = build_processor(config, tiny_tokenizer()).image_processor
    assert dict(image_processor.size) == {"height": 32, "width": 32}
    assert tuple(image_processor.image_mean) == (0.1, 0.2, 0.3)
    assert tuple(image_processor.image_std) == (0.4, 0.5, 0.6)


def test_data_and_collator_follow_the_flags(world, tmp_path):
    flags = world.flags(tmp_path, eval_data=world.parquet, min_scale=0.7, flip=0.1, seed=12)
    arguments, data, training = parse_arguments(flags)
    train_pairs, eval_pairs = build_data(data, training)
    assert (len(train_pairs), len(eval_pairs)) == (40, 40)
    assert train_pairs.seed == 12
    assert train_pairs.report.path == tmp_path / "broken_images.jsonl"
    tokenizer = build_tokenizer(arguments)
    config = build_model(arguments, tokenizer).config
    augmentation = build_collator(build_processor(config, tokenizer), config, data).augmentation
    assert (augmentation.size, augmentation.min_scale, augmentation.flip) == (32, 0.7, 0.1)


# ---------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_frozen_towers_get_no_gradient_and_no_dropout(world, tower):
    model = build(world, freeze=tower)
    assert not getattr(model.cots, f"{tower}_model").training
    trained = trained_names(model)
    assert not any(f"cots.{tower}_model." in name for name in trained)
    assert any("cots.visual_projection" in name for name in trained)
    batch = tiny_batch(4)
    batch["input_ids"] = batch["input_ids"] % 20 + 5
    model.train()(**batch).loss.backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    assert sum(p.grad is not None for p in model.parameters()) > 10


def test_lora_trains_adapters_projections_and_heads_only(world):
    pytest.importorskip("peft")
    model = build(world, lora_rank=2).get_base_model()
    assert isinstance(model, COTSForPreTraining)
    trained = trained_names(model)
    towers = {name for name in trained if "_model." in name}
    assert all("lora_" in name or name.endswith("mask_token") for name in towers)
    assert any("vision_model" in name for name in towers)
    assert any("text_model" in name for name in towers)
    for part in ("cots.visual_projection", "cots.text_projection", "mvm_head", "mvm_classifier", "mlm_head"):
        assert any(name.startswith(part) for name in trained), part
    assert "mlm_bias" in trained
    assert not any(name.startswith(("momentum_encoder", "image_tokenizer")) for name in trained)


def test_lora_leaves_a_frozen_tower_alone(world):
    pytest.importorskip("peft")
    trained = trained_names(build(world, lora_rank=2, freeze="text").get_base_model())
    assert not any("cots.text_model" in name for name in trained)
    assert any("cots.vision_model" in name for name in trained)


def test_the_momentum_encoder_follows_the_adapters(world):
    pytest.importorskip("peft")
    model = build(world, lora_rank=2).get_base_model()
    online, followers = (dict(m.named_parameters()) for m in (model.cots, model.momentum_encoder))
    adapters = [name for name in followers if "lora_" in name]
    assert adapters
    assert all(torch.equal(followers[name], online[name]) for name in followers)
    with torch.no_grad():
        for name in adapters:
            online[name].add_(1)
    model.update_momentum()
    for name in adapters:  # momentum 0.9
        torch.testing.assert_close(online[name] - followers[name], torch.full_like(followers[name], 0.9))
