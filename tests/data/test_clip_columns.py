"""A column of clips in place of images: the same frames from every source, one seed for all of a clip's frames."""

import json

import datasets
import numpy as np
import pytest
import torch

from hf_cots import COTSConfig
from hf_cots.data.augmentation import RandomCropFlip
from hf_cots.data.collator import COTSCollator
from hf_cots.data.images import BrokenImageReport
from hf_cots.data.sources import load_pairs
from hf_cots.data.streams import StreamBatches, load_stream
from hf_cots.models import VideoFrames, read_frames
from tests.support.moving import animation, frame, moving, write_clip_folder
from tests.support.worlds import tiny_processor


COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clips") / "clips", COUNT)


def write_source(kind, folder, root):
    """The clips of a folder in another form; what to load, and the name of the column."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    if kind == "csv":
        rows = [f"{folder.name}/{line['file_name']},{line['text']}" for line in lines]
        path = folder.parent / "clips.csv"
        path.write_text("\n".join(["film,text", *rows]) + "\n")
        return path, "film"
    data = [(folder / line["file_name"]).read_bytes() for line in lines]
    feature = (
        datasets.Value("binary") if kind == "bytes" else {"image": datasets.Image(), "video": datasets.Video()}[kind]
    )
    cells = data if kind == "bytes" else [{"bytes": each, "path": "a.webp"} for each in data]
    rows = {"clip": cells, "text": [line["text"] for line in lines]}
    features = datasets.Features({"clip": feature, "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{kind}.parquet")
    return root / f"{kind}.parquet", "clip"


def pixels(clip):
    return [np.asarray(image).tolist() for image in clip.frames]


@pytest.mark.parametrize("kind", ["folder", "csv", "bytes", "image", "video"])
def test_every_source_gives_the_frames_of_the_file(kind, folder, tmp_path):
    data, column = (folder, "video") if kind == "folder" else write_source(kind, folder, tmp_path)
    pairs = load_pairs(data, video_column=column, num_frames=3)
    stream = load_stream(data, video_column=column, num_frames=3, shuffle_buffer_size=1)
    streamed = [stream[pair] for pair in next(iter(StreamBatches(stream, COUNT)))]
    assert len(pairs) == COUNT
    for i, path in enumerate(sorted(folder.glob("*.webp"))):
        expected = read_frames(path, 3)
        for item in (pairs[i], streamed[i]):
            assert isinstance(item["video"], VideoFrames)
            assert "image" not in item
            assert item["video"].times == expected.times
            assert pixels(item["video"]) == pixels(expected)
        assert pairs[i]["caption"] == streamed[i]["caption"]


def test_clips_that_cannot_be_read_are_reported_and_skipped(tmp_path):
    broken = write_clip_folder(tmp_path / "clips", COUNT, broken=2)
    pairs = load_pairs(broken, video_column="video", report=tmp_path / "report.jsonl")
    assert pairs[COUNT - 2]["caption"] == pairs[0]["caption"], "the next readable pair"
    stream = load_stream(broken, video_column="video", report=tmp_path / "stream.jsonl", shuffle_buffer_size=1)
    assert [stream[pair] is None for pair in next(iter(StreamBatches(stream, COUNT)))] == [False] * 4 + [True] * 2
    for name in ("report.jsonl", "stream.jsonl"):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [line["image"].rpartition("/")[2] for line in lines] == ["clip-04.webp", "clip-05.webp"]
        assert not any(line["used"] for line in lines)
    assert BrokenImageReport(tmp_path / "report.jsonl").skipped() == 2


def test_a_still_image_among_clips_is_a_clip_of_one_frame(tmp_path):
    folder = write_clip_folder(tmp_path / "clips", 2)
    (folder / "clip-00.webp").write_bytes(animation([frame("red")]))
    item = load_pairs(folder, video_column="video", num_frames=4)[0]
    assert (len(item["video"].images), item["video"].frame_index) == (1, [0, 0, 0, 0])


# ---------------------------------------------------------------------- frames at random times


def times_of(folder, key, seed=0, jitter=True):
    return load_pairs(folder, video_column="video", num_frames=4, seed=seed, frame_jitter=jitter)[key]["video"].times


def test_jittered_times_lie_in_their_segments_and_follow_the_seed(folder):
    middles = times_of(folder, 0, jitter=False)
    segment = middles[1] - middles[0]
    drawn = times_of(folder, (0, 0))
    assert all(abs(time - middle) <= segment / 2 + 1e-9 for time, middle in zip(drawn, middles))
    assert drawn == times_of(folder, (0, 0))
    others = [times_of(folder, (1, 0)), times_of(folder, (0, 3)), times_of(folder, (0, 0), seed=1), middles]
    assert all(drawn != other for other in others)
    shifts = [(time - middle) / segment for time, middle in zip(drawn, middles)]
    assert len({round(shift, 6) for shift in shifts}) == 4, "each frame has its own"


# ---------------------------------------------------------------------- batches


def collator(augmentation=None, clips=True):
    config = COTSConfig(mvm_weight=0, mlm_weight=0)
    return COTSCollator(tiny_processor(), config, augmentation, clips=clips)


@pytest.mark.parametrize("augment", [True, False])
def test_all_frames_of_a_clip_are_cropped_as_one_image(folder, augment):
    """Each frame of a batch has the pixels that it has as an image under the clip's seed."""
    augmentation = RandomCropFlip(32, min_scale=0.3, recolor=0.5) if augment else None
    pairs = load_pairs(folder, video_column="video", num_frames=3)
    items = [pairs[(epoch, i)] for epoch in range(2) for i in range(COUNT)]
    batch = collator(augmentation)(items)
    assert batch["pixel_values_videos"].shape == (2 * COUNT, 3, 3, 32, 32)
    assert batch["frame_mask"].all()
    for at in range(3):
        images = [item | {"image": item["video"].frames[at]} for item in items]
        expected = collator(augmentation, clips=False)(images)
        torch.testing.assert_close(batch["pixel_values_videos"][:, at], expected["pixel_values"], rtol=0, atol=0)
        torch.testing.assert_close(batch["input_ids"], expected["input_ids"])
    if augment:  # and in another way in each epoch
        assert not torch.equal(batch["pixel_values_videos"][:COUNT], batch["pixel_values_videos"][COUNT:])


