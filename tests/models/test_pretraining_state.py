"""COTSForPreTraining as an object: what is frozen, saved, loaded, and computed in half precision."""

import copy
import dataclasses
import math

import pytest
import torch

from hf_cots import COTSForPreTraining, COTSImageTokenizer, COTSModel
from hf_cots.models import pretraining
from hf_cots.models.token_level import draw_masks_by_index
from tests.support.runs import assert_same_weights, load_exactly
from tests.support.steps import data, gradients, make, run_step
from tests.support.tiny import tiny_batch, tiny_config


def trained(**fields):
    """A float32 model after two steps, whose momentum encoder, queues and counters all hold something."""
    model = make(**fields).float()
    for seed in range(2):
        batch = data(model, seed=seed)
        batch["pixel_values"] = batch["pixel_values"].float()
        model(**batch)
    model.update_momentum()
    return model


def test_parameters_are_those_of_any_module():
    """In their order, a shared one once, and lazily as `dtype` asks for the first alone."""
    model = make()
    model.cots.text_projection.weight = model.cots.visual_projection.weight
    expected = list(torch.nn.Module.parameters(model))
    assert [id(one) for one in model.parameters()] == [id(one) for one in expected]
    assert len(expected) == len(set(map(id, expected)))
    model.mvm_bias = torch.nn.Parameter(torch.zeros(2))
    assert [id(one) for one in model.parameters(recurse=False)] == [
        id(one) for one in torch.nn.Module.parameters(model, recurse=False)
    ]


def assert_frozen(model):
    for name in ("momentum_encoder", "image_tokenizer"):
        module = getattr(model, name)
        assert not any(p.requires_grad for p in module.parameters()), name
        assert not any(m.training for m in module.modules()), name
    assert all(p.requires_grad for p in model.cots.parameters())
    assert all(p.requires_grad for p in model.mvm_head.parameters())


def test_round_trip_keeps_every_parameter_and_buffer(tmp_path):
    model = trained(learn_temperature=True)
    model.save_pretrained(tmp_path)
    loaded = load_exactly(COTSForPreTraining, tmp_path)
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert int(loaded.key_queue.filled) == int(loaded.pairs_seen) == 16
    assert int(loaded.steps_seen) == 2
    assert not torch.equal(loaded.momentum_encoder.visual_projection.weight, loaded.cots.visual_projection.weight)


def test_frozen_modules_stay_frozen(tmp_path):
    model = trained()
    assert_frozen(model)
    model.save_pretrained(tmp_path)
    loaded = COTSForPreTraining.from_pretrained(tmp_path)
    assert_frozen(loaded)
    loaded.train()
    assert_frozen(loaded)
    assert loaded.cots.training
    loaded.eval()
    assert_frozen(loaded)
    assert not loaded.cots.training


def test_the_momentum_encoder_runs_without_dropout():
    config = tiny_config()
    config.vision_config.hidden_dropout_prob = 0.5
    model = COTSForPreTraining(config).train()
    batch = tiny_batch()
    a, b = model.begin_step([batch, batch])
    assert torch.equal(a.image_keys, b.image_keys)


def test_pretraining_file_loads_as_cots_model(tmp_path):
    model = trained().eval()
    model.save_pretrained(tmp_path)
    loaded = load_exactly(COTSModel, tmp_path)
    assert "vision_model.embeddings.mask_token" not in loaded.state_dict()
    batch = tiny_batch()
    assert torch.equal(loaded(**batch).logits_per_image, model.cots(**batch).logits_per_image)


def test_cots_model_file_loads_for_pretraining(tmp_path):
    """Momentum encoder equal to the online one, empty queues, sane new heads."""
    model = COTSModel(tiny_config(learn_temperature=True)).eval()
    with torch.no_grad():
        model.log_temperature.fill_(math.log(0.123))
    model.save_pretrained(tmp_path)
    loaded = COTSForPreTraining.from_pretrained(tmp_path)
    online = loaded.cots.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(online[name], value), name
    for name, value in loaded.momentum_encoder.state_dict().items():
        assert torch.equal(online[name], value), name
        assert online[name].data_ptr() != value.data_ptr(), name
    for name, buffer in loaded.named_buffers():
        if "queue" in name or "seen" in name:
            assert (buffer == 0).all(), name
    assert all(torch.isfinite(p).all() for p in loaded.parameters())
    assert (loaded.mlm_bias == 0).all()
    assert loaded.mvm_classifier.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert_frozen(loaded)
    output = loaded.train()(**tiny_batch())
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_new_model_starts_with_equal_encoders_and_empty_queues():
    model = COTSForPreTraining(tiny_config())
    momentum = model.momentum_encoder.state_dict()
    assert_same_weights(momentum, {name: model.cots.state_dict()[name] for name in momentum})
    assert int(model.key_queue.filled) == int(model.score_queue.filled) == int(model.steps_seen) == 0
    assert (model.key_queue.image_keys == 0).all()


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    model = make(filter_lambda=1.0)
    run_step(model, data(model, 16, seed=0), [8, 8])
    model.end_step()
    model.save_pretrained(tmp_path)
    resumed = COTSForPreTraining.from_pretrained(tmp_path).train()
    assert next(resumed.parameters()).dtype == torch.float64
    model.zero_grad()
    for seed in (1, 2):
        batch = data(model, 16, seed=seed)
        assert run_step(model, batch, [8, 8]) == run_step(resumed, batch, [8, 8])
        model.end_step()
        resumed.end_step()
    assert_same_weights(gradients(resumed), gradients(model))


