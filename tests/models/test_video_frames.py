"""Frames of clips at given times: the same as of decoding everything, and what is said of clips that are none."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from hf_cots.models import VideoFrames, read_frames
from hf_cots.models.video_frames import _VideoFile
from tests.support import clips
from tests.support.clips import assert_same_images, make_animation, make_film, middles, picture, slow_frames


UNEVEN = [0, 0.05, 0.1, 0.4, 1.2, 1.25, 1.3, 2.9, 3.0, 3.7, 3.75, 3.8]


# ---------------------------------------------------------------------- films


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    made = {
        "mp4": make_film(folder / "h264.mp4"),
        "faststart": make_film(folder / "faststart.mp4", movflags="faststart"),
        "fragments": make_film(folder / "fragments.mp4", movflags="frag_keyframe+empty_moov"),
        "mpeg4": make_film(folder / "mpeg4.mp4", codec="mpeg4"),
        "mov": make_film(folder / "one-key-frame.mov", key_frames=1000),
        "mkv": make_film(folder / "h264.mkv"),
        "webm": make_film(folder / "vp8.webm", codec="libvpx"),
        "live": make_film(folder / "live.webm", codec="libvpx", live="1"),
        "avi": make_film(folder / "mpeg4.avi", codec="mpeg4"),
        "uneven": make_film(folder / "uneven.mp4", UNEVEN, key_frames=4),
        "uneven mkv": make_film(folder / "uneven.mkv", UNEVEN, key_frames=4),
        "late": make_film(folder / "late.mkv", [5 + i / 10 for i in range(20)]),
        "one frame": make_film(folder / "one.mp4", [0]),
    }
    return made  # type: ignore[return-value]


KINDS = ("mp4", "faststart", "fragments", "mpeg4", "mov", "mkv", "webm", "live", "avi", "uneven", "uneven mkv")
KINDS += ("late", "one frame")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5, 8])
def test_uniform_frames_are_those_of_decoding_everything(films, kind, count):
    clip = read_frames(films[kind], count)
    assert clip.times == pytest.approx([(i + 0.5) * clip.duration / count for i in range(count)])
    assert_same_images(clip, slow_frames(films[kind], middles(clip.duration, count)))


@pytest.mark.parametrize("kind", ["mp4", "live", "uneven mkv", "avi"])
def test_given_times_in_any_order(films, kind):
    duration = read_frames(films[kind], 1).duration
    times = [0.3, 0.0, 1.25, 0.3, 2.0, duration, 0.29]
    clip = read_frames(films[kind], times=times)
    assert clip.times == pytest.approx(times)
    assert clip.frame_index[0] == clip.frame_index[3]
    assert_same_images(clip, slow_frames(films[kind], [Fraction(str(time)) for time in clip.times]))


def test_durations(films):
    for kind in ("mp4", "mkv", "webm", "avi", "late"):
        assert read_frames(films[kind], 1).duration == pytest.approx(2 if kind == "late" else 3, abs=0.11), kind
    with av.open(str(films["live"])) as file:
        assert not file.duration, "the file says nothing, and is read to its end for it"
    assert read_frames(films["live"], 1).duration == pytest.approx(3, abs=0.11)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotated_films_are_upright(tmp_path, rotation):
    """A recorder turns the picture by writing a matrix beside it; the pixels are as they came."""
    lying = make_film(tmp_path / "lying.mp4")
    rotated = make_film(tmp_path / "rotated.mp4", rotation=rotation)
    expected = [image.rotate(rotation, expand=True) for image in read_frames(lying, 3).frames]
    assert_same_images(read_frames(rotated, 3), expected)


def test_bytes_and_names(films, tmp_path):
    expected = read_frames(films["mp4"]).frames
    assert_same_images(read_frames(films["mp4"].read_bytes()), expected)
    assert_same_images(read_frames(str(films["mp4"])), expected)
    for name in ("concat:a|b.mp4", "film %03d.mp4", "http: no suffix"):
        (tmp_path / name).write_bytes(films["mp4"].read_bytes())
        assert_same_images(read_frames(tmp_path / name), expected)


def test_equal_frames_are_one_image(tmp_path):
    still = [picture(0)] * 30
    clip = read_frames(make_film(tmp_path / "still.mkv", pictures=still, codec="ffv1", key_frames=1))
    assert (len(clip.images), clip.frame_index) == (1, [0] * 8)
    two = read_frames([picture(0), picture(1), picture(0), picture(1)], 4)
    assert (len(two.images), two.frame_index) == (2, [0, 1, 0, 1])


@pytest.fixture(scope="module")
def hour(tmp_path_factory) -> Path:
    """A clip of an hour, a frame every eight seconds."""
    starts = range(0, 3600, 8)
    pictures = [picture(i % 50) for i in range(len(starts))]
    path = tmp_path_factory.mktemp("hour") / "hour.mp4"
    return make_film(path, starts, pictures=pictures, key_frames=12)  # type: ignore[return-value]


def test_of_an_hour_little_is_decoded(hour, monkeypatch):
    """At most the frames from one key frame to the next for each time, and so much memory."""
    read = []
    packets = _VideoFile._packets

    def counted(self, position):
        for packet in packets(self, position):
            read.append(packet.pts)
            yield packet

    monkeypatch.setattr(_VideoFile, "_packets", counted)
    clip = read_frames(hour)
    monkeypatch.undo()
    assert clip.duration == pytest.approx(3600, abs=8)
    assert len(read) < 8 * (12 + 2 + 4), "the length from one key frame to the next, reordering, finding it"
    assert_same_images(clip, slow_frames(hour, middles(clip.duration, 8)))


# ---------------------------------------------------------------------- animated and still images


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("durations", [(100,) * 12, (300, 20, 20, 500, 20, 40, 40, 60)], ids=["even", "uneven"])
def test_animations(tmp_path, suffix, durations):
    path = make_animation(tmp_path / f"clip{suffix}", durations)
    clip = read_frames(path)
    assert clip.duration == pytest.approx(sum(durations) / 1000)
    with Image.open(path) as opened:
        images = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
    starts = np.cumsum([0, *durations])[:-1]
    shown = [int(np.searchsorted(starts, 1000 * time, side="right")) - 1 for time in middles(clip.duration, 8)]
    assert_same_images(clip, [images[number] for number in shown])
    assert_same_images(read_frames(path.read_bytes()), clip.frames)
    assert_same_images(read_frames(path, times=[0.0, 0.35]), [images[0], images[3]])


def test_frames_that_are_too_short_last_as_in_browsers(tmp_path):
    clip = read_frames(make_animation(tmp_path / "fast.gif", (0, 10, 20, 0)))
    assert clip.duration == pytest.approx(0.1 + 0.1 + 0.02 + 0.1)


def test_disposal_and_transparency(tmp_path):
    """Frames that are parts, and are cleared before the next; transparency is white, as in images."""
    parts = [Image.new("RGBA", (20, 20)) for _ in range(3)]
    for i, part in enumerate(parts):
        part.paste((255, 0, 0, 255), (6 * i, 6 * i, 6 * i + 6, 6 * i + 6))
    parts[0].save(tmp_path / "a.gif", save_all=True, append_images=parts[1:], duration=100, disposal=2, transparency=0)
    for i, image in enumerate(read_frames(tmp_path / "a.gif", 3).frames):
        expected = Image.new("RGB", (20, 20), "white")
        expected.paste((255, 0, 0), (6 * i, 6 * i, 6 * i + 6, 6 * i + 6))
        assert np.array_equal(np.asarray(image), np.asarray(expected)), i


def test_a_still_image_is_a_clip_of_one_frame(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp", "a.gif"):
        picture(3).save(tmp_path / name)
        clip = read_frames(tmp_path / name)
        assert (len(clip.images), clip.frame_index, clip.times, clip.duration) == (1, [0] * 8, [0.0] * 8, 0.0)
        assert_same_images(clip.images, [Image.open(tmp_path / name).convert("RGB")])


def test_a_list_of_images():
    images = [picture(i) for i in range(5)]
    assert_same_images(read_frames(images, 5), images)
    assert_same_images(read_frames(images, 2), [images[1], images[3]])
    assert_same_images(read_frames(images[:1], 3), images[:1] * 3)
    assert_same_images(read_frames(images, times=[4.9, 0]), [images[4], images[0]])


# ---------------------------------------------------------------------- what is refused


def cut(path: Path, target: Path) -> Path:
    target.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    return target


@pytest.mark.parametrize("kind", ["mp4", "faststart", "mkv", "webm", "avi"])
def test_films_that_are_cut_off(films, tmp_path, kind):
    path = cut(films[kind], tmp_path / films[kind].name)
    with pytest.raises(ValueError, match=rf"{path.name}: truncated: only [\d,]+ of [\d,]+ bytes are there"):
        read_frames(path)


def test_fragments_that_are_cut_off_are_a_shorter_film(films, tmp_path):
    """A recording that was stopped is complete up to there: nothing in it says that more was to come."""
    path = cut(films["live"], tmp_path / "live.webm")
    clip = read_frames(path)
    assert 1 < clip.duration < 2.5
    assert_same_images(clip, slow_frames(path, middles(clip.duration, 8)))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_that_are_cut_off(tmp_path, suffix):
    path = cut(make_animation(tmp_path / f"whole{suffix}"), tmp_path / f"cut{suffix}")
    with pytest.raises(ValueError, match=f"cut{suffix}: "):
        read_frames(path)


def test_sound_only(tmp_path):
    with pytest.raises(ValueError, match=r"sound\.mp4: it has sound only"):
        read_frames(clips.make_sound(tmp_path / "sound.mp4"))


def test_no_frames(tmp_path):
    make_film(tmp_path / "empty.mp4", [], movflags="empty_moov+frag_keyframe")
    with pytest.raises(ValueError, match=r"empty\.mp4: it has no frames"):
        read_frames(tmp_path / "empty.mp4")
    with pytest.raises(ValueError, match="has no frames"):
        read_frames([])


def test_no_clips_at_all(tmp_path):
    for content in (b"", b"no clip", bytes(1000), b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"):
        (tmp_path / "none.mp4").write_bytes(content)
        with pytest.raises(ValueError, match=r"none\.mp4: neither an image nor a video file"):
            read_frames(tmp_path / "none.mp4")
    for path in (tmp_path / "missing.mp4", tmp_path, "https://example.org/a.mp4"):
        with pytest.raises(FileNotFoundError, match="no such clip"):
            read_frames(path)


def test_damage_in_the_middle(films, tmp_path):
    content = bytearray(films["mpeg4"].read_bytes())
    start = content.index(b"mdat") + 8
    content[start : start + 2000] = bytes(2000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.mp4: "):
        read_frames(tmp_path / "damaged.mp4")


def test_times_outside_of_the_clip(films):
    with pytest.raises(ValueError, match=r"h264\.mp4: time 4 s is outside the clip, which lasts 3\.\d+ s"):
        read_frames(films["mp4"], times=[0, 4])
    with pytest.raises(ValueError, match="time -1 s is outside"):
        read_frames([picture(0)], times=[-1])
    with pytest.raises(ValueError, match="times is empty"):
        read_frames([picture(0)], times=[])
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        read_frames(films["mp4"], 0)


def test_too_many_pixels(films, tmp_path, monkeypatch):
    animation = make_animation(tmp_path / "large.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"h264\.mp4: 64 x 48 pixels exceed the limit of 1000"):
        read_frames(films["mp4"])
    with pytest.raises(ValueError, match=r"large\.webp: .*exceeds limit"):
        read_frames(animation)


def test_without_pyav(films, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="reading video files needs PyAV: pip install av"):
        read_frames(films["mp4"])
    assert isinstance(read_frames(make_animation(tmp_path / "a.gif")), VideoFrames)


def test_reading_twice_gives_the_same(films):
    first, second = read_frames(films["uneven"]), read_frames(io.BytesIO(films["uneven"].read_bytes()).getvalue())
    assert (first.times, first.frame_index) == (second.times, second.frame_index)
    assert_same_images(first, second.frames)
