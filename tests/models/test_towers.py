"""Towers of other architectures, with random weights: what they offer, how they are pooled, and other image sizes.

Each claim of `describe_tower` is held against the real model.
"""

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers as t

from hf_cots import CookieConfig, COTSConfig, COTSForPreTraining, COTSModel, SimlaConfig
from hf_cots.models.tower_properties import attention_layers, describe_tower
from hf_cots.models.towers import load_tower
from tests.support.tiny import tiny_batch, tiny_config


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = {"vocab_size": 200, "max_position_embeddings": 40, **SIZES}
ENDS = {"bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIDE = {"image_size": 32, "patch_size": 8}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}

# name: config, whether causal, width of the word embeddings, longest text
TEXT = {
    "bert": (t.BertConfig(**WORDS, **PLAIN), False, 32, 40),
    "roberta": (t.RobertaConfig(**WORDS, **PLAIN, pad_token_id=1), False, 32, 38),
    "xlm-roberta": (t.XLMRobertaConfig(**WORDS, **PLAIN, pad_token_id=1), False, 32, 38),
    "mpnet": (t.MPNetConfig(**WORDS, **PLAIN, pad_token_id=1), False, 32, 38),
    "modernbert": (
        t.ModernBertConfig(**WORDS, pad_token_id=0, cls_token_id=101, sep_token_id=102, bos_token_id=101),
        False,
        32,
        40,
    ),
    "deberta": (t.DebertaConfig(**WORDS, **PLAIN), False, 32, 40),
    "deberta-v2": (t.DebertaV2Config(**WORDS, **PLAIN), False, 32, 40),
    "distilbert": (
        t.DistilBertConfig(vocab_size=200, max_position_embeddings=40, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
        False,
        32,
        40,
    ),
    "albert": (t.AlbertConfig(**WORDS, **PLAIN, embedding_size=16), False, 16, 40),
    "electra": (t.ElectraConfig(**WORDS, **PLAIN, embedding_size=16), False, 16, 40),
    "t5": (t.T5Config(vocab_size=200, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2), False, 32, None),
    "xlnet": (t.XLNetConfig(vocab_size=200, d_model=32, n_layer=2, n_head=2, d_inner=64), False, 32, None),
    "gpt2": (t.GPT2Config(vocab_size=200, n_positions=40, n_embd=32, n_layer=2, n_head=2, **ENDS), True, 32, 40),
    "clip_text": (t.CLIPTextConfig(**WORDS, **ENDS), True, 32, 40),
    "qwen3": (t.Qwen3Config(**WORDS, **ENDS, num_key_value_heads=2, head_dim=16), True, 32, 40),
    "llama": (t.LlamaConfig(**WORDS, **ENDS, num_key_value_heads=2), True, 32, 40),
    "opt": (
        t.OPTConfig(
            vocab_size=200,
            hidden_size=32,
            word_embed_proj_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            max_position_embeddings=40,
            **ENDS,
        ),
        True,
        16,
        40,
    ),
    "bert_decoder": (t.BertConfig(**WORDS, **PLAIN, is_decoder=True), True, 32, 40),
    "mamba": (
        t.MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS),
        True,
        32,
        None,
    ),
}
CAUSAL = [name for name, (_, causal, *_) in TEXT.items() if causal]

# name: config, grid, special tokens, whether it masks patches, width of its own pooled output
IMAGE = {
    "vit": (t.ViTConfig(**SIDE, **SIZES), (4, 4), 1, True, 32),
    "deit": (t.DeiTConfig(**SIDE, **SIZES), (4, 4), 2, True, 32),
    "beit": (t.BeitConfig(**SIDE, **SIZES, use_relative_position_bias=True), (4, 4), 1, True, 32),
    "dinov2": (t.Dinov2Config(**SIDE, **DINO), (4, 4), 1, True, 32),
    "registers": (t.Dinov2WithRegistersConfig(**SIDE, **DINO, num_register_tokens=3), (4, 4), 4, True, 32),
    "dinov3": (t.DINOv3ViTConfig(**SIDE, **SIZES, num_register_tokens=2), (4, 4), 3, True, 32),
    "clip": (t.CLIPVisionConfig(**SIDE, **SIZES), (4, 4), 1, True, 32),
    "siglip": (t.SiglipVisionConfig(**SIDE, **SIZES), (4, 4), 0, True, 32),
    "ijepa": (t.IJepaConfig(**SIDE, **SIZES), (4, 4), 0, True, None),
    "swin": (
        t.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        (4, 4),
        0,
        False,
        32,
    ),
    "convnext": (
        t.ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        (4, 4),
        0,
        False,
        16,
    ),
    "resnet": (
        t.ResNetConfig(image_size=32, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
        (4, 4),
        0,
        False,
        12,
    ),
}
RESIZED = [name for name in IMAGE if name not in ("resnet",)]


def tower(config, scale=4.0):
    """The real model with random weights, large enough that words and patches matter."""
    torch.manual_seed(0)
    model = load_tower(t.AutoModel.from_config(copy.deepcopy(config))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            if "position" in name or "relative" in name:
                parameter.normal_()
    return model


def combine(vision="vit", text="bert", cls=COTSModel, **fields):
    fields = {"projection_dim": 16, "mvm_weight": 0, "mlm_weight": 0, **fields}
    torch.manual_seed(0)
    return cls.from_vision_text_pretrained(tower(IMAGE[vision][0]), tower(TEXT[text][0]), **fields).eval()


@pytest.fixture(params=TEXT)
def text(request):
    return request.param


@pytest.fixture(params=IMAGE)
def vision(request):
    return request.param


# ---------------------------------------------------------------------- what is said of a tower is true of it


def test_text_tower_is_as_described(text):
    config, causal, embedding_size, positions = TEXT[text]
    said, model = describe_tower(config), tower(config)
    if text == "t5":
        model = model.get_encoder()
    assert (said.is_causal, said.embedding_size, said.max_positions) == (causal, embedding_size, positions)
    assert said.embedding_size == model.get_input_embeddings().weight.shape[1]
    ids = torch.randint(104, 200, (1, 9))
    other = ids.clone()
    other[0, -1] = 103
    with torch.no_grad():
        states, changed = (model(input_ids=x).last_hidden_state for x in (ids, other))
    assert states.shape == (1, 9, said.hidden_size)
    assert torch.allclose(states[:, 0], changed[:, 0], atol=1e-6) == causal
    assert said == describe_tower(model)


def test_the_longest_text_has_a_position_for_each_word(text):
    """RoBERTa's positions begin behind the padding id: of 40, 38 can be used."""
    config, _, _, positions = TEXT[text]
    if positions is None:
        pytest.skip("no positions")
    model = tower(config)
    with torch.no_grad():
        model(input_ids=torch.full((1, positions), 150))
        if text in ("roberta", "xlm-roberta", "mpnet", "bert"):
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, positions + 1), 150))


