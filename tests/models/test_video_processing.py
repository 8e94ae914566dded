"""Clips of any kind in, what the model takes out: each frame as the image processor gives it as an image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from hf_cots import COTSImageProcessor, COTSModel, COTSProcessor, COTSVideoProcessor
from hf_cots.models import read_frames
from tests.support.clips import make_animation, make_film, picture
from tests.support.tiny import tiny_config
from tests.support.words import tiny_processor


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return make_film(tmp_path_factory.mktemp("films") / "film.mp4")


def pixels_of(processor, clips, **options):
    return processor(videos=clips, return_tensors="pt", **options)["pixel_values_videos"]


@pytest.mark.parametrize("settings", [{}, {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}])
def test_a_frame_has_the_pixels_of_an_image(film, settings):
    """Bit for bit, with any settings."""
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3]} | settings
    processor = COTSProcessor(COTSImageProcessor(**settings), tiny_processor().tokenizer)
    clip = read_frames(film)
    inputs = processor(videos=[film], return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 8, 3, 32, 32)
    assert inputs["pixel_values_videos"].dtype == torch.float32
    assert inputs["frame_mask"].tolist() == [[True] * 8]
    for frame, pixels in zip(clip.frames, inputs["pixel_values_videos"][0], strict=True):
        assert torch.equal(pixels, processor(images=frame, return_tensors="pt")["pixel_values"][0])


def test_clips_of_every_kind(film, tmp_path):
    processor = tiny_processor()
    clip = read_frames(film)
    expected = pixels_of(processor, [film])
    arrays = np.stack([np.asarray(frame) for frame in clip.frames])
    for same in (film, str(film), film.read_bytes(), clip, clip.frames, arrays, torch.from_numpy(arrays)):
        for videos in (same, [same]):
            assert torch.equal(pixels_of(processor, videos), expected), type(same)
    two = [film, make_animation(tmp_path / "a.webp")]
    both = processor(videos=two, text=["a dog", "sky"], num_frames=3, return_tensors="pt")
    assert both["pixel_values_videos"].shape == (2, 3, 3, 32, 32)
    assert {"input_ids", "attention_mask"} < set(both)


def test_which_frames(film):
    processor = tiny_processor()
    images = [picture(i) for i in range(6)]
    assert torch.equal(
        pixels_of(processor, [film], times=[0.5, 2.0]), pixels_of(processor, [read_frames(film, times=[0.5, 2.0])])
    )
    sampled = pixels_of(processor, [images], num_frames=2)
    assert torch.equal(sampled[0], processor(images=[images[1], images[4]], return_tensors="pt")["pixel_values"])
    inputs = processor(videos=[images, images[:2]], do_sample_frames=False, return_tensors="pt")
    assert inputs["frame_mask"].tolist() == [[True] * 6, [True, True] + [False] * 4]
    assert torch.equal(inputs["pixel_values_videos"][1, :2], inputs["pixel_values_videos"][0, :2])
    assert not inputs["pixel_values_videos"][1, 2:].any()
    plain = processor(videos=[film], do_normalize=False)["pixel_values_videos"]
    assert plain.min() >= 0 > pixels_of(processor, [film]).min()


def test_equal_frames_are_processed_once(monkeypatch):
    seen = []
    process_image = COTSImageProcessor.process_image
    monkeypatch.setattr(
        COTSImageProcessor,
        "process_image",
        lambda self, image, **k: seen.append(image) or process_image(self, image, **k),
    )
    pixels = pixels_of(tiny_processor(), [[picture(0), picture(1), picture(0), picture(1)]], num_frames=4)
    assert len(seen) == 2
    assert torch.equal(pixels[0, 0], pixels[0, 2])


def test_what_is_no_clip_is_refused_by_its_number(film, tmp_path):
    processor = tiny_processor()
    for bad, message in (
        (tmp_path / "no.mp4", r"videos\[1\]: no such clip: .*no\.mp4"),
        (film.read_bytes()[:-1000], r"videos\[1\]: clip without a name: truncated"),
        (3, r"videos\[1\]: .*int"),
        ([], r"videos\[1\]: the clip has no frames"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            processor(videos=[film, bad])
    with pytest.raises(ValueError, match="videos is empty"):
        processor(videos=[])
    with pytest.raises(ValueError, match=r"videos\[0\]: frames of a file must be sampled"):
        processor(videos=[film], do_sample_frames=False)
    foreign = COTSProcessor(CLIPImageProcessorPil(), processor.tokenizer)
    assert foreign(images=picture(0), return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="clips need a COTSImageProcessor"):
        foreign(videos=[film])


# ---------------------------------------------------------------------- files


def test_the_usual_video_processor_is_not_written(tmp_path):
    """Files are as they were before there were clips, and files of before load."""
    tiny_processor().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "processor_config.json").read_text())
    assert set(fields) == {"auto_map", "image_processor", "processor_class"}
    for cls in (COTSProcessor, AutoProcessor):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is COTSProcessor
        assert loaded.video_processor.num_frames == 8
        assert loaded.video_processor.size == loaded.image_processor.size


def test_another_video_processor_is_saved_and_loaded(tmp_path, film):
    processor = tiny_processor()
    processor.video_processor.num_frames = 3
    processor.padding = "max_length"
    processor.save_pretrained(tmp_path)
    for again in (COTSProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert (again.video_processor.num_frames, again.padding) == (3, "max_length")
        assert torch.equal(pixels_of(again, [film]), pixels_of(processor, [film]))
    alone = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(alone) is COTSVideoProcessor
    assert torch.equal(alone([film], return_tensors="pt")["pixel_values_videos"], pixels_of(processor, [film]))
    assert COTSVideoProcessor.from_pretrained(tmp_path).to_dict()["num_frames"] == 3
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "processor_config.json").read_text() == (
        tmp_path / "processor_config.json"
    ).read_text()


def test_a_video_processor_alone(tmp_path, film):
    processor = COTSVideoProcessor(size={"height": 16, "width": 16}, num_frames=2)
    processor.save_pretrained(tmp_path)
    loaded = COTSVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**processor.to_dict(), "auto_map": loaded.auto_map}
    assert {"video_preprocessor_config.json", "video_processing_cots.py", "video_frames.py"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert loaded(film, return_tensors="pt")["pixel_values_videos"].shape == (1, 2, 3, 16, 16)


def test_arguments_of_a_load_reach_the_video_processor(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    loaded = COTSProcessor.from_pretrained(tmp_path, num_frames=5, do_normalize=False)
    assert loaded.video_processor.num_frames == 5
    assert not loaded.video_processor.do_normalize


def test_the_video_processor_is_ours():
    processor = tiny_processor()
    with pytest.raises(TypeError, match="video_processor must be a COTSVideoProcessor, got a COTSImageProcessor"):
        COTSProcessor(processor.image_processor, processor.tokenizer, video_processor=processor.image_processor)
    assert isinstance(read_frames([Image.new("RGB", (2, 2))], 1).images[0], Image.Image)


def test_sentence_transformers_takes_clips(tmp_path, film):
    """By path, and by name where it does not know the suffix."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer

    model, processor = COTSModel(tiny_config()).eval(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.get_video_features(**processor(videos=[film], return_tensors="pt")).pooler_output
    wrapped = st.SentenceTransformer(modules=[Transformer(str(tmp_path))], device="cpu")
    for clip in (str(film), {"video": str(film)}):
        assert torch.equal(wrapped.encode([clip], convert_to_tensor=True), expected)
