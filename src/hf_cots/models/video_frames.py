"""Frames of clips: N of them at given times, without decoding a whole file and in memory that does not grow with it.

Video files (mp4, webm, mkv, mov, avi) are read with PyAV, which is FFmpeg: it seeks to the last key frame before each
wanted time, and decodes from there. Animated images (gif, webp, png) are read with PIL, frame after frame.
"""

import bisect
import hashlib
import io
import itertools
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from .image_processing_cots import load_image, open_image, to_rgb


# What PyAV may take a file for: those that say where their key frames are. Playlists would open further files.
FORMATS = "mov,matroska,avi"
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")  # of PIL's formats with several frames; those of TIFF or MPO are pages
VIDEO_FORMATS = ("MPEG",)  # which PIL knows by name, and cannot read
SHORTEST = Fraction(11, 1000)  # seconds; a frame of an animation that is shorter lasts [`USUAL`], as in browsers
USUAL = Fraction(1, 10)
# How a picture must be turned, by the signs of the first four entries a, b, c, d of its display matrix.
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a clip at some times.

    Args:
        images: upright RGB images; equal frames are one image.
        frame_index: for each time, which of the images is shown then.
        times: in seconds from the first frame.
        duration: of the clip in seconds; 0 for a still image.
    """

    images: list[Image.Image]
    frame_index: list[int]
    times: list[float]
    duration: float

    @property
    def frames(self) -> list[Image.Image]:
        """One image for each time."""
        return [self.images[i] for i in self.frame_index]


def read_frames(
    source: str | Path | bytes | Sequence[Image.Image],
    num_frames: int = 8,
    times: Sequence[float] | None = None,
) -> VideoFrames:
    """Read the frames of a clip at `num_frames` times, or at the given ones.

    A frame is shown from its presentation time on until the next one's, the last until the end. The same file gives
    the same frames, those that decoding all of it would give.

    Args:
        source: path or bytes of a video file, of an animated image or of a still one; or images, of which each lasts a
            second. A path is never a URL.
        num_frames: times are the middles of so many equal parts of the clip.
        times: seconds from the first frame, in any order, in place of the middles.

    Raises:
        OSError: if there is no such file.
        ValueError: naming the clip, if it has no frames, is damaged or cut off before the last time, or if a time lies
            outside of it.
        ModuleNotFoundError: if it is a video file and PyAV is not installed.

    Example:

        >>> from PIL import Image
        >>> clip = read_frames([Image.new("RGB", (4, 4), color) for color in ("red", "red", "blue", "blue")], 3)
        >>> clip.times, clip.frame_index, len(clip.images)
        ([0.6666666666666666, 2.0, 3.3333333333333335], [0, 1, 1], 2)
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_file():
        raise FileNotFoundError(f"no such clip: {source}")
    wanted = _Times(num_frames, times)
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return _read_sequence(list(source), wanted)
    name = str(source) if isinstance(source, (str, os.PathLike)) else "clip without a name"
    with _named(name), warnings.catch_warnings():
        # PIL only warns of moderate decompression bombs; those would take gigabytes too.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        source = Path(source) if isinstance(source, (str, os.PathLike)) else bytes(source)
        try:
            with open_image(source) as opened:
                if opened.format in ANIMATIONS and getattr(opened, "is_animated", False):
                    return _read_animation(opened, wanted)
                if opened.format not in VIDEO_FORMATS:
                    still = Fraction(0)
                    return _collect([load_image(source)], wanted.within(still), still, lambda time: 0)
        except UnidentifiedImageError:
            pass
        return _read_video(source, wanted)


@dataclass(frozen=True)
class _Times:
    """Which times of a clip are asked for."""

    num_frames: int
    given: Sequence[float] | None

    def within(self, duration: Fraction) -> list[Fraction]:
        """The times in a clip of so many seconds, exactly: the middle of a part is often where a frame begins.

        Raises:
            ValueError: naming a time outside of the clip.
        """
        if self.given is None:
            return [(2 * i + 1) * duration / (2 * self.num_frames) for i in range(self.num_frames)]
        if not len(self.given):
            raise ValueError("times is empty: give at least one time")
        for time in self.given:
            if not 0 <= time <= duration:
                raise ValueError(f"time {time:g} s is outside the clip, which lasts {float(duration):.3f} s")
        return [Fraction(float(time)).limit_denominator(10**6) for time in self.given]  # 0.3 is meant as 3/10


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put a clip's name in front of whatever goes wrong with it."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, EOFError, ...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(reason if name in reason else f"{name}: {reason}") from None


