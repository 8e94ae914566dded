"""Clips in place of images: which files are some, and what is said of those that cannot be read."""

import json

import pytest

from hf_cots.data.clips import is_clip, read_clip
from hf_cots.data.images import BrokenImage, BrokenImageReport
from tests.support.clips import assert_same_images, make_animation, make_film, make_sound, picture


def test_what_is_a_clip(tmp_path):
    for name in ("a.gif", "a.webp"):
        make_animation(tmp_path / name)
        picture(0).save(tmp_path / f"still-{name}")
        assert is_clip(tmp_path / name)
        assert not is_clip(str(tmp_path / f"still-{name}"))
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    assert not is_clip(tmp_path / "broken.gif")
    for name in ("a.mp4", "A.MP4", "a.webm", "a.mkv", "a.mov", "a.avi", "a.m4v"):
        assert is_clip(name), name
    for name in ("a.png", "a.jpg", "a.txt", "mp4", "missing.gif"):
        assert not is_clip(name), name


def test_a_clip_is_read_by_path_and_bytes(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    clip = read_clip(path, 4)
    assert len(clip.frame_index) == 4
    assert_same_images(read_clip(path.read_bytes(), 4), clip.frames)
    assert_same_images(read_clip(str(path), times=clip.times), clip.frames)


def test_broken_clips_are_named_once(tmp_path):
    whole, sound = make_film(tmp_path / "a.mkv"), make_sound(tmp_path / "sound.m4a")
    content = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[:-100])
    make_animation(tmp_path / "strip.gif", size=(1000, 9))
    for name, reason in {
        "cut.mkv": "truncated",
        "sound.m4a": "it has sound only",
        "strip.gif": "an image of 1000 x 9 pixels is too small",
        "missing.mp4": "no such file",
    }.items():
        with pytest.raises(BrokenImage) as broken:
            read_clip(tmp_path / name)
        assert broken.value.reason.startswith(reason), name
        assert str(broken.value).count(name) == 1
    with pytest.raises(BrokenImage, match=r"^row 7: truncated"):
        read_clip(content[:-100], name="row 7")
    with pytest.raises(BrokenImage, match=r"^clip without a name: it has sound only$"):
        read_clip(sound.read_bytes())


def test_a_clip_that_never_changes_is_reported(tmp_path):
    picture(0).save(tmp_path / "still.webp")
    report = BrokenImageReport(tmp_path / "report.jsonl")
    for path in (tmp_path / "still.webp", make_film(tmp_path / "a.mp4")):
        read_clip(path, report=report)
        read_clip(path, 1, report=report)
    (line,) = (tmp_path / "report.jsonl").read_text().splitlines()
    name = str(tmp_path / "still.webp")
    assert json.loads(line) == {"image": name, "used": True, "reason": "all of its 8 frames are equal"}
