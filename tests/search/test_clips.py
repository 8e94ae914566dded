"""Clips in an index: encoded by a few frames, found like images, each with its best moment."""

import json
import sqlite3
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_cots import ImageIndex, RerankedIndex, load_encoder
from hf_cots.data.clips import read_clip
from hf_cots.data.images import read_image
from hf_cots.models.video_frames import VideoFrames
from hf_cots.search import encoders, reading, update
from hf_cots.search.clips import ClipFrames, is_clip
from hf_cots.search.encoders import encode_clips, frames_per_clip
from hf_cots.search.fingerprint import describe_model, hash_json
from hf_cots.search.loading import load_reranker
from hf_cots.search.rerank import Reranker
from hf_cots.search.torch_encoders import DualEncoder
from hf_cots.search.vectors import l2_normalize
from tests.support.cli import call, error_of, succeed
from tests.support.clip import make_clip
from tests.support.clip_files import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    make_older,
    scenes,
    write_animation,
    write_film,
    write_mixed_folder,
)
from tests.support.embeddings import assert_close
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.simla_world import simla_folder
from tests.support.worlds import draw, encoded, noise, write_json_lines


CLIPS = {"moving.webp", "moving.gif", "film.mp4"}


@pytest.fixture
def encoder():
    return PixelEncoder()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write_mixed_folder(tmp_path_factory.mktemp("clips") / "mixed")


def query(color):
    """An image of one color, as a query."""
    return Image.new("RGB", (8, 8), color)


def moments(matches):
    return {match.path.name: match.moment for match in matches}


# ---------------------------------------------------------------------- what is found


def test_an_index_in_memory_and_one_on_disk_find_images_and_clips_alike(encoder, mixed, tmp_path):
    disk = ImageIndex.build(encoder, mixed, tmp_path / "index")
    assert disk.summary.counts() | {"encoded": 0} == {
        "added": 6,
        "changed": 0,
        "moved": 0,
        "deleted": 0,
        "encoded": 0,
        "unchanged": 0,
        "broken": 0,
    }
    memory = ImageIndex(encoder, disk.paths)
    assert_close(memory.embeds, disk.embeds, rtol=0, atol=0)
    for color in (RED, BLUE, GREEN):
        found, expected = disk.search(query(color), 9), memory.search(query(color), 9)
        assert {match.path for match in found} == {match.path for match in expected}
        assert moments(found) == moments(expected)
        assert {name for name, moment in moments(found).items() if moment is not None} == CLIPS
    assert disk.count_clips() == 3
    assert (disk.meta["clips"], disk.meta["num_frames"]) == ("3", "8")


def test_the_moment_is_that_of_the_most_similar_frame(encoder, mixed, tmp_path):
    """Against each frame on its own."""
    index = ImageIndex.build(encoder, mixed, tmp_path / "index")
    for color in (RED, GREEN, BLUE, WHITE):
        for match in index.search(query(color), 9):
            if match.path.name in CLIPS:
                clip = read_clip(match.path, 8)
                vector = encoder.encode_images([query(color)])[0]
                scores = encoder.encode_images(clip.images) @ vector
                best = clip.frame_index.index(int(scores.argmax()))
                assert match.moment == clip.times[best]
                assert match.duration == clip.duration
                assert match.times == tuple(sorted({clip.times[clip.frame_index.index(i)] for i in clip.frame_index}))
                index.read_image(match.path, match.moment)
    film = {match.path.name: match for match in index.search(query(BLUE), 9)}["film.mp4"]
    assert 1.5 <= film.moment < 2
    assert np.abs(np.asarray(index.read_image(film.path, film.moment)).mean(axis=(0, 1)) - BLUE).max() < 12


