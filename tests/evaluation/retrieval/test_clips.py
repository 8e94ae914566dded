"""Evaluation on clips: the same figures as by hand, MSR-VTT's protocols from file to figures, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from hf_cots.data.sources import load_pairs
from hf_cots.evaluation.retrieval import protocols
from hf_cots.evaluation.retrieval.report import evaluate_encoder
from hf_cots.evaluation.retrieval.run import EvaluationRun
from hf_cots.models import read_frames
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.loading import load_encoder
from tests.support.cli import call, error_of, succeed
from tests.support.embeddings import assert_close
from tests.support.moving import COLORS, moving, write_clip_folder


COUNT = 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clips") / "clips", COUNT)


@pytest.fixture(scope="module")
def encoder(world):
    return load_encoder(str(world.model), device="cpu")


def by_hand(encoder, paths, num_frames):
    """Each clip alone: features of its frames one by one, their mean, projected and normalized."""
    model, rows = encoder.model, []
    for path in paths:
        features = []
        for image in read_frames(path, num_frames).frames:
            pixels = encoder.processor(images=[image], return_tensors="pt")["pixel_values"]
            features.append(model.encode_image(pixels).pooler_output)
        rows.append(model.visual_projection(torch.cat(features).mean(dim=0, keepdim=True)))
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [2, 7, 64])
def test_embeddings_are_those_of_each_clip_alone(encoder, clips, batch_size):
    pairs = load_pairs(clips, video_column="video", num_frames=3)
    encoded = encode_pairs(encoder, pairs, batch_size)
    expected = by_hand(encoder, sorted(clips.glob("*.webp")), 3)
    assert_close(encoded.image_embeds, expected, rtol=1e-5, atol=1e-6)
    assert encoded.rows == list(range(COUNT))


def test_audit_of_clips(world, clips, encoder, tmp_path):
    """The scores of the command are those of the clips' and captions' embeddings."""
    args = [
        "audit",
        world.model,
        clips,
        "--video-column",
        "video",
        "--num-frames",
        "3",
        "--output",
        tmp_path / "audit",
    ]
    assert f"{COUNT} pairs" in succeed(*args).stdout
    encoded = encode_pairs(encoder, load_pairs(clips, video_column="video", num_frames=3))
    lines = [json.loads(line) for line in (tmp_path / "audit/suspects.jsonl").read_text().splitlines()]
    scores = {line["pair"]: line["score"] for line in lines}
    expected = (encoded.image_embeds * encoded.text_embeds).sum(axis=1)
    assert_close(torch.tensor([scores[pair] for pair in range(COUNT)]), torch.tensor(expected), rtol=0, atol=2e-5)
    assert (tmp_path / "audit/suspects.html").read_text().count("data:image/jpeg") == COUNT


@pytest.mark.parametrize("verb", ["audit", "evaluate"])
def test_frames_of_images_are_refused(world, verb, tmp_path):
    message = error_of(call(verb, world.model, world.imagefolder, "--num-frames", 3, "--output", tmp_path / "out"))
    assert "--num-frames is only for clips" in message
    assert "--video-column" in message


def test_broken_clips_are_left_out(encoder, tmp_path):
    pairs = load_pairs(write_clip_folder(tmp_path / "clips", COUNT, broken=2), video_column="video")
    result = evaluate_encoder(encoder, pairs)
    assert result.metrics()["text_to_image"]["gallery"] == COUNT - 2
    assert [Path(each.name).name for each in result.parts[0].broken] == ["clip-08.webp", "clip-09.webp"]


def test_the_command(world, encoder, clips, tmp_path):
    output = tmp_path / "results.json"
    arguments = ("evaluate", world.model, clips, "--video-column", "video", "--output", output, "--failures", 2)
    result = succeed(*arguments, "--num-frames", 3)
    assert "text to video" in result.stdout
    report = json.loads(output.read_text())
    assert (report["data"]["video_column"], report["data"]["num_frames"]) == ("video", 3)
    expected = evaluate_encoder(encoder, load_pairs(clips, video_column="video", num_frames=3)).metrics()
    assert report["text_to_image"]["MRR"] == expected["text_to_image"]["MRR"]
    assert output.with_suffix(".failures.html").read_text().count("data:image/jpeg") > 2
    succeed(*arguments)
    assert json.loads(output.read_text())["data"]["num_frames"] == 8, "the config's"


def test_what_is_for_images_alone_is_refused(world, clips):
    arguments = ("evaluate", world.model, clips, "--video-column", "video")
    message = error_of(call(*arguments, "--check-overlap", clips))
    assert message == f"error: --check-overlap only supports images, but {clips} has clips: leave it out"
    run = EvaluationRun(str(world.model), str(clips), video_column="video", rerank=object())
    with pytest.raises(ValueError, match="--rerank only supports images"):
        run.run(print)


# ---------------------------------------------------------------------- MSR-VTT


@pytest.fixture
def few(monkeypatch):
    """Six clips stand for the published ones."""
    spec = protocols.ProtocolSpec
    monkeypatch.setitem(protocols.VIDEO_PROTOCOLS, protocols.MSRVTT_1KA, spec("msrvtt", "1k-A", 6, 6))
    monkeypatch.setitem(protocols.VIDEO_PROTOCOLS, protocols.MSRVTT_FULL, spec("msrvtt", "test", 6, 12))


def write_videos(folder, missing=()):
    """Files called as MSR-VTT's; what is in them is told by their content, not their name."""
    folder.mkdir()
    for i in set(range(7020, 7026)) - set(missing):
        (folder / f"video{i}.mp4").write_bytes(moving(COLORS[i % 12], 4))
    return folder