def test_image_tower_is_as_described(vision):
    config, grid, special, masks, pooled = IMAGE[vision]
    said, model = describe_tower(config, "image"), tower(config)
    found = (said.patch_grid, said.num_special_tokens, said.can_mask_patches, said.pooled_size)
    assert found == (grid, special, masks, pooled)
    with torch.no_grad():
        output = model(pixel_values=torch.randn(1, 3, 32, 32))
    states = output.last_hidden_state
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    assert states.shape == (1, special + 16, said.hidden_size)
    assert pooled is None or output.pooler_output[0].numel() == pooled


def test_description_leaves_the_random_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    describe_tower(t.BertConfig(**WORDS, type_vocab_size=3))
    describe_tower(t.ViTConfig(**SIDE, **SIZES, layer_norm_eps=1e-5))
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------- what cannot be a tower, in one line


REFUSED = {
    "siglip2": (t.Siglip2VisionConfig(num_patches=16, patch_size=8, **SIZES), "pixel_attention_mask, spatial_shapes"),
    "vit_mae": (t.ViTMAEConfig(**SIDE, **SIZES), "ViTMAEModel drops patches"),
    "no size": (t.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]), "no image size.*--image_size"),
    "not square": (t.ViTConfig(image_size=(32, 48), patch_size=8, **SIZES), r"square images.*\[32, 48\]"),
    "not divisible": (t.ViTConfig(image_size=36, patch_size=8, **SIZES), "36 is not divisible by patch_size=8"),
    "video": (
        t.VideoMAEConfig(image_size=32, patch_size=8, num_frames=2, **SIZES),
        "VideoMAEModel takes no images of 32 x 32 pixels",
    ),
    "text": (t.BertConfig(**WORDS), "BertModel reads input_ids and cannot be used as the image tower"),
    "whole": (t.CLIPConfig(), "CLIPModel contains several towers"),
    "groups": (t.GroupViTVisionConfig(), "GroupViTVisionModel outputs 8 states, which do not form a grid of patches"),
}


