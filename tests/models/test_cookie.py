"""COOKIE against a slow reference: shared layers, padding, the three contrasts, the hinge loss, missing views."""

import math

import pytest
import torch

from hf_cots import CookieConfig, CookieForPreTraining, CookieModel
from hf_cots.models.step import Step
from tests.support import reference_cookie as slow
from tests.support.runs import assert_same_weights
from tests.support.steps import assert_close, take_gradients
from tests.support.tiny_cookie import cookie_batch, tiny_cookie, tiny_cookie_config


CLOSE = {"rtol": 1e-10, "atol": 1e-12}
STILL = {"shared_dropout": 0.0}


@pytest.mark.parametrize("pooling", ["mean", "first", "max"])
@pytest.mark.parametrize(("layers", "share"), [(0, True), (2, True), (2, False)])
def test_embeddings_equal_the_formula(pooling, layers, share):
    model = tiny_cookie(pooling=pooling, num_shared_layers=layers, share_weights=share).eval().cookie
    batch = cookie_batch()
    output = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    torch.testing.assert_close(output.image_embeds, slow.image_embeds(model, batch["pixel_values"]), **CLOSE)
    wanted = slow.text_embeds(model, batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(output.text_embeds, wanted, **CLOSE)
    wanted = output.image_embeds @ output.text_embeds.t() / 0.07
    torch.testing.assert_close(output.logits_per_image, wanted, **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_embeddings_know_neither_padding_nor_batch(pooling):
    """Test 2 of the specification."""
    model = tiny_cookie(pooling=pooling).eval().cookie
    batch = cookie_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    longer = torch.nn.functional.pad(ids, (0, 11)), torch.nn.functional.pad(mask, (0, 11))
    with torch.no_grad():
        texts = model(input_ids=ids, attention_mask=mask).text_embeds
        padded = model(input_ids=longer[0], attention_mask=longer[1]).text_embeds
        images = model(pixel_values=batch["pixel_values"]).image_embeds
        torch.testing.assert_close(padded, texts, **CLOSE)
        for i in range(len(ids)):
            alone = model(input_ids=ids[i : i + 1, : mask[i].sum()]).text_embeds
            torch.testing.assert_close(alone[0], texts[i], **CLOSE)
            alone = model(pixel_values=batch["pixel_values"][i : i + 1]).image_embeds
            torch.testing.assert_close(alone[0], images[i], **CLOSE)


@pytest.mark.parametrize("term", ["cross_modal", "visual", "textual"])
def test_the_shared_layers_are_one_and_learn_from_each_loss_alone(term):
    """Test 1 of the specification."""
    others = {f"{name}_weight": 0 for name in ("cross_modal", "visual", "textual") if name != term}
    model = tiny_cookie(**others)
    assert model.cookie.text_transformer is None
    model(**cookie_batch()).loss.backward()
    for name, parameter in model.cookie.transformer.named_parameters():
        # Softmax knows no shift, so that the bias of the keys learns nothing but rounding.
        assert parameter.grad is not None, name
        assert "key.bias" in name or parameter.grad.abs().max() > 1e-8, name


def test_sharing_halves_the_parameters():
    shared, unshared = (CookieModel(tiny_cookie_config(share_weights=share)) for share in (True, False))
    size = sum(p.numel() for p in shared.transformer.parameters())
    assert sum(p.numel() for p in unshared.text_transformer.parameters()) == size
    assert sum(p.numel() for p in unshared.parameters()) - sum(p.numel() for p in shared.parameters()) == size


def test_every_layer_and_head_is_used():
    """A change to any weight of the shared layers changes images and texts."""
    model, batch = tiny_cookie().eval().cookie, cookie_batch(pairs=2)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**inputs)
        for name, parameter in model.transformer.named_parameters():
            if "key.bias" in name:
                continue
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            after = model(**inputs)
            assert not torch.allclose(after.image_embeds, before.image_embeds), name
            assert not torch.allclose(after.text_embeds, before.text_embeds), name
            parameter.copy_(kept)


def reference_terms(model, batch):
    cookie, config = model.cookie, model.config
    images = slow.image_embeds(cookie, batch["pixel_values"])
    texts = slow.text_embeds(cookie, batch["input_ids"], batch["attention_mask"])
    views = slow.image_embeds(cookie, batch["view_pixel_values"])
    other = slow.text_embeds(cookie, batch["view_input_ids"], batch["view_attention_mask"])
    ids, tau = batch["image_ids"], cookie.temperature
    terms = {"visual": slow.nce(images, views, ids, tau), "textual": slow.nce(texts, other, ids, tau)}
    if config.cross_modal_loss == "hinge":
        return terms | {"cross_modal": slow.hinge(images, texts, ids, config.margin)}
    return terms | {"cross_modal": slow.nce(images, texts, ids, tau)}


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"learn_temperature": True}, {"cross_modal_loss": "hinge", "margin": 0.5}])
def test_losses_and_gradients_equal_a_reference(fields, captions):
    """Test 3 of the specification: values, and the gradient of every parameter."""
    model = tiny_cookie(visual_weight=0.7, textual_weight=1.3, **STILL, **fields)
    batch = cookie_batch(captions=captions)
    output = model(**batch)
    output.loss.backward()
    given = take_gradients(model)
    terms = reference_terms(model, batch)
    for name, term in terms.items():
        torch.testing.assert_close(output[f"loss_{name}"], term.detach(), **CLOSE)
    loss = terms["cross_modal"] + 0.7 * terms["visual"] + 1.3 * terms["textual"]
    torch.testing.assert_close(output.loss, loss, **CLOSE)
    loss.backward()
    wanted = take_gradients(model)
    assert wanted.keys() <= given.keys()
    assert ("cookie.log_temperature" in wanted) == ("learn_temperature" in fields)
    assert_close({name: given[name] for name in wanted}, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("pairs", [2, 6])
def test_constant_embeddings_cost_log_n(pairs):
    """Test 3: chance. The hinge loss of constant embeddings is two margins."""
    model = tiny_cookie(cross_modal_loss="hinge", margin=0.25)
    embeds = torch.ones(pairs, 16, dtype=torch.float64) / 4
    names = ("image_embeds", "text_embeds", "view_image_embeds", "view_text_embeds")
    ids, weights = torch.arange(pairs), torch.full((pairs,), 1 / pairs)
    step = Step(ids, ids, weights)
    terms = model.contrast_terms(dict.fromkeys(names, embeds), step)
    assert terms["visual"].item() == pytest.approx(math.log(pairs), abs=1e-6)
    assert terms["textual"].item() == pytest.approx(math.log(pairs), abs=1e-6)
    assert terms["cross_modal"].item() == pytest.approx(0.5, abs=1e-6)
    model.config.cross_modal_loss = "info_nce"
    terms = model.contrast_terms(dict.fromkeys(names, embeds), step)
    assert terms["cross_modal"].item() == pytest.approx(math.log(pairs), abs=1e-6)


def test_a_pair_without_negatives_costs_nothing():
    model = tiny_cookie(cross_modal_loss="hinge", **STILL)
    batch = cookie_batch(pairs=3) | {"image_ids": torch.zeros(3, dtype=torch.long)}
    output = model(**batch)
    assert output.loss.item() == 0
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_an_empty_share_has_a_loss_of_zero():
    """A rank may hold no pair of a ragged batch; its parameters take part all the same."""
    model = tiny_cookie()
    output = model(**{name: rows[:0] for name, rows in cookie_batch().items()})
    output.loss.backward()
    assert output.loss.item() == 0
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert all("pooler" in name for name in unused), unused


def test_without_ids_no_pair_shares_its_image():
    model = tiny_cookie(**STILL)
    batch = cookie_batch(captions=1)
    wanted = model(**batch).loss
    del batch["image_ids"]
    assert model(**batch).loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert model.pairs_seen == 12
    assert model.steps_seen == 2


def test_evaluation_leaves_no_trace_and_gives_the_mean():
    model = tiny_cookie(**STILL)
    batch = cookie_batch()
    wanted = model(**batch).loss
    seen = int(model.pairs_seen)
    with torch.no_grad():
        assert model.eval()(**batch).loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert int(model.pairs_seen) == seen


@pytest.mark.parametrize(("term", "view"), [("visual", "view_pixel_values"), ("textual", "view_input_ids")])
def test_a_missing_view_is_named(term, view):
    batch = cookie_batch()
    del batch[view]
    with pytest.raises(ValueError, match=f"{term}_weight > 0 needs {view}"):
        tiny_cookie()(**batch)
    output = tiny_cookie(**{f"{term}_weight": 0})(**batch)
    assert output[f"loss_{term}"].item() == 0
    assert output.loss.item() > 0


def test_the_defaults_are_the_specification():
    config = CookieConfig()
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (224, 16)
    assert (config.projection_dim, config.num_shared_layers, config.num_shared_heads) == (1024, 2, 4)
    assert (config.shared_intermediate_size, config.shared_dropout, config.temperature) == (2048, 0.1, 0.07)
    assert (config.word_drop_ratio, config.word_drop_masked, config.word_drop_replaced) == (0.2, 0.5, 0.1)
    assert config.loss_weights == {"cross_modal": 1, "visual": 1, "textual": 1}


def test_from_two_towers():
    model = tiny_cookie().float()
    vision, text = model.cookie.vision_model, model.cookie.text_model
    again = CookieForPreTraining.from_vision_text_pretrained(vision, text, projection_dim=8, num_shared_heads=2)
    assert_same_weights(again.cookie.vision_model.state_dict(), vision.state_dict())
    assert again.config.projection_dim == 8
    with pytest.raises(ValueError, match="does not mask patches"):
        CookieForPreTraining.from_vision_text_pretrained(vision, text, "org/dvae")


def test_a_frozen_tower_has_no_dropout():
    config = tiny_cookie_config()
    config.text_config.hidden_dropout_prob = 0.5
    model = CookieForPreTraining(config)
    model.cookie.text_model.requires_grad_(False)
    model.train()
    assert not model.cookie.text_model.training
    assert model.cookie.transformer.training
