"""A tower that is not trained is encoded once per step, for keys and losses alike."""

import dataclasses

import pytest
import torch

from hf_cots import COTSForPreTraining
from tests.support.tiny import tiny_batch, tiny_config


@pytest.mark.parametrize(
    ("tower", "feature"), [("vision_model", "image_features"), ("text_model", "text_features")], ids=["vision", "text"]
)
def test_features_of_a_frozen_tower_come_with_the_keys_and_change_nothing(tower, feature):
    torch.manual_seed(0)
    model = COTSForPreTraining(tiny_config())
    getattr(model.cots, tower).requires_grad_(False)
    model.train()
    assert not getattr(model.cots, tower).training
    batch = tiny_batch()
    (step,) = model.begin_step([batch])
    assert getattr(step, feature).shape[0] == 8
    assert (step.image_features is None) != (step.text_features is None)
    given = model(**batch, step=step)
    computed = model(**batch, step=dataclasses.replace(step, **{feature: None}))
    for term in ("loss_instance", "loss_mvm", "loss_mlm", "loss_task"):
        torch.testing.assert_close(given[term], computed[term])


def test_a_frozen_tower_is_not_run_again(monkeypatch):
    model = COTSForPreTraining(tiny_config(mlm_weight=0.0))
    model.cots.text_model.requires_grad_(False)
    model.train()
    batch = tiny_batch()
    (step,) = model.begin_step([batch])
    monkeypatch.setattr(model.cots, "encode_text", lambda *_: pytest.fail("the frozen tower ran twice"))
    model(**batch, step=step).loss.backward()
    assert all(parameter.grad is None for parameter in model.cots.text_model.parameters())
    assert model.cots.text_projection.weight.grad is not None


def test_towers_that_train_give_no_features():
    model = COTSForPreTraining(tiny_config()).train()
    (step,) = model.begin_step([tiny_batch()])
    assert step.image_features is None
    assert step.text_features is None


def test_the_momentum_encoder_of_a_frozen_tower_is_not_updated_and_the_rest_follows():
    model = COTSForPreTraining(tiny_config(mlm_weight=0.0)).train()
    model.cots.text_model.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.cots.parameters():
            parameter.add_(1)
    before = {name: tensor.clone() for name, tensor in model.momentum_encoder.state_dict().items()}
    model.update_momentum()
    after = model.momentum_encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        name for name, _ in model.momentum_encoder.named_parameters() if not name.startswith("text_model.")
    }
    model.reset_momentum()
    assert torch.equal(after["text_model.embeddings.LayerNorm.bias"], model.cots.text_model.embeddings.LayerNorm.bias)


def test_a_call_that_changes_no_mode_walks_through_nothing(monkeypatch):
    model = COTSForPreTraining(tiny_config()).eval()
    walks, plain = [], torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Module, "train", lambda self, mode=True: walks.append(self) or plain(self, mode))
    model.train()
    first = len(walks)
    assert first > 10
    model.train()
    assert len(walks) == first
    for part in (model.cots, model.cots.text_model, model.momentum_encoder):  # whatever was changed by hand is undone
        part.train(not part.training)
        model.train()
        assert part.training == (part is not model.momentum_encoder)
    model.momentum_encoder.requires_grad_(True)
    model.train()
    assert not any(parameter.requires_grad for parameter in model.momentum_encoder.parameters())
    model.cots.vision_model.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.cots.vision_model.modules())
    model.eval()
    assert not any(module.training for module in model.modules())