def write_json(path, sentences=2, split="test"):
    videos = [{"video_id": f"video{i}", "split": split if i >= 7020 else "train"} for i in range(7018, 7026)]
    captions = [
        {"video_id": video["video_id"], "sen_id": n, "caption": f"a {COLORS[n % 12]} square"}
        for n, video in enumerate(videos * sentences)
    ]
    path.write_text(json.dumps({"videos": videos, "sentences": captions}))
    return path


def test_1ka_runs_from_file_to_figures(world, few, tmp_path):
    rows = [f"ret{i},msr{i},video{i},a {COLORS[i % 12]} square" for i in range(7020, 7026)]
    (tmp_path / "test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n")
    videos, output = write_videos(tmp_path / "videos", missing=[7022]), tmp_path / "results.json"
    arguments = ("evaluate", world.model, tmp_path / "test.csv", "--protocol", "msrvtt-1k-a", "--output", output)
    succeed(*arguments, "--image-root", videos, "--num-frames", 4)
    report = json.loads(output.read_text())
    assert (report["text_to_image"]["queries"], report["text_to_image"]["gallery"]) == (5, 5)
    assert report["data"]["protocol"] == "msrvtt-1k-a"
    assert report["data"]["num_frames"] == 4
    assert "video7022.mp4: no such file" in report["data"]["left_out"][0]
    checksum = report["data"]["id_checksum"]
    succeed(*arguments, "--image-root", videos, "--id-checksum", checksum)
    assert "have the checksum" in error_of(call(*arguments, "--image-root", videos, "--id-checksum", "0"))
    assert "set --image-root" in error_of(call(*arguments))


def test_the_full_split_has_many_sentences_a_video(world, few, encoder, tmp_path):
    videos = write_videos(tmp_path / "videos")
    loaded = protocols.load_protocol("msrvtt-full", write_json(tmp_path / "MSRVTT_data.json"), videos)
    assert (len(loaded.pairs.table), len(loaded.pairs)) == (6, 12)
    metrics = evaluate_encoder(encoder, loaded.pairs).metrics()
    assert (metrics["text_to_image"]["queries"], metrics["text_to_image"]["gallery"]) == (12, 6)
    assert (metrics["image_to_text"]["queries"], metrics["image_to_text"]["gallery"]) == (6, 12)


def test_errors_of_the_full_split(few, tmp_path):
    videos, path = write_videos(tmp_path / "videos"), tmp_path / "data.json"
    with pytest.raises(
        ValueError, match="split 'test' has 6 videos and 18 sentences, but the published one has 6 and 12"
    ):
        protocols.load_protocol("msrvtt-full", write_json(path, 3), videos)
    with pytest.raises(ValueError, match="split 'test' has 0 videos"):
        protocols.load_protocol("msrvtt-full", write_json(path, split="val"), videos)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        protocols.load_protocol("msrvtt-full", write_json(path), tmp_path / "none")
    path.write_text(json.dumps({"videos": [{"video_id": "video1"}], "sentences": []}))
    with pytest.raises(ValueError, match=r"videos\[0\] has no 'split'"):
        protocols.load_protocol("msrvtt-full", path, videos)
    path.write_text(json.dumps({"videos": []}))
    with pytest.raises(ValueError, match="the list 'sentences' of MSRVTT_data"):
        protocols.load_protocol("msrvtt-full", path, videos)
