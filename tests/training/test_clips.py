"""Training on clips through the flags of training on images."""

import json

import pytest
import torch

from hf_cots import COTSModel
from hf_cots.train import train
from tests.support import runs
from tests.support.moving import animation, write_clip_folder
from tests.support.steps import assert_close
from tests.support.worlds import all_pairs


NO_TOKENS = {"mvm_weight": 0, "mlm_weight": 0}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clips") / "clips", 12)


def flags(world, folder, data, overrides=None, **settings):
    settings = {"image_tokenizer": None, "train_data": data, "video_column": "video", "num_frames": 3} | settings
    return world.flags(folder, NO_TOKENS | (overrides or {}), **settings)


def test_clips_of_one_frame_train_as_images_do(world, tmp_path):
    """The same crops, keys, losses and weights, momentum contrast and all."""
    folder = tmp_path / "stills"
    folder.mkdir()
    lines = []
    for name, image, caption in all_pairs():
        (folder / name.replace("png", "webp")).write_bytes(animation([image]))
        lines.append(json.dumps({"file_name": name.replace("png", "webp"), "caption": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"max_steps": 3, "gradient_accumulation_steps": 2, "image_id_column": "caption", "num_frames": 1}
    moving = runs.make_trainer(flags(world, tmp_path / "clips", folder, **settings, flip=0.5))
    still = runs.make_trainer(
        flags(world, tmp_path / "images", world.imagefolder, **settings, video_column=None, flip=0.5)
    )
    moving.train()
    still.train()
    assert_close(moving.model.state_dict(), still.model.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_run_from_flags_to_a_model_that_knows_its_frames(world, clips, tmp_path):
    overrides = {"frame_pooling": "attention", "contrast": "in_batch"}
    results = train(flags(world, tmp_path, clips, overrides, eval_data=clips, frame_jitter=True, num_frames=4))
    assert results["text_to_image"]["gallery"] == 12
    model = COTSModel.from_pretrained(tmp_path / "model")
    assert (model.config.num_frames, model.config.frame_pooling) == (4, "attention")
    assert model.frame_pooler.output.weight.abs().max() > 0, "it has learned"
    settings = {"vision": None, "text": None, "model": tmp_path / "model", "max_steps": 1}
    continued = runs.make_trainer(flags(world, tmp_path / "on", clips, {}, **settings))
    assert continued.model.config.num_frames == 3
    assert continued.processing_class.video_processor.num_frames == 3


def test_a_model_of_images_gets_an_attention_over_frames(world, clips, tmp_path):
    """Which begins as the mean, in the momentum encoder too."""
    settings = {"vision": None, "text": None, "model": world.model}
    made = runs.make_trainer(flags(world, tmp_path, clips, {"frame_pooling": "attention"}, **settings))
    mean = runs.make_trainer(flags(world, tmp_path, clips, **settings))
    batch = made.data_collator([made.train_dataset[i] for i in range(3)])
    pixels, mask = batch["pixel_values_videos"], batch["frame_mask"]
    with torch.no_grad():
        for encoder in (made.model.cots, made.model.momentum_encoder):
            found = encoder.eval().get_video_features(pixels, mask).pooler_output
            expected = mean.model.cots.eval().get_video_features(pixels, mask).pooler_output
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_stored_features_of_frames_train_as_frozen_towers_do(world, clips, tmp_path, pooling):
    overrides = {"frame_pooling": pooling, "contrast": "in_batch"}
    settings = {"freeze": ["vision", "text"], "max_steps": 4, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 3, "min_scale": 1.0}
    cache = tmp_path / "features"
    stored = runs.make_trainer(flags(world, tmp_path / "stored", clips, overrides, **settings, feature_cache=cache))
    plain = runs.make_trainer(flags(world, tmp_path / "plain", clips, overrides, **settings))
    plain.data_collator.augmentation = None
    stored.train()
    plain.train()
    assert_close(stored.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-5)
    again = runs.make_trainer(flags(world, tmp_path / "again", clips, overrides, **settings, feature_cache=cache))
    one, other = (each.train_dataset.all_features()["frame_features"] for each in (stored, again))
    assert one.shape == (12, 3, 32)
    assert torch.equal(one, other)
    five = runs.make_trainer(
        flags(world, tmp_path / "five", clips, overrides, **settings, feature_cache=cache, num_frames=5)
    )
    assert five.train_dataset.all_features()["frame_features"].shape == (12, 5, 32)


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ({"mlm_weight": 0.5}, {}, "--video_column: the token level masks images, not clips"),
        ({}, {"architecture": "simla"}, "--video_column is only supported by COTS"),
        ({}, {"num_frames": 0}, "--num_frames must be at least 1, got 0"),
        ({}, {"image_column": "photo"}, "give either an image column or a clip column, not both"),
        ({}, {"video_column": None, "frame_jitter": True}, "--frame_jitter is only for clips"),
        (
            {},
            {"freeze": ["vision", "text"], "feature_cache": "f", "frame_jitter": True},
            "--frame_jitter samples other frames in each epoch",
        ),
    ],
)
def test_what_clips_cannot_do_is_said(world, clips, tmp_path, overrides, settings, message):
    if settings.get("architecture") == "simla":
        arguments = runs.simla_flags(world, tmp_path, train_data=clips, video_column="video")
    else:
        arguments = flags(world, tmp_path, clips, overrides, **settings)
    with pytest.raises(ValueError, match=message):
        runs.make_trainer(arguments)
