"""Clips of every kind, made by the tests themselves, and the slow way to read them: decoding everything."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hf_cots.models.video_frames import VideoFrames


SIZE = (64, 48)


def picture(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """The frame of a number, different from its neighbors: a shade of red, a green bar that wanders."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = number * 37 % 256
    pixels[:, number * 5 % (width - 8) :][:, :8, 1] = 255
    return Image.fromarray(pixels)


def make_film(
    target: Path | io.BytesIO,
    starts: Sequence[float] = tuple(i / 10 for i in range(30)),
    codec: str = "libx264",
    pictures: Sequence[Image.Image] | None = None,
    key_frames: int = 10,
    container: str | None = None,
    rotation: int | None = None,
    **options: str,
) -> Path | io.BytesIO:
    """Write a video file whose frames begin at these seconds.

    Args:
        key_frames: so many frames from one key frame to the next.
        container: its format, if the name does not tell.
        options: of the container.
    """
    pictures = [picture(i) for i in range(len(starts))] if pictures is None else pictures
    with av.open(target if isinstance(target, io.BytesIO) else str(target), "w", container, options=options) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height = pictures[0].size if pictures else SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", key_frames
        if codec != "mpeg4":
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip(f"PyAV {av.__version__} writes no rotated films")
            stream.set_display_rotation(rotation)
        file.start_encoding()
        for start, image in zip(starts, pictures, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = round(1000 * start), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return target


def make_sound(path: Path) -> Path:
    """Write half a second of silence."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        file.mux(stream.encode(silence))
        file.mux(stream.encode())
    return path


def make_animation(
    path: Path, durations: Sequence[int] = (100,) * 12, size: tuple[int, int] = SIZE, **options
) -> Path:
    """Write an animated image whose frames last so many milliseconds."""
    first, *rest = [picture(i, size) for i in range(len(durations))]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=list(durations), **lossless, **options)
    return path


def decode_everything(path: Path | bytes) -> tuple[list[Fraction], list[Image.Image]]:
    """When each frame of a video begins, and all of them, in the order in which they are shown."""
    with av.open(io.BytesIO(path) if isinstance(path, bytes) else str(path)) as file:
        stream = file.streams.video[0]
        frames = sorted(file.decode(stream), key=lambda frame: frame.pts)
        begin = stream.start_time or 0
        return [(frame.pts - begin) * stream.time_base for frame in frames], [frame.to_image() for frame in frames]


def slow_frames(path: Path | bytes, times: Sequence[Fraction]) -> list[Image.Image]:
    """The frame of a video that is shown at each time: the last that has begun."""
    starts, images = decode_everything(path)
    return [images[max([i for i, start in enumerate(starts) if start <= time], default=0)] for time in times]


def middles(duration: float, count: int) -> list[Fraction]:
    """The middles of so many equal parts."""
    return [(2 * i + 1) * Fraction(duration).limit_denominator(10**6) / (2 * count) for i in range(count)]


def assert_same_images(found: Sequence[Image.Image] | VideoFrames, expected: Sequence[Image.Image]) -> None:
    found = found.frames if isinstance(found, VideoFrames) else found
    assert len(found) == len(expected)
    for i, (image, other) in enumerate(zip(found, expected, strict=True)):
        assert np.array_equal(np.asarray(image), np.asarray(other)), f"frame {i}"
