"""Flags that depend on a tower: LoRA, image size, pooling and the tokenizer's tokens, from the command line on."""

import json
import logging

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    ConvNextConfig,
    DebertaV2Config,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    T5Config,
    XLNetConfig,
)

from hf_cots import COTSModel
from hf_cots.train import main, train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_model import build_model, build_processor, build_tokenizer
from tests.support.worlds import tiny_tokenizer


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
OFF = {"mvm_weight": 0, "mlm_weight": 0}
NO_TOKENIZER = {"image_tokenizer": None}


def save(folder, config, tokenizer=None):
    if not folder.exists():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def towers(world):
    """Folders of towers with random weights, by name."""
    tokenizer = tiny_tokenizer()
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, **SIZES}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {
        "mpnet": MPNetConfig(**words),
        "modernbert": ModernBertConfig(**words, **ends, cls_token_id=2, sep_token_id=3),
        "deberta-v2": DebertaV2Config(**words),
        "gpt2": GPT2Config(vocab_size=len(tokenizer), n_positions=40, n_embd=32, n_layer=2, n_head=2, **ends),
        "xlnet": XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64),
        "t5": T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
    }
    image = {
        "siglip": SiglipVisionConfig(image_size=32, patch_size=8, **SIZES),
        "convnext": ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    }
    found = {name: save(world.root / f"tower-{name}", config, tokenizer) for name, config in text.items()}
    return found | {name: save(world.root / f"tower-{name}", config) for name, config in image.items()}


def word_tokenizer(folder, **tokens):
    """Words alone: no token in front or behind, and no special tokens but those named."""
    words = sorted(tiny_tokenizer().get_vocab())
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=24, **tokens).save_pretrained(folder)
    return folder


def build(world, overrides=None, **settings):
    settings = NO_TOKENIZER | settings
    arguments, _, _ = parse_arguments(world.flags(world.root / "out", OFF | (overrides or {}), **settings))
    return build_model(arguments, build_tokenizer(arguments))


# ---------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "deberta-v2", "gpt2", "t5"])
def test_lora_reaches_each_text_tower(world, towers, name):
    pytest.importorskip("peft")
    model = build(world, text=towers[name], lora_rank=2)
    trained = [n for n, p in model.named_parameters() if p.requires_grad and ".text_model." in n]
    assert trained
    assert all("lora_" in n for n in trained)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "momentum_encoder" in n)
    assert any("lora_" in n for n, _ in model.named_parameters() if "momentum_encoder.text_model" in n)


def test_lora_adapts_what_it_adapted_before(world):
    """Queries and values of BERT and ViT."""
    pytest.importorskip("peft")
    names = {n for n, _ in build(world, lora_rank=2).named_parameters() if "lora_A" in n and "momentum" not in n}
    leaves = {(n.split(".")[3], n.split(".lora_A")[0].rpartition(".")[2]) for n in names}
    assert leaves == {
        ("vision_model", "q_proj"),
        ("vision_model", "v_proj"),
        ("text_model", "query"),
        ("text_model", "value"),
    }


@pytest.mark.parametrize(
    ("side", "name", "class_name"), [("text", "xlnet", "XLNet"), ("vision", "convnext", "ConvNext")]
)
def test_lora_without_attention_to_adapt_is_refused(world, towers, side, name, class_name):
    settings = {side: towers[name], "lora_rank": 2}
    with pytest.raises(ValueError, match=rf"--lora_rank: {class_name}Model has no attention.*--freeze {side}"):
        build(world, **settings)
    pytest.importorskip("peft")
    model = build(world, **settings, freeze=side)
    assert not any(p.requires_grad for n, p in model.named_parameters() if f".{side}_model." in n)
    assert any(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


# ---------------------------------------------------------------------- image size


def embeddings(folder, side):
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixel_values=torch.ones(1, 3, side, side)).image_embeds


