"""Masked words with tokenizers that lack a mask token (CLIP, GPT-2, T5): one is added, and all agree on it."""

import pytest
import torch
import transformers as t

from hf_cots import COTSModel, COTSProcessor
from hf_cots.train import train
from tests.support.runs import assert_same_weights, load_exactly, make_model
from tests.support.tiny import SIZES
from tests.support.worlds import checkpoint


LETTERS = [chr(ord("a") + i) for i in range(26)]
LENGTH = {"model_max_length": 24}
WORDS_ON = {"mvm_weight": 0, "mlm_weight": 1}


def clip_tokenizer():
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return t.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], **LENGTH)


def gpt2_tokenizer():
    tokens = ["<|endoftext|>", "Ġ", *LETTERS]
    return t.GPT2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], **LENGTH)


def t5_tokenizer():
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    return t.T5Tokenizer(vocab=scores, extra_ids=0, **LENGTH)


# name: tokenizer, tower, rows of its word embeddings once the token is there; T5's tower has some to spare
TOWERS = {
    "clip": (
        clip_tokenizer,
        t.CLIPTextConfig(vocab_size=54, max_position_embeddings=24, bos_token_id=52, eos_token_id=53, **SIZES),
        55,
    ),
    "gpt2": (
        gpt2_tokenizer,
        t.GPT2Config(vocab_size=28, n_positions=24, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
        29,
    ),
    "t5": (
        t5_tokenizer,
        t.T5Config(vocab_size=40, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
        40,
    ),
}


@pytest.fixture(params=TOWERS)
def name(request):
    return request.param


@pytest.fixture
def text(world, name):
    """The folder of a text tower with its tokenizer."""
    folder = world.root / f"mask-token-{name}"
    if not folder.exists():
        tokenizer, config, _ = TOWERS[name]
        torch.manual_seed(0)
        t.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def flags(world, output_dir, overrides=None, **settings):
    settings = {"image_tokenizer": None, "max_steps": 2, **settings}
    return world.flags(output_dir, WORDS_ON | (overrides or {}), **settings)


def test_model_tokenizer_and_momentum_encoder_agree(world, text, name, caplog):
    before = t.AutoModel.from_pretrained(text).get_input_embeddings().weight.detach()
    words, rows = len(t.AutoTokenizer.from_pretrained(text)), TOWERS[name][2]
    caplog.clear()
    model = make_model(flags(world, world.root / "out", text=text))
    assert caplog.text.count("<mask> was added") == 1
    assert "mean_resizing" not in caplog.text
    config = model.config
    assert (config.mask_token_id, config.text_config.vocab_size) == (words, rows)
    assert config.mask_token_id in config.special_token_ids
    assert model.mlm_bias.shape == (rows,)
    for encoder in (model.cots, model.momentum_encoder):
        weight = encoder.get_input_embeddings().weight
        assert weight.shape == (rows, 32)
        assert torch.equal(weight[:words], before[:words])
        torch.testing.assert_close(weight[words], before[:words].mean(dim=0))


def test_trained_saved_loaded_and_resumed(world, text, name, tmp_path, caplog):
    """The deployed model and its tokenizer know the token; a resumed run adds it as the first one did."""
    settings = {"text": text, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(flags(world, tmp_path / "whole", **settings))
    resume = ["--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2")]
    train([*flags(world, tmp_path / "again", **settings), *resume])
    assert_same_weights(checkpoint(tmp_path / "again", 4), checkpoint(tmp_path / "whole", 4))
    folder = tmp_path / "whole" / "model"
    model, tokenizer = load_exactly(COTSModel, folder), COTSProcessor.from_pretrained(folder).tokenizer
    assert tokenizer.mask_token == "<mask>"
    assert tokenizer.mask_token_id == model.config.mask_token_id < len(model.get_input_embeddings().weight)
    whole = t.AutoModel.from_pretrained(text).get_input_embeddings().weight
    learned = model.get_input_embeddings().weight
    assert not torch.equal(learned[tokenizer.mask_token_id], whole.mean(dim=0))
    caplog.clear()
    continued = make_model(flags(world, tmp_path / "more", model=folder, vision=None, text=None))
    assert "was added" not in caplog.text
    assert torch.equal(continued.get_input_embeddings().weight, learned)


@pytest.mark.parametrize("name", ["clip"])
def test_added_to_a_checkpoint(world, text, tmp_path, caplog):
    """Trained without masked words first: the momentum encoder goes on from where it was."""
    settings = {"text": text, "save_strategy": "steps", "save_steps": 2}
    train(flags(world, tmp_path / "first", {"mlm_weight": 0, "momentum": 0.5}, **settings))
    folder = tmp_path / "first" / "checkpoint-2"
    assert t.AutoTokenizer.from_pretrained(folder).mask_token is None
    caplog.clear()
    model = make_model(flags(world, tmp_path / "second", model=folder, vision=None, text=None))
    assert caplog.text.count("<mask> was added") == 1
    saved = checkpoint(tmp_path / "first", 2)
    for encoder in ("cots", "momentum_encoder"):
        weight = getattr(model, encoder).get_input_embeddings().weight
        assert torch.equal(weight[:-1], saved[f"{encoder}.text_model.embeddings.token_embedding.weight"])
        torch.testing.assert_close(weight[-1], weight[:-1].mean(dim=0))
    model.config.save_pretrained(tmp_path / "config")  # a model from a config alone
    clip_tokenizer().save_pretrained(tmp_path / "config")
    config = {"config": tmp_path / "config", "vision": None, "text": None}
    assert make_model(flags(world, tmp_path / "third", **config)).config.mask_token_id == 54
