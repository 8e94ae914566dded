"""COTSModel: two streams that never meet, whatever towers they are made of."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import BertModel, ViTModel

from hf_cots import COTSConfig, COTSForPreTraining, COTSModel
from hf_cots.models.towers import tower_class
from tests.support.runs import assert_same_weights, load_exactly
from tests.support.tiny import SIZES, WORDS, tiny_batch, tiny_config


VISION = {"image_size": 32, "patch_size": 8, **SIZES}
TEXT = WORDS | SIZES | {"hidden_size": 24, "intermediate_size": 48}
VISION_TOWERS = {
    "deit": transformers.DeiTConfig(**VISION),
    "beit": transformers.BeitConfig(**VISION),
    "dinov2": transformers.Dinov2Config(**VISION, mlp_ratio=2),
}
TEXT_TOWERS = {
    "roberta": transformers.RobertaConfig(**TEXT),
    "xlm-roberta": transformers.XLMRobertaConfig(**TEXT),
    "distilbert": transformers.DistilBertConfig(dim=24, n_layers=2, n_heads=2, hidden_dim=48, **WORDS),
}


def make(**fields):
    torch.manual_seed(0)
    return COTSModel(tiny_config(**fields)).eval()


def randomised(model):
    """Larger weights than the initial ones, so that tokens and positions really matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_default_model_has_the_documented_number_of_parameters():
    with torch.device("meta"):
        model = COTSModel(COTSConfig())
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert count["vision_model"] == 86_090_496
    assert count["text_model"] == 108_891_648
    assert count["visual_projection"] + count["text_projection"] == 393_728
    assert sum(p.numel() for p in model.parameters()) == 195_375_872
    assert sum(b.is_floating_point() for b in model.buffers()) == 0