def test_image_size_is_kept_by_model_and_processor(world, tmp_path):
    train(world.flags(tmp_path, OFF, **NO_TOKENIZER, image_size=48, max_steps=1, save_strategy="no"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vision_config"]["image_size"] == 48
    processor = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    assert processor["image_processor"]["size"] == {"height": 48, "width": 48}
    assert embeddings(tmp_path / "model", 48).isfinite().all()


@pytest.mark.parametrize("side", [16, 48])
def test_image_size_of_a_checkpoint(world, side, tmp_path):
    """Continued at another size, it is what its tower gives under `interpolate_pos_encoding`."""
    source = {"vision": None, "text": None, "model": world.model}
    model = build(world, image_size=side, **source)
    assert model.config.vision_config.image_size == side
    assert model.config.image_tokenizer_config.grid_size == side // 8
    before, pixels = COTSModel.from_pretrained(world.model).eval(), torch.randn(2, 3, side, side)
    model.eval()
    with torch.no_grad():
        expected = before(pixel_values=pixels, interpolate_pos_encoding=True).image_embeds
        for encoder in (model.cots, model.momentum_encoder):
            torch.testing.assert_close(encoder(pixel_values=pixels).image_embeds, expected, rtol=1e-5, atol=1e-6)
    words = before.text_model.state_dict()
    assert all(torch.equal(rows, words[name]) for name, rows in model.cots.text_model.state_dict().items())


def test_image_size_with_masked_patches(world):
    """The grid of codes follows: one for each patch."""
    model = build(world, {"mvm_weight": 1}, image_tokenizer=world.image_tokenizer, image_size=48)
    assert model.config.image_tokenizer_config.image_size == 48
    assert model.image_codes(torch.randn(1, 3, 48, 48)).shape == (1, 36)


def test_image_size_of_a_config(world, tmp_path):
    AutoConfig.from_pretrained(world.model).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = build(world, vision=None, text=None, config=tmp_path, image_size=64)
    assert (model.config.vision_config.image_size, model.config.patch_grid) == (64, 8)
    processor = build_processor(model.config, tiny_tokenizer())
    assert processor.image_processor.size["height"] == 64


def test_image_size_that_patches_do_not_tile(world):
    with pytest.raises(SystemExit, match="image_size=50 is not divisible by patch_size=8") as stopped:
        main(world.flags(world.root / "out", OFF, **NO_TOKENIZER, image_size=50))
    assert stopped.value.code == 2


# ---------------------------------------------------------------------- pooling


def test_poolings_are_told(world, towers, caplog):
    with caplog.at_level(logging.INFO):
        model = build(world, vision=towers["siglip"], text=towers["gpt2"])
    assert (model.config.image_pooling, model.config.text_pooling) == ("mean", "last")
    assert 'SiglipVisionModel: image_pooling="mean"' in caplog.text
    assert 'GPT2Model: text_pooling="last"' in caplog.text


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [("gpt2", "text_pooling", "GPT2Model, which is causal"), ("siglip", "image_pooling", "has no class token")],
)
def test_cls_is_refused_before_weights_are_read(world, towers, settings, field, message, monkeypatch):
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", lambda *args, **kwargs: pytest.fail("weights"))
    side = "text" if field == "text_pooling" else "vision"
    with pytest.raises(ValueError, match=f'{field}="cls" does not fit .*{message}'):
        build(world, {field: "cls"}, **{side: towers[settings]})


def test_no_token_in_front_no_class_token(world, tmp_path, caplog):
    folder = word_tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    assert build(world, tokenizer=folder).config.text_pooling == "mean"
    assert build(world, {"text_pooling": "cls"}, tokenizer=folder).config.text_pooling == "cls"
    assert "pools the first word" in caplog.text
    assert build(world).config.text_pooling == "cls"


# ---------------------------------------------------------------------- tokens


def test_no_mask_token(world, tmp_path, caplog):
    """It is asked for where words are masked, and added: one more word, which begins as the mean of the others."""
    folder = word_tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    assert build(world, tokenizer=folder).config.mask_token_id == -1
    assert "was added" not in caplog.text
    words = len(AutoTokenizer.from_pretrained(folder))
    before = AutoModel.from_pretrained(world.towers()[1]).get_input_embeddings().weight.detach()
    model = build(world, {"mlm_weight": 1}, tokenizer=folder)
    assert caplog.text.count("<mask> was added to it and to the text tower") == 1
    mask, config = model.config.mask_token_id, model.config
    assert (mask, config.text_config.vocab_size) == (words, words + 1)
    assert mask in config.special_token_ids
    assert model.mlm_bias.shape == (words + 1,)
    for encoder in (model.cots, model.momentum_encoder):
        rows = encoder.get_input_embeddings().weight
        assert torch.equal(rows[:words], before)
        torch.testing.assert_close(rows[mask], before.mean(dim=0))
    assert not any(p.requires_grad for p in model.momentum_encoder.parameters())


def test_no_mask_token_for_the_second_view_of_a_text(world, tmp_path):
    """COOKIE masks words where it drops some of them; else nothing is added."""
    folder = word_tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    arguments = {"tokenizer": folder, "architecture": "cookie", **NO_TOKENIZER}
    for overrides, added in (({}, True), ({"word_drop_masked": 0}, False), ({"textual_weight": 0}, False)):
        flags, _, _ = parse_arguments(world.flags(world.root / "out", None, **arguments) + overrides_flag(overrides))
        tokenizer = build_tokenizer(flags)
        model = build_model(flags, tokenizer)
        assert (tokenizer.mask_token == "<mask>") == added
        assert model.config.mask_token_id == (tokenizer.mask_token_id if added else -1)


class Closed(PreTrainedTokenizerFast):
    """A tokenizer that takes no new token."""

    def add_special_tokens(self, *args, **kwargs):
        return 0


def test_mask_token_that_cannot_be_added(world, tmp_path):
    folder = word_tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    flags = world.flags(world.root / "out", OFF | {"mlm_weight": 1}, tokenizer=folder, **NO_TOKENIZER)
    arguments, _, _ = parse_arguments(flags)
    with pytest.raises(ValueError, match=r"none can be added; choose another with --tokenizer.*mlm_weight.*0"):
        build_model(arguments, Closed.from_pretrained(folder))


def overrides_flag(overrides):
    return ["--config_overrides", json.dumps(overrides)]


def test_end_token_pads_where_there_is_no_other(world, tmp_path, caplog):
    folder = word_tokenizer(tmp_path / "end", unk_token="[UNK]", eos_token="[SEP]")
    arguments, _, _ = parse_arguments(world.flags(world.root / "out", OFF, tokenizer=folder, **NO_TOKENIZER))
    tokenizer = build_tokenizer(arguments)
    assert tokenizer.pad_token == "[SEP]"
    assert "has no pad_token: texts are padded with [SEP]" in caplog.text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token == "[SEP]"
    bare = word_tokenizer(tmp_path / "bare", unk_token="[UNK]")
    arguments, _, _ = parse_arguments(world.flags(world.root / "out", OFF, tokenizer=bare, **NO_TOKENIZER))
    with pytest.raises(ValueError, match="neither a pad_token nor an eos_token"):
        build_tokenizer(arguments)


def test_simla_starts_from_a_bert(world, towers):
    arguments, _, _ = parse_arguments(
        world.flags(world.root / "out", None, text=towers["gpt2"], architecture="simla", **NO_TOKENIZER)
    )
    with pytest.raises(ValueError, match="SIMLA's text stack must start from a BERT, not from 'gpt2'"):
        build_tokenizer(arguments)