def _collect(
    images: Any, times: list[Fraction], duration: Fraction, number_at: Callable[[Fraction], Any]
) -> VideoFrames:
    """Join the images of single frames, by number of frame, with the times at which they are shown; equal images are
    kept once.

    Args:
        images: list or dict.
        number_at: gives the number of the frame that is shown at a time.
    """
    kept: list[Image.Image] = []
    known: dict[Any, int] = {}
    frame_index = []
    for number in map(number_at, times):
        if number not in known:
            image = images[number]
            digest = (image.size, hashlib.blake2b(image.tobytes()).digest())
            if digest not in known:
                known[digest] = len(kept)
                kept.append(image)
            known[number] = known[digest]
        frame_index.append(known[number])
    return VideoFrames(kept, frame_index, [float(time) for time in times], float(duration))


# ---------------------------------------------------------------------- images


def _read_sequence(images: list[Any], wanted: _Times) -> VideoFrames:
    """The frames of a list of images, of which each lasts a second."""
    if not images:
        raise ValueError("the clip has no frames: give at least one image")
    duration = Fraction(len(images))
    times = wanted.within(duration)
    numbers = {time: min(int(time), len(images) - 1) for time in times}
    chosen = {number: load_image(images[number]) for number in set(numbers.values())}
    return _collect(chosen, times, duration, numbers.__getitem__)


def _read_animation(opened: Image.Image, wanted: _Times) -> VideoFrames:
    """The frames of an animated image. It must be decoded from its beginning; once if all its frames last equally
    long, as most do, twice if not."""
    count = Fraction(opened.n_frames)  # type: ignore[attr-defined]
    guess = set() if wanted.given is not None else {int(middle) for middle in wanted.within(count)}
    images, durations = _walk(opened, guess)
    *starts, duration = itertools.accumulate(durations, initial=Fraction(0))
    times = wanted.within(duration)
    numbers = {time: max(0, bisect.bisect_right(starts, time) - 1) for time in times}  # the last that has begun
    if not images.keys() >= set(numbers.values()):
        images, _ = _walk(opened, set(numbers.values()))
    return _collect(images, times, duration, numbers.__getitem__)


def _walk(opened: Image.Image, numbers: set[int]) -> tuple[dict[int, Image.Image], list[Fraction]]:
    """The frames of these numbers, and how long each frame lasts in seconds."""
    images, durations = {}, []
    for number in range(opened.n_frames):  # type: ignore[attr-defined]
        opened.seek(number)
        opened.load()
        if number in numbers:
            images[number] = to_rgb(opened.copy())
        seconds = Fraction(opened.info.get("duration") or 0).limit_denominator(1000) / 1000
        durations.append(seconds if seconds >= SHORTEST else USUAL)
    return images, durations


# ---------------------------------------------------------------------- video files


def _read_video(source: Path | bytes, wanted: _Times) -> VideoFrames:
    """The frames of a file that PyAV reads."""
    with _VideoFile(source) as video:
        times = wanted.within(video.duration)
        shown = video.read(sorted(set(times)))
        return _collect(shown, times, video.duration, lambda time: time)


