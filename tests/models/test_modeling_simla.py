"""SIMLA for inference: features and scores against the slow reference, caches, errors, saving."""

import pytest
import torch
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from hf_cots import SimlaForPreTraining, SimlaModel
from hf_cots.conversion.simla import to_simla
from tests.support import reference_simla as slow
from tests.support.runs import assert_same_weights
from tests.support.tiny import NO_DROPOUT, SIZES, WORDS
from tests.support.tiny_simla import simla_batch, tiny_simla, tiny_simla_config


@pytest.fixture(scope="module")
def whole():
    return tiny_simla().eval()


@pytest.fixture(scope="module")
def batch(whole):
    return simla_batch(whole)


@pytest.fixture(autouse=True)
def _no_gradient():
    with torch.no_grad():
        yield


def texts(batch, rows=slice(None)):
    return {name: batch[name][rows] for name in ("input_ids", "attention_mask")}


def test_features_and_scores_equal_the_reference(whole, batch):
    reference = slow.Reference(to_simla(whole)["model"], heads=2)
    output = whole.simla(pixel_values=batch["pixel_values"], **texts(batch))
    ids, there = batch["input_ids"], batch["attention_mask"] != 0
    images = torch.stack([reference.image_feature(p) for p in batch["pixel_values"]])
    words = torch.stack([reference.text_feature(t, m) for t, m in zip(ids, there)])
    torch.testing.assert_close(output.image_embeds, images, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.text_embeds, words, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits_per_image, images @ words.T / float(reference["temp"]))
    scored = whole.simla.match(**texts(batch), pixel_values=batch["pixel_values"])
    expected = [reference.itm_logits(t, m, reference.image(p)) for t, m, p in zip(ids, there, batch["pixel_values"])]
    torch.testing.assert_close(scored, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_a_cache_gives_the_scores_of_the_full_forward(whole, batch):
    model, pixels = whole.simla, batch["pixel_values"]
    full = model.match(**texts(batch), pixel_values=pixels)
    cache = model.cache_image(pixels)
    assert len(cache) == 4
    torch.testing.assert_close(model.match(**texts(batch), image_cache=cache), full)
    turned = torch.tensor([2, 0, 2])
    chosen = cache.rows(turned)
    assert len(chosen) == 3
    torch.testing.assert_close(model.match(**texts(batch, turned), image_cache=chosen), full[turned])
    once_more = chosen.rows(torch.tensor([1]))
    torch.testing.assert_close(model.match(**texts(batch, slice(0, 1)), image_cache=once_more), full[:1])


def test_one_text_with_many_images_and_many_texts_with_one(whole, batch):
    model, pixels = whole.simla, batch["pixel_values"]
    one_text = model.match(**texts(batch, slice(1, 2)), pixel_values=pixels)
    one_image = model.match(**texts(batch), pixel_values=pixels[2:3])
    for i in range(4):
        alone = model.match(**texts(batch, slice(1, 2)), pixel_values=pixels[i : i + 1])
        torch.testing.assert_close(one_text[i : i + 1], alone)
        alone = model.match(**texts(batch, slice(i, i + 1)), pixel_values=pixels[2:3])
        torch.testing.assert_close(one_image[i : i + 1], alone)


def test_padding_changes_nothing(whole, batch):
    model, pixels = whole.simla, batch["pixel_values"]
    longer = {name: torch.nn.functional.pad(rows, (0, 5)) for name, rows in texts(batch).items()}
    a, b = model.match(**texts(batch), pixel_values=pixels), model.match(**longer, pixel_values=pixels)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(model(**texts(batch)).text_embeds, model(**longer).text_embeds)


def test_word_patch_attention(whole, batch):
    """Against the reference's cross-attention of the last layer, from its definition."""
    model, pixels = whole.simla, batch["pixel_values"]
    looks = model.word_patch_attention(**texts(batch), pixel_values=pixels)
    assert looks.shape == (4, 9, 4, 4)
    reference = slow.Reference(to_simla(whole)["model"], heads=2)
    seen = []
    attend = reference.attend
    reference.attend = lambda *arguments: (seen.append(attend(*arguments)[1]), attend(*arguments))[1]
    for i in range(4):
        image = reference.image(pixels[i])
        seen.clear()
        reference.together(batch["input_ids"][i], batch["attention_mask"][i] != 0, image)
        expected = seen[-1].mean(dim=0)[:, 1:].view(9, 4, 4)
        torch.testing.assert_close(looks[i], expected, rtol=1e-9, atol=1e-9)
    first = model.word_patch_attention(**texts(batch), pixel_values=pixels, layer=0)
    assert not torch.allclose(first, looks)


def test_errors(whole, batch):
    model, pixels = whole.simla, batch["pixel_values"]
    with pytest.raises(ValueError, match="needs input_ids, pixel_values, or both"):
        model()
    with pytest.raises(ValueError, match="either pixel_values or image_cache"):
        model.match(**texts(batch))
    with pytest.raises(ValueError, match="4 texts cannot be matched with 3 images"):
        model.match(**texts(batch), pixel_values=pixels[:3])
    with pytest.raises(ValueError, match="41 inputs exceed the 40 positions"):
        model(input_ids=torch.full((1, 41), 150))


def test_another_resolution(whole, batch):
    larger = torch.nn.functional.interpolate(batch["pixel_values"], (48, 48))
    output = whole.simla(pixel_values=larger, interpolate_pos_encoding=True)
    assert output.vision_model_output.last_hidden_state.shape == (4, 37, 32)
    with pytest.raises(ValueError, match="doesn't match model"):
        whole.simla(pixel_values=larger)


def test_the_temperature_is_learned_within_its_bounds():
    model = SimlaForPreTraining(tiny_simla_config())
    assert float(model.simla.temperature) == pytest.approx(0.07)
    assert model.simla.temperature.requires_grad
    assert not model.momentum_encoder.temperature.requires_grad
    for beyond, bound in ((2.0, 0.5), (-1.0, 0.001)):
        model.simla.temperature.fill_(beyond)
        model.end_step()
        assert float(model.simla.temperature) == pytest.approx(bound)


def test_a_bert_keeps_its_features():
    """From pretrained towers: the stack alone reads a text as the BERT did, token type 0 included."""
    bert = BertModel(BertConfig(**WORDS, **SIZES, **NO_DROPOUT)).eval()
    bert.embeddings.token_type_embeddings.weight.normal_()
    vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES)).eval()
    fields = {"projection_dim": 16, "queue_size": 8, "num_masked_patches": 5, "min_block_patches": 2}
    model = SimlaForPreTraining.from_vision_text_pretrained(vit, bert, **fields).eval()
    ids, pixels = torch.randint(104, 200, (3, 7)), torch.randn(2, 3, 32, 32)
    expected = bert(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model.simla.encode_text(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    expected = vit(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(model.simla.encode_image(pixels).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert_same_weights(dict(model.momentum_encoder.named_parameters()), dict(model.simla.named_parameters()))
    with pytest.raises(ValueError, match="not from 'vit'"):
        SimlaModel.from_vision_text_pretrained(vit, vit)
