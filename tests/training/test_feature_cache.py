"""Training on stored features is training on frozen towers."""

import pytest
import torch

from hf_cots import CookieForPreTraining, COTSModel
from hf_cots.data.collator import COTSCollator
from hf_cots.train import main, train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_data import check_features_suffice
from tests.support import runs
from tests.support.steps import assert_close
from tests.support.tiny_cookie import tiny_cookie_config
from tests.support.worlds import checkpoint


NO_TOKENS = {"mvm_weight": 0, "mlm_weight": 0}


def flags(world, folder, overrides=None, freeze=("vision", "text"), **settings):
    settings = {"image_tokenizer": None, "feature_cache": world.root / "features"} | settings
    return world.flags(folder, NO_TOKENS | (overrides or {}), freeze=list(freeze), **settings)


def make_trainer(world, folder, overrides=None, **settings):
    return runs.make_trainer(flags(world, folder, overrides, **settings))


@pytest.mark.parametrize("contrast", ["momentum", "in_batch", "sigmoid"])
def test_it_equals_training_on_images_without_augmentation(world, tmp_path, contrast):
    overrides = {"contrast": contrast, "image_pooling": "cls+mean"}
    settings = {"gradient_accumulation_steps": 2, "max_steps": 4, "per_device_train_batch_size": 6}
    stored = make_trainer(world, tmp_path / "stored", overrides, **settings)
    plain = make_trainer(world, tmp_path / "plain", overrides, feature_cache=None, **settings)
    plain.data_collator = COTSCollator(plain.processing_class, plain.model.config)
    stored.train()
    plain.train()
    assert_close(stored.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-5)
    moved = (
        stored.model.cots.visual_projection.weight
        - make_trainer(world, tmp_path / "new", overrides, **settings).model.cots.visual_projection.weight
    )
    assert moved.abs().max() > 1e-4, "it has learned"


def test_a_killed_run_resumes_exactly(world, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "eval_data": world.imagefolder}
    results = train(flags(world, tmp_path, **settings))
    uninterrupted = checkpoint(tmp_path, 6)
    train(flags(world, tmp_path, **settings, resume_from_checkpoint=tmp_path / "checkpoint-2"))
    runs.assert_same_weights(checkpoint(tmp_path, 6), uninterrupted)
    assert set(results) == {"text_to_image", "image_to_text"}


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projections_of_standardized_features(world, tmp_path, kind):
    """Against the formula: a new projection applied to (x - mean) / deviation, feature by feature."""
    kinds = {"image_projection": kind, "text_projection": kind, "projection_hidden_dim": 24}
    plain = make_trainer(world, tmp_path / "plain", kinds)
    standard = make_trainer(world, tmp_path / "standard", kinds, standardize_features=True)
    every = standard.train_dataset.all_features()
    for stream, projection in (("image", "visual_projection"), ("text", "text_projection")):
        features = every[f"{stream}_features"].double()
        z_scores = (features - features.mean(dim=0)) / features.std(dim=0)
        expected = getattr(plain.model.cots, projection).double()(z_scores)
        initialized = getattr(standard.model.cots, projection)
        torch.testing.assert_close(initialized(features.float()).double(), expected, rtol=1e-4, atol=1e-4)
        follower = getattr(standard.model.momentum_encoder, projection).state_dict()
        assert all(torch.equal(follower[name], tensor) for name, tensor in initialized.state_dict().items())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projections_that_learn_in_standardized_features(world, tmp_path, kind):
    """Mean and deviation stay apart from the weights, go to the momentum encoder, and into the saved model."""
    kinds = {"image_projection": kind, "text_projection": kind, "projection_hidden_dim": 24}
    plain = make_trainer(world, tmp_path / "plain", kinds)
    kept = make_trainer(world, tmp_path / "kept", kinds | {"standardize_features": True}, standardize_features=True)
    every = kept.train_dataset.all_features()
    for stream, projection in (("image", "visual_projection"), ("text", "text_projection")):
        features = every[f"{stream}_features"].double()
        z_scores = (features - features.mean(dim=0)) / features.std(dim=0)
        expected = getattr(plain.model.cots, projection).double()(z_scores)
        for model in (kept.model.cots, kept.model.momentum_encoder):
            torch.testing.assert_close(
                getattr(model, projection)(features.float()).double(), expected, rtol=1e-4, atol=1e-4
            )
    kept.train()
    kept.model.cots.save_pretrained(tmp_path / "saved")
    again = COTSModel.from_pretrained(tmp_path / "saved")
    names = [name for name in again.state_dict() if name.endswith((".mean", ".deviation"))]
    assert len(names) == 4
    assert all(torch.equal(again.state_dict()[name], kept.model.cots.state_dict()[name]) for name in names)