class _VideoFile:
    """An open video file: its pictures at given times, in seconds from its first picture.

    Raises:
        ModuleNotFoundError: if PyAV is not installed.
        ValueError: if it has no pictures, more pixels than PIL takes of an image, or is cut off.
    """

    def __init__(self, source: Path | bytes):
        try:
            import av
        except ModuleNotFoundError:
            raise ModuleNotFoundError("reading video files needs PyAV: pip install av", name="av") from None
        _check_length(source)
        # "file:" keeps names such as "concat:a|b" or "https://..." from being understood as anything but a file's.
        file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
        try:
            self.container: Any = av.open(file, options={"format_whitelist": FORMATS})
        except (av.error.InvalidDataError, av.error.ArgumentError, EOFError):
            raise ValueError(
                "neither an image nor a video file in mp4, mov, mkv, webm or avi, or its index is missing"
            ) from None
        try:
            self.stream = self._find_stream()
            self.time_base = Fraction(self.stream.time_base)
            self.start: int = self.stream.start_time or 0
            self.duration = self._find_duration()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> "_VideoFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def _find_stream(self) -> Any:
        """The first stream of pictures that is not the cover of a piece of music."""
        for stream in self.container.streams.video:
            if not stream.disposition & type(stream.disposition).attached_pic:
                if stream.codec_context is None:
                    raise ValueError("PyAV cannot decode its pictures: their codec is unknown to it")
                width, height = stream.codec_context.width, stream.codec_context.height
                if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                    raise ValueError(f"{width} x {height} pixels exceed the limit of {Image.MAX_IMAGE_PIXELS}")
                return stream
        raise ValueError("it has sound only" if self.container.streams.audio else "it has no pictures")

    def _find_duration(self) -> Fraction:
        """In seconds: what the file says of its pictures, or else of itself. Of a file that says nothing, such as one
        that was written while it was sent, the end of its last packet, for which all of it is read, not decoded."""
        if self.stream.duration:
            return self.stream.duration * self.time_base
        end = Fraction(self.container.duration or 0, 1_000_000)  # Matroska's, which counts from 0
        if end > self.start * self.time_base:
            return end - self.start * self.time_base
        packets = (packet for packet in self.container.demux(self.stream) if packet.pts is not None)
        last = max((packet.pts + (packet.duration or 0) for packet in packets), default=None)
        if last is None:
            raise ValueError("it has no frames")
        return self._seconds(last)

    def _seconds(self, timestamp: int) -> Fraction:
        return (timestamp - self.start) * self.time_base

    def read(self, times: list[Fraction]) -> dict[Fraction, Image.Image]:
        """The images that are shown at ascending times. Times with the same key frame before them are decoded in one
        go."""
        runs: dict[int, tuple[Fraction, list[Fraction]]] = {}
        for time in times:
            key, position = self._find_key_frame(time)
            runs.setdefault(key, (position, []))[1].append(time)
        shown: dict[Fraction, Image.Image] = {}
        for key, (position, run) in runs.items():
            shown |= self._decode(position, key, run)
        return shown

    def _packets(self, position: Fraction) -> Iterator[Any]:
        """The packets of pictures from where the file's index leads for a time."""
        self.container.seek(self.start + int(position / self.time_base), stream=self.stream, backward=True)
        return self.container.demux(self.stream)

    def _find_key_frame(self, time: Fraction) -> tuple[int, Fraction]:
        """The timestamp of a key frame not after a time, and the position to seek that leads to it; of the first one,
        if none is before. An index may count the times of decoding, which are earlier; then it is looked for further
        back."""
        back = Fraction(0)
        while True:
            position = max(Fraction(0), time - back)
            for packet in self._packets(position):
                if packet.pts is None:
                    continue
                if packet.is_keyframe and (position == 0 or self._seconds(packet.pts) <= time):
                    return packet.pts, position
                if position > 0 and self._seconds(packet.pts) > time:
                    break
            if position == 0:
                raise ValueError("it has no frames")
            back = 2 * back or Fraction(1)

    def _decode(self, position: Fraction, key: int, times: list[Fraction]) -> dict[Fraction, Image.Image]:
        """The images at ascending times, decoded from a position on; what comes before the key frame is incomplete.

        Raises:
            ValueError: if a frame is damaged, or there is none.
        """
        shown: dict[Fraction, Image.Image] = {}
        remaining, frame = list(times), None
        for packet in self._packets(position):
            for following in self.stream.decode(packet):
                if following.pts is None or following.pts < key:
                    continue
                if following.is_corrupt:
                    raise ValueError(f"damaged at {float(self._seconds(following.pts)):.2f} s")
                while remaining and remaining[0] < self._seconds(following.pts):
                    shown[remaining.pop(0)] = _make_image(following if frame is None else frame)
                if not remaining:
                    return shown
                frame = following
        if frame is None:
            raise ValueError(f"it has no frames after {float(position):.2f} s")
        return shown | dict.fromkeys(remaining, _make_image(frame))


def _make_image(frame: Any) -> Image.Image:
    """An upright RGB image of a frame of PyAV."""
    if any(component.is_alpha for component in frame.format.components):
        image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = struct.unpack("5i", bytes(matrix)[:20])
        orientation = tuple(round(entry / 2**16) for entry in (a, b, c, d))
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
    return image


# ---------------------------------------------------------------------- files that are cut off


def _check_length(source: Path | bytes) -> None:
    """See to it that a video file is as long as its outermost parts say: a download that broke off may still be played
    up to there.

    Raises:
        ValueError: saying how much there is, if it is not.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        declared = _declared_length(file, size)
    if declared > size:
        raise ValueError(f"truncated: only {size:,} of {declared:,} bytes are there")


def _declared_length(file: BinaryIO, size: int) -> int:
    """How long a file of RIFF (avi), Matroska (mkv, webm) or MPEG-4 boxes (mp4, mov) says that it is; 0 of others, and
    where it is left open."""
    head = file.read(12)
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return 8 + length if length else 0
    if head[:4] == b"\x1aE\xdf\xa3":
        file.seek(4)
        file.seek(_read_vint(file) or 0, io.SEEK_CUR)
        is_segment, rest = file.read(4) == b"\x18S\x80g", _read_vint(file)
        return file.tell() + rest if is_segment and rest is not None else 0
    if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return 0
    position = 0
    while position < size:
        file.seek(position)
        box = file.read(16)
        length = int.from_bytes(box[:4], "big")
        if length == 1:
            length = int.from_bytes(box[8:], "big")
        if length < 8:  # 0 is "until the end"
            return 0
        position += length
    return position


def _read_vint(file: BinaryIO) -> int | None:
    """A length as Matroska writes it; None for one that was not known."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    bits = 8 - first[0].bit_length()  # so many bytes follow
    value = int.from_bytes(bytes([first[0] & (0x7F >> bits)]) + file.read(bits), "big")
    return None if value == 2 ** (7 * (bits + 1)) - 1 else value


__all__ = ["VideoFrames", "read_frames"]