class OwnConfig(t.PreTrainedConfig):
    """Of a model that transformers does not have."""

    model_type = "own_text_model"


REFUSED_TEXT = {
    "bart": (t.BartConfig(), "BartModel has a decoder"),
    "fnet": (
        t.FNetConfig(vocab_size=200, **{k: v for k, v in SIZES.items() if "head" not in k}),
        "not accept an attention mask",
    ),
    "image": (t.ViTConfig(**SIDE, **SIZES), "ViTModel reads pixel_values and cannot be used as the text tower"),
    "unknown": (OwnConfig(**WORDS), "transformers has no model for OwnConfig"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_image_towers_that_are_refused(name):
    config, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        tiny_config(vision_config=config, mvm_weight=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED_TEXT)
def test_text_towers_that_are_refused(name):
    config, message = REFUSED_TEXT[name]
    with pytest.raises(ValueError, match=message) as caught:
        tiny_config(text_config=config)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- pooling


def test_defaults_suit_the_towers(text, vision):
    config = COTSConfig(vision_config=IMAGE[vision][0], text_config=TEXT[text][0], mvm_weight=0)
    assert config.image_pooling == ("cls" if IMAGE[vision][2] else "mean")
    assert config.text_pooling == ("last" if TEXT[text][1] else "mean" if text == "t5" else "cls")


def test_default_is_written_and_stays(tmp_path):
    tiny_config(text_config=TEXT["gpt2"][0]).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_pooling"] == "last"
    assert COTSConfig.from_pretrained(tmp_path).text_pooling == "last"
    tiny_config().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_pooling"] == "cls"


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
@pytest.mark.parametrize("name", CAUSAL)
def test_cls_of_a_causal_tower_is_refused(name, pooling):
    with pytest.raises(ValueError, match=r'text_pooling="cls.* is causal.* set text_pooling="last"'):
        tiny_config(text_config=TEXT[name][0], text_pooling=pooling)


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
@pytest.mark.parametrize("name", ["siglip", "swin", "ijepa", "convnext"])
def test_cls_without_a_class_token_is_refused(name, pooling):
    with pytest.raises(ValueError, match=r'image_pooling="cls.* no class token.* set image_pooling="mean"'):
        tiny_config(vision_config=IMAGE[name][0], mvm_weight=0, image_pooling=pooling)


def test_poolings_that_a_tower_lacks():
    with pytest.raises(ValueError, match='image_pooling="tower" does not fit IJepaModel'):
        tiny_config(vision_config=IMAGE["ijepa"][0], mvm_weight=0, image_pooling="tower")
    with pytest.raises(ValueError, match=r"SiglipVisionModel.* needs another tower"):
        SimlaConfig(vision_config=IMAGE["siglip"][0], text_config=TEXT["bert"][0], mim_weight=0)
    with pytest.raises(Exception, match='pooling="first" without shared layers does not fit GPT2Model'):
        CookieConfig(vision_config=IMAGE["vit"][0], text_config=TEXT["gpt2"][0], num_shared_layers=0, pooling="first")


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("side", ["right", "left"])
def test_last_word_without_padding(name, side):
    """The feature is the state of the text's own last word, wherever the padding stands; other captions differ."""
    if name == "mamba" and side == "left":
        pytest.skip("a state space model reads padding in front")
    model = combine(text=name)
    assert model.config.text_pooling == "last"
    ids = torch.randint(104, 200, (3, 7))
    ids[1:, 0] = ids[0, 0]
    padding = (0, 4) if side == "right" else (4, 0)
    padded = torch.nn.functional.pad(ids, padding, value=0)
    mask = torch.nn.functional.pad(torch.ones_like(ids), padding)
    with torch.no_grad():
        alone, beside = model.encode_text(ids).pooler_output, model.encode_text(padded, mask).pooler_output
        states = model.text_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(alone, states[:, -1])
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)
    assert torch.pdist(alone).min() > 1e-3


def test_towers_own_pooled_output(vision, tmp_path):
    """SigLIP's attention head, Swin's mean, ViT's pooler."""
    if IMAGE[vision][4] is None:
        pytest.skip("no pooled output")
    model, pixels = combine(vision, image_pooling="tower"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower(IMAGE[vision][0])(pixel_values=pixels).pooler_output.flatten(1)
        feature = model.encode_image(pixels).pooler_output
    torch.testing.assert_close(feature, expected)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(COTSModel.from_pretrained(tmp_path).encode_image(pixels).pooler_output, feature)


# ---------------------------------------------------------------------- training, saving, loading


def train_save_load(model, tmp_path):
    """One optimizer step moves every part that has a gradient; the saved encoder gives the same embeddings."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batch = tiny_batch()
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    for part in ("vision_model", "text_model"):
        gradients = [p.grad for p in getattr(model.cots, part).parameters() if p.grad is not None]
        assert sum(bool((gradient != 0).any()) for gradient in gradients) > 2, part
    optimizer.step()
    model.eval()
    model.save_pretrained(tmp_path)
    loaded, info = COTSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        ours, theirs = model.cots(**batch), loaded(**batch)
    assert torch.equal(ours.image_embeds, theirs.image_embeds)
    assert torch.equal(ours.text_embeds, theirs.text_embeds)


def test_training_with_any_text_tower(text, tmp_path):
    """Masked words too: ALBERT's and ELECTRA's embeddings are narrower than their states."""
    train_save_load(combine(text=text, cls=COTSForPreTraining, mlm_weight=1, queue_size=16), tmp_path)


def test_training_with_any_image_tower(vision, tmp_path):
    codes = {"codebook_size": 64, "hidden_size": 8, "decoder_input_size": 8, "blocks_per_group": 1}
    weight = float(IMAGE[vision][3])
    fields = {"mvm_weight": weight, "image_tokenizer_config": codes, "queue_size": 16}
    model = combine(vision, cls=COTSForPreTraining, **fields)
    assert model.config.image_tokenizer_config.grid_size == 4
    train_save_load(model, tmp_path)


@pytest.mark.parametrize("name", [name for name in IMAGE if not IMAGE[name][3]])
def test_masked_patches_with_a_tower_that_cannot(name):
    with pytest.raises(ValueError, match=r"cannot mask patches.*mvm_weight=0"):
        COTSForPreTraining(tiny_config(vision_config=IMAGE[name][0], mvm_weight=1))


# ---------------------------------------------------------------------- another image size


@pytest.mark.parametrize(("name", "side"), [(n, s) for n in RESIZED for s in (48, 16) if (n, s) != ("swin", 16)])
def test_another_image_size(name, side, tmp_path):
    """The tower gives what it gives itself under `interpolate_pos_encoding`, and so does the saved model."""
    native, pixels = tower(IMAGE[name][0]), torch.randn(2, 3, side, side)
    model = combine(name, image_size=side)
    assert model.config.vision_config.image_size == side
    assert model.config.patch_grid == side // 8
    assert model.config.image_tokenizer_config.grid_size == side // 8
    takes = describe_tower(IMAGE[name][0]).takes
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
    with torch.no_grad():
        expected = native(pixel_values=pixels, **options).last_hidden_state
        states = model.encode_image(pixels).last_hidden_state
        embeds = model(pixel_values=pixels).image_embeds
    if expected.ndim == 4:
        expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded, info = COTSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.config.vision_config.image_size == side
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pixels).image_embeds, embeds)


def test_another_image_size_without_the_package(tmp_path):
    model, pixels = combine("siglip", "gpt2", image_size=48), torch.randn(2, 3, 48, 48)
    model.save_pretrained(tmp_path / "model")
    ids = torch.randint(104, 200, (2, 5))
    torch.save({"pixel_values": pixels, "input_ids": ids}, tmp_path / "inputs.pt")
    code = (
        "import sys, torch; sys.modules['hf_cots'] = None; from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained('model', trust_remote_code=True)\n"
        "with torch.no_grad(): output = model(**torch.load('inputs.pt'))\n"
        "torch.save([output.image_embeds, output.text_embeds], 'embeds.pt')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        output = model(pixel_values=pixels, input_ids=ids)
    for ours, theirs in zip((output.image_embeds, output.text_embeds), torch.load(tmp_path / "embeds.pt")):
        torch.testing.assert_close(ours, theirs)


def test_image_sizes_that_are_refused():
    with pytest.raises(ValueError, match="50 is not divisible by patch_size=8"):
        combine("vit", image_size=50)
    with pytest.raises(ValueError, match="SwinModel takes no images of 16 x 16 pixels"):
        combine("swin", image_size=16)
    oblong = tower(t.ViTConfig(image_size=(32, 48), patch_size=8, **SIZES))
    with pytest.raises(
        ValueError, match=r"ViTModel does not support image_size=48: .*position_embeddings.*\[?\(?32, 48"
    ):
        COTSModel.from_vision_text_pretrained(oblong, tower(TEXT["bert"][0]), image_size=48, mvm_weight=0)


def test_image_size_as_a_list_of_two_equal_sides():
    config = tiny_config(vision_config=t.ViTConfig(image_size=[32, 32], patch_size=8, **SIZES))
    assert config.vision_config.image_size == 32
    assert COTSForPreTraining(config)(**tiny_batch()).loss.isfinite()


def test_config_at_another_image_size():
    config = tiny_config(momentum=0.7)
    larger = config.at_image_size(64)
    assert (larger.patch_grid, larger.image_tokenizer_config.grid_size, larger.momentum) == (8, 8, 0.7)
    assert (config.patch_grid, config.image_tokenizer_config.grid_size) == (4, 4)


# ---------------------------------------------------------------------- where LoRA's adapters go


def test_attention_layers_of_text_towers(text):
    layers = attention_layers(load_tower(tower(TEXT[text][0])))
    assert bool(layers) == (text not in ("xlnet", "mamba"))


def test_attention_layers_of_image_towers(vision):
    layers = attention_layers(tower(IMAGE[vision][0]))
    assert bool(layers) == (vision not in ("convnext", "resnet"))
    assert not any("head" in layer for layer in layers)


@pytest.mark.parametrize("name", ["bert", "distilbert", "clip_text"])
def test_queries_and_values_where_they_are_apart(name):
    leaves = {layer.rpartition(".")[2] for layer in attention_layers(tower(TEXT[name][0]))}
    assert leaves in ({"query", "value"}, {"q_lin", "v_lin"}, {"q_proj", "v_proj"})