def test_evaluation_leaves_the_state_untouched_and_is_deterministic():
    model = trained().eval()
    before = copy.deepcopy(model.state_dict())
    batch = tiny_batch(seed=5)
    with torch.no_grad():
        first, second = model(**batch), model(**batch)
    for name in ("loss", "loss_instance", "loss_mvm", "loss_mlm", "loss_task"):
        assert first[name] > 0
        assert first[name] == second[name], name
    assert first.kept.all()
    assert_same_weights(model.state_dict(), before)


@pytest.mark.parametrize("center", [True, False])
def test_evaluation_loss_is_that_of_a_step_against_the_present_queue(center):
    """The same as a training step with the queue of the past, centered keys and all; no pair is dropped."""
    model = make(enqueue_before_loss=False, center_keys=center, filter_lambda=0.0)
    for seed in range(2):
        run_step(model, data(model, seed=seed), [8])
        model.end_step()
    batch = data(model, seed=2)
    expected = copy.deepcopy(model)
    (step,) = expected.begin_step([batch])
    assert not step.kept.all()
    step = dataclasses.replace(step, kept=torch.ones(8, dtype=torch.bool), weights=torch.full((8,), 1 / 8).double())
    wanted, given = expected(**batch, step=step), model.eval()(**batch)
    for name in ("loss", "loss_instance", "loss_mvm", "loss_mlm", "loss_task"):
        torch.testing.assert_close(given[name], wanted[name], rtol=1e-9, atol=1e-10)


def test_losses_are_named_and_add_up():
    weights = {"instance_weight": 0.5, "mvm_weight": 2.0, "mlm_weight": 0.25, "task_weight": 0.1}
    output = make(**weights)(**data(make()))
    total = sum(weight * output[f"loss_{name[:-7]}"] for name, weight in weights.items())
    torch.testing.assert_close(output.loss.detach(), total)
    assert not output.loss_mvm.requires_grad
    assert output.image_embeds.shape == output.text_embeds.shape == (8, 16)


@pytest.mark.parametrize(("start", "expected"), [(1e-6, 0.01), (0.01, 0.01), (0.2, 0.2), (0.5, 0.5), (70.0, 0.5)])
def test_learned_temperature_stays_within_its_bounds(start, expected):
    model = COTSForPreTraining(tiny_config(learn_temperature=True)).train()
    with torch.no_grad():
        model.cots.log_temperature.fill_(math.log(start))
    assert model.cots.temperature.item() == pytest.approx(expected, rel=1e-5)
    output = model(**tiny_batch())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert torch.isfinite(model.cots.log_temperature.grad)
    if start == 0.2:
        assert model.cots.log_temperature.grad != 0


def test_temperature_is_initialised_from_the_config(tmp_path):
    for learn in (True, False):
        model = COTSModel(tiny_config(learn_temperature=learn, temperature=0.3))
        assert float(model.temperature) == pytest.approx(0.3)
    fixed = COTSModel(tiny_config(temperature=0.3))
    fixed.save_pretrained(tmp_path)
    assert float(COTSModel.from_pretrained(tmp_path, learn_temperature=True).temperature) == pytest.approx(0.3)


def test_bf16_autocast_gives_finite_float32_losses():
    # The keys of an untrained model are nearly equal, and what is left of them when they are centered is rounding.
    model = COTSForPreTraining(tiny_config(center_keys=False)).train()
    reference = copy.deepcopy(model)
    batch = tiny_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch)
    plain = reference(**batch)
    for name in ("loss", "loss_instance", "loss_mvm", "loss_mlm", "loss_task"):
        assert output[name].dtype == torch.float32
        assert float(output[name].detach()) == pytest.approx(float(plain[name].detach()), rel=0.1)
    output.loss.backward()
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
    assert model.key_queue.image_keys.dtype == torch.float32
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(8))


def test_bf16_weights_train():
    model = COTSForPreTraining(tiny_config()).to(torch.bfloat16).train()
    batch = tiny_batch()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)