def test_standardization_that_nobody_measures_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="needs the flag --standardize_features"):
        make_trainer(world, tmp_path, {"standardize_features": True})


def test_a_constant_feature_is_not_divided_by_zero(world, tmp_path):
    model = make_trainer(world, tmp_path).model.cots
    features = torch.randn(50, 32)
    features[:, 3] = 1.5
    before = model.visual_projection.weight[:, 3].clone()
    model.standardize_projections(features, torch.randn(50, 32))
    assert torch.equal(model.visual_projection.weight[:, 3], before)
    torch.testing.assert_close(model.visual_projection(features).mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)


ONE_SIDE = {"freeze": ("text",), "max_steps": 4, "image_tokenizer": None}


@pytest.mark.parametrize(
    "overrides", [{}, {"contrast": "in_batch"}, {"mlm_weight": 1}], ids=["momentum", "in_batch", "mlm"]
)
def test_texts_of_a_frozen_tower_are_encoded_once_and_images_augmented_as_usual(
    world, tmp_path, overrides, monkeypatch
):
    settings = ONE_SIDE | {"flip": 0.5, "dataloader_num_workers": 1}
    stored = make_trainer(world, tmp_path / "stored", overrides, **settings)
    plain = make_trainer(world, tmp_path / "plain", overrides, feature_cache=None, **settings)
    assert len(list((world.root / "features").glob("text-*"))) == 1
    original, runs_of_the_tower = stored.model.cots.encode_text, []
    monkeypatch.setattr(
        stored.model.cots, "encode_text", lambda *inputs, **k: runs_of_the_tower.append(1) or original(*inputs, **k)
    )
    stored.train()
    plain.train()
    assert len(runs_of_the_tower) == (4 if "mlm_weight" in overrides else 0), "masked texts alone go through the tower"
    assert_close(stored.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-5)
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (stored, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_stored_texts_differ_from_those_of_a_batch_by_rounding_alone(world, tmp_path):
    """In a batch, texts are padded to its longest; in the store, to the longest of 64."""
    trainer = make_trainer(world, tmp_path, **ONE_SIDE)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 1, 8, 30)])
    trainer.model.eval()
    for row in range(4):
        length = int(batch["attention_mask"][row].sum())
        alone = trainer.model.cots.encode_text(batch["input_ids"][row : row + 1, :length]).pooler_output
        torch.testing.assert_close(batch["features"]["text_features"][row : row + 1], alone, rtol=1e-6, atol=1e-6)
    assert trainer.data_collator([None])["features"]["text_features"].shape == (0, 32)


def test_a_run_on_stored_texts_resumes_exactly(world, tmp_path):
    settings = ONE_SIDE | {"save_strategy": "steps", "save_steps": 2, "freeze": ("text",)}
    train(flags(world, tmp_path / "whole", **settings))
    train(flags(world, tmp_path / "again", **settings, resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2"))
    runs.assert_same_checkpoints(tmp_path / "again", tmp_path / "whole", 4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"freeze": ("text", "vision:1")}, "needs frozen towers"),
        ({"freeze": ("text",), "standardize_features": True}, "features of both towers"),
        ({"freeze": ("vision",)}, "needs frozen towers"),
        ({"lora_rank": 2}, "do not use LoRA"),
        ({"overrides": {"mlm_weight": 1}}, "unmasked inputs"),
        ({"streaming": True, "train_data": "tars", "image_column": "png", "caption_column": "txt"}, "known length"),
        ({"feature_cache": None, "standardize_features": True}, "needs --feature_cache"),
        ({"model": "model", "vision": None, "text": None, "standardize_features": True}, "new projections"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_needs_more_than_features_is_refused(world, tmp_path, settings, reason):
    named = {name: getattr(world, value) for name, value in settings.items() if value in ("tars", "model")}
    with pytest.raises(SystemExit, match=reason):
        main(flags(world, tmp_path, **(settings | named)))


def test_models_that_read_tokens_are_refused(world, tmp_path):
    arguments, _, _ = parse_arguments(flags(world, tmp_path))
    with pytest.raises(ValueError, match="only supported by COTS"):
        check_features_suffice(CookieForPreTraining(tiny_cookie_config()), arguments, [])


def test_without_pixels_there_must_be_features(world, tmp_path):
    model = make_trainer(world, tmp_path).model
    features = {"image_features": torch.randn(4, 32), "text_features": torch.randn(4, 32)}
    assert torch.isfinite(model.train()(features=features).loss)
    assert torch.isfinite(model.eval()(features=features).loss)
    with pytest.raises(ValueError, match="needs input_ids"):
        model(features={"image_features": features["image_features"]})
    with pytest.raises(ValueError, match="needs pixel_values"):
        model(features={"text_features": features["text_features"]})