def test_an_image_embedding_depends_on_its_image_alone():
    """Neither batch content, nor batch size, nor the texts beside it."""
    model, batch, other = randomised(make()), tiny_batch(), tiny_batch(seed=1)
    with torch.no_grad():
        embeds = model(**batch).image_embeds
        alone = model(pixel_values=batch["pixel_values"][2:3]).image_embeds[0]
        company = other["pixel_values"].clone()
        company[5] = batch["pixel_values"][2]
        torch.testing.assert_close(model(pixel_values=company).image_embeds[5], alone, rtol=1e-5, atol=1e-6)
        with_texts = model(**(other | {"pixel_values": batch["pixel_values"]})).image_embeds
    torch.testing.assert_close(embeds[2], alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(with_texts, embeds)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-2, "different images, different embeddings"


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_a_text_embedding_depends_on_its_text_alone(pooling):
    """Neither padding, nor what lies in it, nor its side or company."""
    model, batch = randomised(make(text_pooling=pooling)), tiny_batch()
    with torch.no_grad():
        embeds = model(**batch).text_embeds
        alone = model(input_ids=batch["input_ids"][3:4]).text_embeds[0]
        padded_ids = torch.full((8, 17), 150)
        padded_ids[:, :10] = batch["input_ids"]
        mask = torch.zeros(8, 17, dtype=torch.long)
        mask[:, :10] = 1
        padded = model(input_ids=padded_ids, attention_mask=mask).text_embeds
    torch.testing.assert_close(embeds[3], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(padded, embeds, rtol=1e-5, atol=1e-6)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-2


def test_either_modality_alone_and_none():
    model, batch = make(), tiny_batch()
    image = model(pixel_values=batch["pixel_values"])
    text = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert set(image.keys()) == {"image_embeds", "vision_model_output", "pooler_output"}
    assert set(text.keys()) == {"text_embeds", "text_model_output", "pooler_output"}
    with pytest.raises(ValueError, match="input_ids, pixel_values"):
        model()
    with pytest.raises(ValueError, match="input_ids, pixel_values"):
        model(attention_mask=batch["attention_mask"])


@pytest.mark.parametrize("fields", [{"temperature": 0.2}, {"temperature": 0.2, "learn_temperature": True}], ids=str)
def test_logits_are_cosine_similarities_over_the_temperature(fields):
    model, batch = make(**fields), tiny_batch()
    batch["pixel_values"] = batch["pixel_values"][:3]
    output = model(**batch)
    image = model.get_image_features(batch["pixel_values"]).pooler_output
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert output.logits_per_image.shape == (3, 8)
    expected = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1) / 0.2
    torch.testing.assert_close(output.logits_per_image, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(3))


def test_features_are_projected_and_not_normalized():
    model, batch = make(), tiny_batch()
    image = model.get_image_features(batch["pixel_values"])
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    for output, tokens, width, projection in (
        (image, 17, 32, model.visual_projection),
        (text, 10, 24, model.text_projection),
    ):
        assert output.last_hidden_state.shape == (8, tokens, width)
        assert output.pooler_output.shape == (8, 16)
        torch.testing.assert_close(output.pooler_output, projection(output.last_hidden_state[:, 0]))
        assert (output.pooler_output.norm(dim=1) - 1).abs().min() > 1e-3
    as_tuple = model.get_image_features(batch["pixel_values"], return_dict=False)
    assert isinstance(as_tuple, tuple)
    both, alone = model(**batch, return_dict=False), model(pixel_values=batch["pixel_values"], return_dict=False)
    assert isinstance(both, tuple)
    for position, name in enumerate(("logits_per_image", "logits_per_text", "image_embeds", "text_embeds")):
        assert torch.equal(both[position], model(**batch)[name]), name
    assert torch.equal(alone[0], both[2]), "the feature-extraction pipelines take the first entry"
    feature = model(**batch).text_model_output.pooler_output
    assert torch.equal(feature, text.pooler_output)


def test_mean_pooling_is_the_mean_of_patches_and_of_words_without_padding():
    model, batch = make(image_pooling="mean", text_pooling="mean"), tiny_batch()
    batch["attention_mask"][0, 4:] = 0
    image, text = (
        model.encode_image(batch["pixel_values"]),
        model.encode_text(batch["input_ids"], batch["attention_mask"]),
    )
    patches = torch.stack([image.last_hidden_state[:, j] for j in range(1, 17)]).mean(dim=0)
    torch.testing.assert_close(image.pooler_output, patches)
    torch.testing.assert_close(text.pooler_output[0], text.last_hidden_state[0, :4].mean(dim=0))
    torch.testing.assert_close(text.pooler_output[1], text.last_hidden_state[1].mean(dim=0))


def test_token_type_ids_of_zeros_change_nothing():
    model, batch = make(), tiny_batch()
    zeros = torch.zeros_like(batch["input_ids"])
    assert torch.equal(model(**batch, token_type_ids=zeros).text_embeds, model(**batch).text_embeds)


def test_another_resolution_by_interpolation():
    model = make()
    pixels = torch.randn(2, 3, 48, 48)
    with pytest.raises(ValueError, match="size"):
        model(pixel_values=pixels)
    output = model(pixel_values=pixels, interpolate_pos_encoding=True)
    assert output.vision_model_output.last_hidden_state.shape == (2, 37, 32)
    mean = make(image_pooling="mean")
    pooled = mean.encode_image(pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(pooled.pooler_output, pooled.last_hidden_state[:, 1:].mean(dim=1))


# ------------------------------------------------------------------ other towers


@pytest.mark.parametrize("name", VISION_TOWERS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_other_image_towers(name, pooling, tmp_path):
    model = make(vision_config=copy.deepcopy(VISION_TOWERS[name]), image_pooling=pooling)
    batch = tiny_batch()
    with torch.no_grad():
        embeds = model(**batch).image_embeds
    model.save_pretrained(tmp_path)
    loaded = load_exactly(COTSModel, tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).image_embeds, embeds)
    hidden = model.encode_image(batch["pixel_values"])
    special = hidden.last_hidden_state.shape[1] - 16
    assert special == (2 if name == "deit" else 1)
    mean = hidden.last_hidden_state[:, special:].mean(dim=1)
    if pooling == "mean":
        torch.testing.assert_close(hidden.pooler_output, mean)
    elif pooling == "cls+mean":
        torch.testing.assert_close(hidden.pooler_output, torch.cat([hidden.last_hidden_state[:, 0], mean], dim=1))


@pytest.mark.parametrize("name", TEXT_TOWERS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_other_text_towers(name, pooling, tmp_path):
    model = randomised(make(text_config=copy.deepcopy(TEXT_TOWERS[name]), text_pooling=pooling))
    batch = tiny_batch()
    with torch.no_grad():
        embeds = model(**batch, token_type_ids=torch.zeros_like(batch["input_ids"])).text_embeds
    model.save_pretrained(tmp_path)
    loaded = load_exactly(COTSModel, tmp_path)
    padded = torch.nn.functional.pad(batch["input_ids"], (0, 5), value=1)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 5))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).text_embeds, embeds)
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).text_embeds, embeds)