def test_a_batch_of_no_clips_has_all_columns(folder):
    full = collator()([load_pairs(folder, video_column="video")[0]])
    empty = collator()([None])
    assert empty.keys() == full.keys()
    assert all(len(rows) == 0 for rows in empty.values())


# ---------------------------------------------------------------------- what a user can mend


def test_errors_are_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no column 'clip'; it has video, text\. Choose one with --video-column"):
        load_pairs(folder, video_column="clip")
    with pytest.raises(ValueError, match="give either an image column or a clip column, not both: 'a', 'b'"):
        load_pairs(folder, image_column="a", video_column="b")
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        load_pairs(folder, video_column="video", num_frames=0)
    (tmp_path / "clips.csv").write_text("video,text\nnone.mp4,a\nnone.mp4,b\n")
    with pytest.raises(ValueError, match=r"none of the first 2 clips in column 'video' .* row 0 is .*no such"):
        load_pairs(tmp_path / "clips.csv", video_column="video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is a table, parquet, tar or clip"):
        load_pairs(tmp_path / "empty", video_column="video")


def test_films_in_folders_and_tables(tmp_path):
    av = pytest.importorskip("av")
    folder = write_clip_folder(tmp_path / "clips", 2)
    with av.open(str(folder / "clip-01.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(10):
            image = frame("blue", i).resize((32, 32))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    (folder / "clip-01.webp").unlink()
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("clip-01.webp", "clip-01.mp4"))
    clip = load_pairs(folder, video_column="video", num_frames=4)[1]["video"]
    assert (clip.images[0].size, len(clip.times)) == ((32, 32), 4)
    assert clip.duration == pytest.approx(1.0, abs=0.15)
    assert moving("red")  # other clips of the folder are as before