# ------------------------------------------------------------------ the image tokenizer's view


def test_codebook_pixels_undo_the_normalization():
    model = COTSForPreTraining(tiny_config(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 0.4]))
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.25, 0.4]))
    torch.testing.assert_close(model.codebook_pixels((pixels - mean) / std), pixels)
    assert model.codebook_pixels(torch.full((1, 3, 32, 32), 100.0)).max() == 1


def test_codebook_pixels_follow_the_flip_and_the_resize():
    """Flipping the image flips the tokenizer's view; each code's pixels are those of its own patch."""
    config = tiny_config()
    config.vision_config.image_size, config.vision_config.patch_size = 64, 16
    model = COTSForPreTraining(config)
    pixels = torch.randn(2, 3, 64, 64) * 0.2
    view = model.codebook_pixels(pixels)
    assert view.shape == (2, 3, 32, 32)
    torch.testing.assert_close(model.codebook_pixels(pixels.flip(-1)), view.flip(-1), rtol=1e-5, atol=1e-5)
    lit = torch.full((1, 3, 64, 64), -1.0)
    lit[:, :, 16:32, 32:48] = 1.0  # patch (1, 2)
    bright = model.codebook_pixels(lit)[0, 0].view(4, 8, 4, 8).mean(dim=(1, 3))
    assert bright[1, 2] > 0.9
    assert bright.sum() - bright[1, 2] < 0.3


def test_targets_are_the_codes_of_the_masked_patches():
    """Given codes equal the tokenizer's own; a changed code of an unmasked patch is unseen."""
    model = make().eval()
    batch = data(model)
    step = model.begin_step([batch])[0]
    codes = model.image_tokenizer.get_codebook_indices(model.codebook_pixels(batch["pixel_values"])).flatten(1)
    own = model(**batch, step=step).loss_mvm
    given = model(**batch, step=step, codebook_indices=codes).loss_mvm
    assert own == given
    masked = batch["bool_masked_pos"]
    unseen = torch.where(masked, codes, (codes + 1) % 64)
    assert model(**batch, step=step, codebook_indices=unseen).loss_mvm == own
    seen = torch.where(masked, (codes + 1) % 64, codes)
    assert model(**batch, step=step, codebook_indices=seen).loss_mvm != own


def test_set_image_tokenizer_takes_weights_and_refuses_other_sizes():
    model = make()
    given = COTSImageTokenizer(tiny_config().image_tokenizer_config).double()
    model.set_image_tokenizer(given)
    for a, b in zip(model.image_tokenizer.parameters(), given.parameters()):
        assert torch.equal(a, b)
    other = tiny_config(image_tokenizer_config={"image_size": 32, "codebook_size": 32, "hidden_size": 8})
    with pytest.raises(ValueError, match="codebook_size"):
        model.set_image_tokenizer(COTSImageTokenizer(other.image_tokenizer_config))


def test_masks_drawn_by_the_model_differ_between_steps_and_rows(monkeypatch):
    model = make()
    seen = []

    def draw(*arguments):
        masks = draw_masks_by_index(*arguments)
        seen.append(masks["bool_masked_pos"])
        return masks

    monkeypatch.setattr(pretraining, "draw_masks_by_index", draw)
    batch = {k: v for k, v in data(model).items() if "mask" not in k or k == "attention_mask"}
    batch["input_ids"] = batch["input_ids"][:1].expand(8, -1)
    for _ in range(2):
        model(**batch)
    assert (seen[0].sum(dim=1) == model.config.num_masked_patches).all()
    assert not torch.equal(seen[0], seen[1])
    assert len({tuple(row.tolist()) for row in seen[0]}) > 1


def test_text_without_words_trains():
    """[CLS] [SEP] alone has nothing to mask; the pair still takes part in everything else."""
    model = COTSForPreTraining(tiny_config()).train()
    batch = tiny_batch(pairs=4)
    batch["input_ids"][:, 1:] = 0
    batch["input_ids"][:, 1] = 102
    batch["attention_mask"][:, 2:] = 0
    output = model(**batch)
    output.loss.backward()
    assert output.loss_mlm == 0
    assert torch.isfinite(output.loss)
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())


def test_training_lowers_the_loss_and_learns_the_pairs():
    """Eighty steps on eight pairs: the loss halves and each image finds its text."""
    model = COTSForPreTraining(tiny_config(temperature=0.2, task_weight=0.1, momentum=0.9)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch, losses = tiny_batch() | {"image_ids": torch.arange(8)}, []
    for _ in range(80):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        logits = model.cots.eval()(**batch).logits_per_image
    assert torch.equal(logits.argmax(dim=1), torch.arange(8))