def learn_once(**towers):
    """A model in pre-training, one of whose backward passes has reached every parameter."""
    torch.manual_seed(0)
    model = COTSForPreTraining(tiny_config(**towers)).train()
    output = model(**tiny_batch())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return model


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_pretraining_with_other_image_towers(name, tmp_path):
    """Masked patches are replaced, one backward reaches everything, and a saved model goes on."""
    # DeiT's distillation token has no use here but takes part in the attention.
    model, batch = learn_once(vision_config=copy.deepcopy(VISION_TOWERS[name])), tiny_batch()
    masked = torch.zeros(8, 16, dtype=torch.bool)
    masked[:, 5] = True
    model.eval()
    pixels = batch["pixel_values"].clone()
    plain = model.cots.encode_image(pixels, bool_masked_pos=masked).last_hidden_state
    pixels.view(8, 3, 4, 8, 4, 8)[:, :, 1, :, 1] += 3.0  # only patch 5 = (1, 1)
    other = model.cots.encode_image(pixels, bool_masked_pos=masked).last_hidden_state
    torch.testing.assert_close(plain, other)
    assert not torch.equal(model.cots.encode_image(pixels).last_hidden_state, other)
    model.save_pretrained(tmp_path)
    loaded = COTSForPreTraining.from_pretrained(tmp_path)
    assert_same_weights(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_pretraining_with_other_text_towers(name):
    learn_once(text_config=copy.deepcopy(TEXT_TOWERS[name]))


def native_towers(tmp_path):
    """Folders of a native ViT and BERT, poolers and all, as people find them on the Hub."""
    torch.manual_seed(3)
    config = tiny_config()
    vision, text = (
        ViTModel(config.vision_config).eval(),
        BertModel(config.text_config).eval(),
    )
    for model, name in ((vision, "vision"), (text, "text")):
        randomised(model).save_pretrained(tmp_path / name)
    return vision, text


@pytest.mark.parametrize("source", ["folder", "memory"])
def test_from_pretrained_towers_reproduces_their_hidden_states(tmp_path, source):
    vision, text = native_towers(tmp_path)
    sources = (str(tmp_path / "vision"), str(tmp_path / "text")) if source == "folder" else (vision, text)
    model = COTSModel.from_vision_text_pretrained(*sources, projection_dim=16, temperature=0.1).eval()
    assert model.config.projection_dim == 16
    assert model.config.temperature == 0.1
    assert model.config.image_tokenizer_config.grid_size == 4
    batch = tiny_batch()
    with torch.no_grad():
        output = model(**batch)
        expected = vision(batch["pixel_values"]).last_hidden_state
        torch.testing.assert_close(output.vision_model_output.last_hidden_state, expected, rtol=1e-5, atol=1e-6)
        expected = text(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        torch.testing.assert_close(output.text_model_output.last_hidden_state, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_pretraining_from_pretrained_towers(tmp_path):
    """Both encoders, the momentum one too, start as the given towers; so does the given image tokenizer."""
    native_towers(tmp_path)
    donor = COTSForPreTraining(tiny_config())
    model = COTSForPreTraining.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), donor.image_tokenizer, projection_dim=16, queue_size=32
    )
    native = ViTModel.from_pretrained(tmp_path / "vision").state_dict()
    for encoder in (model.cots, model.momentum_encoder):
        tower = encoder.vision_model.state_dict()
        for key in set(native) & set(tower):
            assert torch.equal(tower[key], native[key]), key
        assert len(set(native) & set(tower)) > 20
    for a, b in zip(model.image_tokenizer.parameters(), donor.image_tokenizer.parameters()):
        assert torch.equal(a, b)
    for name, value in model.momentum_encoder.named_parameters():
        assert torch.equal(value, model.cots.get_parameter(name)), name
    assert torch.isfinite(model.train()(**tiny_batch()).loss)


def test_models_that_give_no_towers_are_refused():
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision_config = transformers.CLIPVisionConfig(**layers, image_size=16, patch_size=8)
    text_config = transformers.LlamaConfig(**layers, vocab_size=50)
    both = transformers.LlavaModel(transformers.LlavaConfig(vision_config=vision_config, text_config=text_config))
    vision, text = ViTModel(tiny_config().vision_config), BertModel(tiny_config().text_config)
    for towers, half in (((both, text), "image"), ((vision, both), "text")):
        with pytest.raises(ValueError, match=f"the {half} half of LlavaModel is not a separate tower"):
            COTSModel.from_vision_text_pretrained(*towers)


def test_a_config_without_a_model_is_refused():
    class StrangeConfig(transformers.PreTrainedConfig):
        model_type = "strange"

    with pytest.raises(ValueError, match="StrangeConfig"):
        tower_class(StrangeConfig)


def test_saved_keys_are_the_models_own_names(tmp_path):
    """A tower keeps the names of its parameters in the file; Trainer's resume reads them without any translation."""
    model = make()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_bert_config_is_not_shared_between_models():
    config = tiny_config(text_config=transformers.BertConfig(**TEXT))
    a, b = COTSModel(config), COTSModel(config)
    assert a.text_model is not b.text_model
    assert a.text_model.embeddings.word_embeddings.weight.data_ptr() != (
        b.text_model.embeddings.word_embeddings.weight.data_ptr()
    )


def test_a_projection_of_two_layers(tmp_path):
    config = tiny_config(text_projection="mlp", image_projection="linear", projection_hidden_dim=20)
    model = COTSModel(config).eval()
    first, _, second = model.text_projection
    assert isinstance(model.visual_projection, torch.nn.Linear)
    features = torch.randn(3, first.in_features)
    hidden = features.double() @ first.weight.double().T + first.bias.double()
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # GELU, by its definition
    expected = hidden @ second.weight.double().T + second.bias.double()
    torch.testing.assert_close(model.text_projection(features).double(), expected, rtol=1e-5, atol=1e-6)
    assert (first.out_features, second.out_features) == (20, config.projection_dim)
    model.save_pretrained(tmp_path)
    again = COTSModel.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_truncated_model_gives_the_first_dimensions(kind, tmp_path):
    torch.manual_seed(0)
    model = COTSModel(tiny_config(text_projection=kind, projection_hidden_dim=20, nested_dims=[4, 8])).eval()
    batch = {name: tiny_batch(3)[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    whole = model(**batch)
    model.truncated(8).save_pretrained(tmp_path)
    small = COTSModel.from_pretrained(tmp_path).eval()
    assert (small.config.projection_dim, small.config.nested_dims) == (8, [4])
    for name in ("image_embeds", "text_embeds"):
        expected = torch.nn.functional.normalize(getattr(whole, name)[:, :8], dim=1)
        torch.testing.assert_close(getattr(small(**batch), name), expected, rtol=1e-5, atol=1e-6)
    assert model.config.projection_dim == 16, "the model itself stays as it is"
    with pytest.raises(ValueError, match="got 17"):
        model.truncated(17)
