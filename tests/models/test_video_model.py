"""Clips through the model: frame by frame, pooled, compared with texts, and learned from."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_cots import CookieModel, COTSForPreTraining, COTSModel
from hf_cots.models.frame_pooling import FrameAttention
from tests.support.runs import load_exactly
from tests.support.tiny import tiny_batch, tiny_config
from tests.support.tiny_cookie import tiny_cookie_config


CLIPS = torch.randn(3, 5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CLIPS[0, 2] = CLIPS[0, 1]
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
TEXTS = {name: rows for name, rows in tiny_batch(3).items() if name != "pixel_values"}
NO_MASKS = {"mvm_weight": 0, "mlm_weight": 0}


def make_model(pooling="mean", **fields):
    model = COTSModel(tiny_config(frame_pooling=pooling, **fields)).eval()
    if pooling == "attention":  # as after training
        with torch.no_grad():
            for layer in (model.frame_pooler.output, model.frame_pooler.position, model.frame_pooler.key):
                layer.weight.normal_(std=0.5)
    return model


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_videos_are_their_frames_one_by_one(pooling):
    """Each frame encoded alone, those that there are pooled, then projected."""
    model = make_model(pooling)
    with torch.no_grad():
        found = model.get_video_features(CLIPS, MASK)
        for clip, mask, features, pooled in zip(
            CLIPS, MASK, found.last_hidden_state, found.pooler_output, strict=True
        ):
            alone = torch.cat([model.encode_image(frame[None]).pooler_output for frame in clip[mask]])
            torch.testing.assert_close(features[mask], alone)
            feature = alone.mean(dim=0) if pooling == "mean" else model.frame_pooler(alone[None], mask[None, mask])[0]
            torch.testing.assert_close(pooled, model.visual_projection(feature))
        whole = model.get_video_features(CLIPS).pooler_output
        torch.testing.assert_close(whole[0], found.pooler_output[0])
        assert not torch.allclose(whole[1], found.pooler_output[1])


def test_equal_and_missing_frames_are_not_encoded(monkeypatch):
    model, rows = make_model(), []
    encode_image = model.encode_image
    monkeypatch.setattr(
        model, "encode_image", lambda pixels, **k: rows.append(len(pixels)) or encode_image(pixels, **k)
    )
    model.encode_frames(CLIPS, MASK)
    model.encode_frames(CLIPS)
    model.encode_frames(CLIPS[:1, :1].expand(1, 8, -1, -1, -1))
    model.train().encode_frames(CLIPS, MASK)
    model.encode_frames(CLIPS)
    assert rows == [8, 14, 1, 9, 15]


def test_no_clips():
    """A rank without a pair in the last batch."""
    assert make_model("attention").get_video_features(CLIPS[:0], MASK[:0]).pooler_output.shape == (0, 16)


def test_forward():
    model = make_model()
    with torch.no_grad():
        both = model(pixel_values_videos=CLIPS, frame_mask=MASK, **TEXTS)
        features = model.get_video_features(CLIPS, MASK).pooler_output
        texts = model(**TEXTS).text_embeds
        alone = model(pixel_values_videos=CLIPS, frame_mask=MASK)
    embeds = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(both.video_embeds, embeds)
    torch.testing.assert_close(both.logits_per_video, embeds @ texts.t() / model.temperature)
    assert torch.equal(both.logits_per_text, both.logits_per_video.t())
    assert both.image_embeds is None
    assert both.logits_per_image is None
    assert torch.equal(alone.pooler_output, both.video_embeds)


def test_an_image_is_a_clip_of_one_frame():
    model = make_model()
    with torch.no_grad():
        image, clip = model(pixel_values=CLIPS[:, 0]), model(pixel_values_videos=CLIPS[:, :1])
    torch.testing.assert_close(clip.video_embeds, image.image_embeds)


def test_what_is_refused():
    model = make_model()
    with pytest.raises(
        ValueError, match=r"must have the shape \(clips, frames, channels, height, width\), got \(3, 3"
    ):
        model.get_video_features(CLIPS[:, 0])
    with pytest.raises(ValueError, match="frame_mask must keep at least one frame"):
        model.get_video_features(CLIPS, torch.zeros_like(MASK))
    with pytest.raises(ValueError, match="not both"):
        model(pixel_values=CLIPS[:, 0], pixel_values_videos=CLIPS)
    with pytest.raises(StrictDataclassError, match="num_frames must be at least 1"):
        tiny_config(num_frames=0)
    with pytest.raises(ValueError, match="CookieModel does not encode clips"):
        CookieModel(tiny_cookie_config()).get_video_features(CLIPS)


# ---------------------------------------------------------------------- attention over frames


def test_attention_begins_as_the_mean(tmp_path):
    """Exactly, from a model that pools by the mean, whose file lacks it."""
    mean = make_model()
    mean.save_pretrained(tmp_path)
    attention = COTSModel.from_pretrained(tmp_path, frame_pooling="attention")
    assert attention.frame_pooler.query.std() > 0
    with torch.no_grad():
        for mask in (MASK, None):
            expected = mean.get_video_features(CLIPS, mask).pooler_output
            assert torch.equal(attention.get_video_features(CLIPS, mask).pooler_output, expected)
    attention.save_pretrained(tmp_path / "attention")
    load_exactly(COTSModel, tmp_path / "attention")


def test_only_attention_sees_the_order_of_frames():
    forward, backward = CLIPS, CLIPS.flip(1)
    with torch.no_grad():
        mean, attention = make_model(), make_model("attention")
        one, other = (mean.get_video_features(clips).pooler_output for clips in (forward, backward))
        torch.testing.assert_close(one, other)
        one, other = (attention.get_video_features(clips).pooler_output for clips in (forward, backward))
        assert not torch.allclose(one, other, atol=1e-2)


def test_attention_by_the_formula():
    """One clip and head after the other."""
    torch.manual_seed(0)
    pooler, width = FrameAttention(32).eval(), 32
    for parameter in pooler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.randn(3, 5, width)
    found = pooler(features, MASK)
    for x, mask, pooled in zip(features, MASK, found, strict=True):
        x = x[mask]
        t = (torch.arange(len(x)) + 0.5) / len(x)
        waves = torch.stack([torch.cos(torch.pi * k * t) for k in range(1, 9)], dim=1)
        z = torch.nn.functional.layer_norm(x, (width,), pooler.norm.weight, pooler.norm.bias)
        z = z + waves @ pooler.position.weight.t()
        keys, values = pooler.key(z), pooler.value(z)
        heads = []
        for head in range(8):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.softmax(keys[:, part] @ pooler.query[part] / 2, dim=0)
            heads.append(weights @ values[:, part])
        torch.testing.assert_close(pooled, x.mean(dim=0) + pooler.output(torch.cat(heads)), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- pre-training


@pytest.mark.parametrize("contrast", ["momentum", "in_batch"])
def test_the_losses_of_clips_of_one_frame_are_those_of_images(contrast):
    torch.manual_seed(0)
    model = COTSForPreTraining(tiny_config(contrast=contrast, **NO_MASKS)).eval()
    images = model(pixel_values=CLIPS[:, 0], **TEXTS)
    videos = model(pixel_values_videos=CLIPS[:, :1], **TEXTS)
    for name in ("loss", "loss_instance", "loss_task", "image_embeds", "kept"):
        torch.testing.assert_close(videos[name], images[name])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_training_reaches_every_parameter_and_frozen_frames_give_the_same(pooling):
    """A frozen image tower is run once for keys and losses, or not at all where frames' features are given."""
    results = []
    for kind in ("trained", "frozen", "features"):
        torch.manual_seed(0)
        model = COTSForPreTraining(tiny_config(frame_pooling=pooling, **NO_MASKS))
        batch = {"pixel_values_videos": CLIPS, "frame_mask": MASK, **TEXTS}
        if kind != "trained":
            model.cots.vision_model.requires_grad_(False)
        if kind == "features":
            frames = model.cots.eval().encode_frames(batch.pop("pixel_values_videos"), MASK).detach()
            batch["features"] = {"frame_features": frames}
        model.train()
        output = model(**batch)
        output.loss.backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []
        results.append(output)
    for other in results[1:]:
        torch.testing.assert_close(other.loss, results[0].loss)
        torch.testing.assert_close(other.image_embeds, results[0].image_embeds)


def test_clips_are_not_masked():
    model = COTSForPreTraining(tiny_config())
    with pytest.raises(ValueError, match="does not support clips: set mvm_weight and mlm_weight to 0"):
        model(pixel_values_videos=CLIPS, **TEXTS)