def test_a_clip_is_the_normalized_mean_of_its_sampled_frames(encoder, mixed, tmp_path):
    """Of a model that does not pool frames itself, and frames that are equal count as often as they are sampled."""
    write_animation(tmp_path / "clips" / "x.gif", (RED, RED, RED, BLUE))
    index = ImageIndex.build(encoder, tmp_path / "clips", tmp_path / "index")
    assert encoder.encoded == 2  # red and blue
    red, blue = encoder.encode_images(scenes([RED, BLUE]))
    expected = l2_normalize(6 * red + 2 * blue)
    assert_close(index.embeds[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_cots_pools_frames_by_itself(world, tmp_path, pooling):
    encoder = load_encoder(str(world.model))
    if pooling == "attention":
        fields = encoder.model.config.to_dict() | {"frame_pooling": "attention", "num_frames": 6}
        model = type(encoder.model)(type(encoder.model.config)(**fields)).eval()
        model.load_state_dict(encoder.model.state_dict(), strict=False)
        torch.nn.init.normal_(model.frame_pooler.output.weight)
        encoder = DualEncoder(model, encoder.processor)
    frames = [
        draw(color, shape, "left") for color in ("red", "red", "green", "black") for shape in ("square", "circle")
    ]
    for number in range(3):
        clip = frames[number : number + 5]
        (tmp_path / "clips").mkdir(exist_ok=True)
        clip[0].save(tmp_path / "clips" / f"{number}.gif", save_all=True, append_images=clip[1:], duration=100)
    write_film(tmp_path / "clips" / "film.mp4", (RED, BLUE))
    index = ImageIndex.build(encoder, tmp_path / "clips", tmp_path / "index", batch_size=7)
    clips = [read_clip(path, frames_per_clip(encoder)) for path in index.paths]
    assert frames_per_clip(encoder) == (8 if pooling == "mean" else 6)
    inputs = encoder.processor(videos=clips, num_frames=frames_per_clip(encoder), return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(encoder.model.get_video_features(**inputs).pooler_output, dim=1)
    assert_close(index.embeds, expected, rtol=0, atol=1e-5)
    assert_close(encoder.encode_videos(clips), expected, rtol=0, atol=1e-5)
    vector = encoder.encode_texts(["a red circle"])[0]
    for match, clip in ((match, clips[index.paths.index(match.path)]) for match in index.search("a red circle", 9)):
        scores = encoder.encode_frames(clip) @ vector
        at = {clip.times[clip.frame_index.index(i)]: float(score) for i, score in enumerate(scores)}
        assert at[match.moment] == pytest.approx(max(at.values()), abs=1e-3)  # kept in float16


def test_clips_of_several_lengths_are_encoded_together(world):
    encoder = load_encoder(str(world.model))
    images = [draw(color, "circle", "top") for color in ("red", "green", "black")]
    clips = [
        VideoFrames(images[:1], [0, 0], [0.5, 1.5], 2.0),
        VideoFrames(images, [0, 1, 2, 2, 1], [0.1, 0.2, 0.3, 0.4, 0.5], 1.0),
    ]
    one_by_one = np.concatenate([encode_clips(encoder, [clip]) for clip in clips])
    assert_close(encode_clips(encoder, clips), one_by_one, rtol=0, atol=1e-6)
    assert_close(one_by_one[0], encoder.encode_images(images[:1])[0], rtol=0, atol=1e-6)
    assert encode_clips(encoder, []).shape == (0, encoder.dim)
    with pytest.raises(ValueError, match="batch_size"):
        encode_clips(encoder, clips, batch_size=0)


def test_other_models_take_the_mean_of_the_embeddings(tmp_path):
    make_clip(tmp_path / "model")
    encoder = load_encoder(str(tmp_path / "model"))
    clip = VideoFrames([noise(seed=1), noise(seed=2)], [0, 1, 1], [0.1, 0.2, 0.3], 0.4)
    one, other = encoder.encode_images(clip.images)
    expected = l2_normalize(one + 2 * other)
    assert_close(encoder.encode_videos([clip])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["path", "bytes", "frames"])
def test_a_clip_is_a_query(encoder, mixed, tmp_path, kind):
    index = ImageIndex.build(encoder, mixed, tmp_path / "index")
    for name in CLIPS:
        (path,) = mixed.rglob(name)
        asked = {"path": path, "bytes": path.read_bytes(), "frames": read_clip(path, 8)}[kind]
        best = index.search(asked, 1)[0]
        assert (best.path, best.score) == (path, pytest.approx(1, abs=1e-6))


def test_what_is_a_clip_is_told_by_content(tmp_path):
    write_animation(tmp_path / "a.gif", (RED, BLUE))
    write_animation(tmp_path / "b.webp", (RED, BLUE))
    noise().save(tmp_path / "c.gif")
    noise().save(tmp_path / "d.webp")
    (tmp_path / "e.png").write_bytes((tmp_path / "a.gif").read_bytes())
    write_film(tmp_path / "f.mp4", (RED,))
    (tmp_path / "g.gif").write_bytes(b"no image")
    found = {path.name for path in tmp_path.iterdir() if is_clip(path)}
    assert found == {"a.gif", "b.webp", "f.mp4"}
    by_bytes = {path.name for path in tmp_path.iterdir() if is_clip(path.read_bytes(), path.name)}
    assert by_bytes == found
    assert is_clip((tmp_path / "f.mp4").read_bytes())
    assert not is_clip(encoded(noise(), "PNG"))
    assert not is_clip(b"\0\0\0\x20ftypavif" + bytes(20))  # as AVIF begins, which Pillow writes since 11.3


# ---------------------------------------------------------------------- up to date


def test_clips_are_brought_up_to_date_as_images_are(encoder, tmp_path, monkeypatch):
    folder = write_mixed_folder(tmp_path / "mixed")
    index = ImageIndex.build(encoder, folder, tmp_path / "index", batch_size=4)
    before = {match.path.name: (match.score, match.moment) for match in index.search(query(RED), 9)}
    monkeypatch.setattr(reading, "read_media", None)  # nothing is read again
    assert index.update().counts()["unchanged"] == 6
    (folder / "film.mp4").rename(folder / "renamed.mp4")
    (folder / "sub" / "moving.gif").rename(folder / "moved.gif")
    (folder / "copy.mp4").write_bytes((folder / "renamed.mp4").read_bytes())
    assert index.update().counts() | {"broken": 0} == {
        "added": 1,
        "changed": 0,
        "moved": 2,
        "deleted": 0,
        "encoded": 0,
        "unchanged": 4,
        "broken": 0,
    }
    after = {match.path.name: (match.score, match.moment) for match in index.search(query(RED), 9)}
    assert after["renamed.mp4"] == after["copy.mp4"] == before["film.mp4"]
    assert after["moved.gif"] == before["moving.gif"]
    assert index.count_clips() == 4
    monkeypatch.undo()
    write_film(folder / "renamed.mp4", (WHITE, BLUE, RED), age=1800)
    (folder / "copy.mp4").unlink()
    (folder / "moving.webp").unlink()
    counts = index.update().counts()
    assert {name: count for name, count in counts.items() if count} == {
        "changed": 1,
        "deleted": 2,
        "encoded": 1,
        "unchanged": 4,
    }
    with sqlite3.connect(tmp_path / "index" / "index.sqlite") as database:
        assert database.execute("SELECT count(*) FROM clips").fetchone()[0] == index.count_clips() == 2
    fresh = ImageIndex.build(encoder, folder, tmp_path / "fresh")
    assert [(m.path, m.moment) for m in index.search(query(RED))] == [
        (m.path, m.moment) for m in fresh.search(query(RED))
    ]


def test_moments_survive_the_removal_of_holes(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "COMPACT_HOLES", 1)
    folder = write_mixed_folder(tmp_path / "mixed")
    index = ImageIndex.build(encoder, folder, tmp_path / "index")
    before = moments(index.search(query(BLUE), 9))
    (folder / "a.png").unlink()
    (folder / "sub" / "b.jpg").unlink()
    index.update()
    assert len(index) == 4
    assert index.meta["file"] == "vectors-1.bin"
    assert moments(index.search(query(BLUE), 9)) == {name: at for name, at in before.items() if name[0] not in "ab"}


def test_broken_clips_are_named_and_the_others_used(encoder, tmp_path):
    folder = write_mixed_folder(tmp_path / "mixed")
    (folder / "cut.mp4").write_bytes((folder / "film.mp4").read_bytes()[:300])
    (folder / "empty.webm").write_bytes(b"")
    (folder / "gone.mkv").symlink_to("nowhere")
    index = ImageIndex.build(encoder, folder, tmp_path / "index")
    assert len(index) == 6
    assert {broken.name.split("/")[-1] for broken in index.broken} == {"cut.mp4", "empty.webm", "gone.mkv"}
    assert all("\n" not in broken.reason and broken.reason for broken in index.broken)
    memory = ImageIndex(encoder, sorted(folder.glob("*.*")))
    assert {broken.name for broken in memory.broken} == {broken.name for broken in index.broken}


def test_a_folder_of_clips_alone(encoder, tmp_path):
    write_film(tmp_path / "clips" / "a.mp4", (RED, BLUE))
    index = ImageIndex.build(encoder, tmp_path / "clips", tmp_path / "index")
    assert len(index) == index.count_clips() == 1
    assert len(ImageIndex(encoder, [tmp_path / "clips" / "a.mp4"])) == 1


def test_columns_of_clips(encoder, tmp_path):
    write_film(tmp_path / "clips" / "red" / "a.mp4", (RED, BLUE))
    (tmp_path / "clips" / "red" / "a.txt").write_text("a caption")
    write_animation(tmp_path / "clips" / "green" / "b.gif", (GREEN, BLUE))
    index = ImageIndex.build(encoder, tmp_path / "clips", tmp_path / "index")
    assert {match.columns["label"]: match.columns["txt"] for match in index.search("x")} == {
        "red": "a caption",
        "green": None,
    }
    assert [match.path.name for match in index.search("x", where="label = 'red'")] == ["a.mp4"]
    by_words = index.search("caption", hybrid=["txt"])
    assert by_words[0].path.name == "a.mp4"
    assert by_words[0].moment is not None


def test_clips_that_a_table_names_or_holds(encoder, mixed, tmp_path):
    rows = [{"image": name, "caption": name} for name in ("film.mp4", "moving.webp", "a.png")]
    write_json_lines(mixed / "table.jsonl", rows)
    named = ImageIndex.build(encoder, str(mixed / "table.jsonl"), tmp_path / "named")
    (mixed / "table.jsonl").unlink()
    assert named.count_clips() == 2
    held = [{"image": {"bytes": (mixed / name).read_bytes(), "path": None}} for name in ("film.mp4", "moving.webp")]
    datasets.Dataset.from_list(held).to_parquet(tmp_path / "held.parquet")
    inside = ImageIndex.build(encoder, str(tmp_path / "held.parquet"), tmp_path / "inside")
    assert inside.count_clips() == 2
    by_score = {round(match.score, 5): match for match in inside.search(query(RED))}
    for match in named.search(query(RED)):
        if match.moment is not None:
            same = by_score[round(match.score, 5)]
            assert same.moment == match.moment
            assert inside.read_image(same.path, same.moment) == named.read_image(match.path, match.moment)


def test_a_film_that_changes_while_it_is_read_is_not_kept(encoder, tmp_path, monkeypatch):
    path = write_film(tmp_path / "clips" / "a.mp4", (RED, BLUE))
    write_image(tmp_path / "clips" / "b.png", 1)
    read = reading.read_media

    def change(source, *args):
        media = read(source, *args)
        if source == path:
            write_film(path, (GREEN, GREEN), age=10)
        return media

    monkeypatch.setattr(reading, "read_media", change)
    index = ImageIndex.build(encoder, tmp_path / "clips", tmp_path / "index")
    assert [broken.reason for broken in index.broken] == ["it changed while it was being read"]
    monkeypatch.undo()
    assert index.update().counts()["broken"] == 0
    assert index.count_clips() == 1


def test_without_pyav_films_are_told_of_and_read_when_it_is_there(encoder, mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    index = ImageIndex.build(encoder, mixed, tmp_path / "index")
    assert (len(index), index.count_clips()) == (5, 2)
    assert "PyAV" in index.broken[0].reason
    monkeypatch.undo()
    index.update()
    assert (len(index), index.count_clips()) == (6, 3)


# ---------------------------------------------------------------------- indexes of before, and of images only


def test_an_index_of_images_is_what_it_was(encoder, tmp_path):
    index = ImageIndex.build(encoder, write_folder(tmp_path / "photos", 5), tmp_path / "index")
    assert index.meta["format"] == "1"
    assert not {"clips", "num_frames"} & index.meta.keys()
    with sqlite3.connect(tmp_path / "index" / "index.sqlite") as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"meta", "batches", "contents", "images", "columns"}
    assert all(match.moment is None and match.times is None for match in index.search("a"))


def test_an_index_of_before_takes_clips_and_keeps_what_it_has(encoder, tmp_path):
    """An animated GIF of which it has the first frame stays so."""
    folder = write_folder(tmp_path / "photos", 3)
    write_animation(folder / "old.gif", (RED, BLUE))
    with pytest.MonkeyPatch.context() as before:
        before.setattr(reading, "read_media", lambda data, _, name: read_image(data, name))
        ImageIndex.build(encoder, folder, tmp_path / "index")
    write_animation(folder / "new.gif", (GREEN, BLUE))
    write_film(folder / "film.mp4", (GREEN, BLUE))
    index = ImageIndex.build(encoder, folder, tmp_path / "index")
    assert index.summary.added == 2
    found = moments(index.search(query(BLUE), 9))
    assert {name for name, moment in found.items() if moment is not None} == {"new.gif", "film.mp4"}
    assert index.meta["format"] == "2"  # which versions of before refuse, since they would drop the clips


def test_config_fields_of_clips_make_no_other_model(world):
    encoder = load_encoder(str(world.model))
    fields = encoder.model.config.to_dict()
    parts = describe_model(encoder)
    before = {name: value for name, value in fields.items() if name not in ("frame_pooling", "num_frames")}
    assert parts["config"] == hash_json(before)
    encoder.model.config.num_frames = 4
    assert describe_model(encoder)["config"] != parts["config"]


# ---------------------------------------------------------------------- memory


def test_few_frames_wait_for_the_model(encoder, tmp_path, monkeypatch):
    """As many as a batch takes, and no more, though images would be read a batch ahead."""
    for i in range(40):
        write_animation(tmp_path / "clips" / f"{i:02d}.gif", [(i, 6 * j, 0) for j in range(8)], 0.1)
    waiting, most = [0], [0]
    prepare_steps, count = encoders.media_steps, reading.ImageReader.load

    def load(self, index):
        loaded = count(self, index)
        waiting[0] += 8
        most[0] = max(most[0], waiting[0])
        return loaded

    def steps(encoder, batch_size):
        prepare, embed = prepare_steps(encoder, batch_size)

        def counted(prepared):
            assert len(prepared) <= 2  # of 8 frames each
            waiting[0] -= 8 * len(prepared)
            return embed(prepared)

        return prepare, counted

    monkeypatch.setattr(reading.ImageReader, "load", load)
    monkeypatch.setattr(update, "media_steps", steps)
    ImageIndex.build(encoder, tmp_path / "clips", tmp_path / "index", batch_size=16)
    assert waiting == [0]
    assert most[0] <= 16 + 16 + 8


def test_find_moment_takes_the_first_of_equal_frames():
    frames = ClipFrames((0.5, 1.5, 2.5), 3.0, np.array([[0, 1], [1, 0], [1, 0]], np.float16))
    assert frames.find_moment(np.array([1, 0], np.float32)) == 1.5


# ---------------------------------------------------------------------- commands, and a second stage


def test_commands(world, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    frames = [draw(color, "circle", "left") for color in ("red", "green", "black")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=500)
    make_older(folder / "moving.gif", 100)
    write_film(folder / "film.mp4", (RED, BLUE))
    printed = succeed("index", world.model, folder, "--to", tmp_path / "index").stdout
    assert f"2 clips in {tmp_path / 'index'}: 2 added" in printed
    draw("red", "square", "top").save(folder / "image.png")
    make_older(folder / "image.png", 100)
    printed = succeed("index", world.model, folder, "--to", tmp_path / "index").stdout
    assert f"3 images and clips in {tmp_path / 'index'}: 1 added" in printed
    index = ImageIndex.open(tmp_path / "index")
    expected = index.search("a red circle", 3)
    lines = succeed(
        "search", tmp_path / "index", "a red circle", "--sheet", tmp_path / "sheet.png"
    ).stdout.splitlines()
    for line, match in zip(lines, expected):
        at = "" if match.moment is None else f"  at {match.moment:.2f} s"
        assert line == f"{match.score:.4f}  {match.path}{at}"
    assert Image.open(tmp_path / "sheet.png").width > 0
    rows = json.loads(succeed("search", tmp_path / "index", "a red circle", "--json").stdout)
    assert [(row.get("moment"), row.get("duration")) for row in rows] == [(m.moment, m.duration) for m in expected]
    assert [row.keys() & {"moment"} for row in rows].count(set()) == 1
    by_clip = succeed("search", world.model, folder, "--image", folder / "film.mp4", "-k", "1").stdout
    assert by_clip.startswith("1.0000")
    assert "film.mp4  at " in by_clip
    missing = error_of(call("search", tmp_path / "index", "--image", tmp_path / "none.mp4"))
    assert "none.mp4: no such file" in missing


def test_a_re_ranker_sees_the_frame_of_the_moment(world, tmp_path):
    """As if that frame were an image; its features are kept for the bytes and the moment."""
    simla = str(simla_folder(world))
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "black")):
        frames = [draw(color, shape, "left") for shape in ("circle", "square")]
        frames[0].save(folder / f"{number}.webp", save_all=True, append_images=frames[1:], duration=500, lossless=True)
    write_film(folder / "film.mp4", (RED, BLUE))
    index = ImageIndex.build(str(world.model), folder, tmp_path / "index")
    reranked = RerankedIndex.from_index(index, simla)
    text = "a red circle"
    found = reranked.search(text, 4)
    images = [index.read_image(match.path, match.moment) for match in found]
    reranker = Reranker(*load_reranker(simla), images.__getitem__)
    expected = reranker.score([text], np.zeros(4, dtype=int), np.arange(4))
    assert [match.score for match in found] == pytest.approx(expected.tolist(), abs=1e-5)
    assert sorted(moments(found)) == sorted(moments(index.search(text)))
    assert all(match.moment is not None for match in found)
    assert reranked.reranker.cost.images == 4
    assert reranked.search(text, 4) == found
    assert reranked.reranker.cost.images == 4
    memory = RerankedIndex.from_index(ImageIndex.from_folder(str(world.model), folder), simla)
    assert moments(memory.search(text, 4)) == moments(found)
