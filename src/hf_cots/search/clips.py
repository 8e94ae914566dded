"""Clips in an index: the embeddings of a clip and of a few frames, and the moment that matches a query best."""

import base64
import io
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from ..data.clips import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, read_clip
from ..data.folders import IMAGE_SUFFIXES
from ..data.hashes import hex_digest
from ..data.images import BrokenImage, read_image
from ..models.video_frames import VideoFrames


CHUNK = 1 << 20  # bytes of a video in memory while it is hashed
RECENT = 64  # items from whose sizes the size of the next ones is estimated
EBML = b"\x1aE\xdf\xa3"  # the header of WebM and Matroska
STILL_BRANDS = (b"avi", b"mif", b"msf", b"hei", b"hev")  # of AVIF and HEIC: images in MP4's container format
ANIMATED = ("GIF", "WEBP")  # image formats that can hold clips
FRAME_TYPE = np.dtype("<f2")  # float16 is enough for the frames' vectors, of which only the best match is needed
Media: TypeAlias = Image.Image | VideoFrames


@dataclass(frozen=True)
class ClipFrames:
    """The frames of a clip as an index stores them beside its embedding.

    Attributes:
        times: time in seconds at which each distinct frame was first sampled.
        duration: duration in seconds.
        vectors: (frames, D) float16, the embedding of each distinct frame.
    """

    times: tuple[float, ...]
    duration: float
    vectors: np.ndarray

    def find_moment(self, query: np.ndarray) -> float:
        """Return the time of the frame most similar to a query embedding (D,); among equal ones the first."""
        return self.times[int(np.argmax(self.vectors.astype(np.float32) @ query))]


def pack_clip(clip: ClipFrames) -> tuple[bytes, float, bytes]:
    """Convert a clip to times, duration and vectors as an index stores them."""
    return np.array(clip.times, "<f8").tobytes(), clip.duration, clip.vectors.astype(FRAME_TYPE).tobytes()


def unpack_clip(times: bytes, duration: float, vectors: bytes) -> ClipFrames:
    """Invert [`pack_clip`]."""
    seconds = tuple(np.frombuffer(times, "<f8").tolist())
    return ClipFrames(seconds, duration, np.frombuffer(vectors, FRAME_TYPE).reshape(len(seconds), -1))


def clip_to_json(times: bytes, duration: float, vectors: bytes) -> dict[str, Any]:
    """Convert the output of [`pack_clip`] to values that JSON can hold."""
    return {
        "times": np.frombuffer(times, "<f8").tolist(),
        "duration": duration,
        "vectors": base64.b64encode(vectors).decode(),
    }


def clip_from_json(clip: dict[str, Any]) -> ClipFrames:
    """Read a clip from the output of [`clip_to_json`]."""
    return unpack_clip(
        np.array(clip["times"], "<f8").tobytes(), clip["duration"], base64.b64decode(clip["vectors"], validate=True)
    )


class PreparedClip(NamedTuple):
    """A clip as the input of a model.

    Attributes:
        frames: its distinct frames, each preprocessed as an image.
        frame_index: for each sampled time, the index of its frame in `frames`.
        times: time in seconds of each distinct frame, as in [`ClipFrames`].
        duration: duration in seconds.
    """

    frames: list[Any]
    frame_index: list[int]
    times: tuple[float, ...]
    duration: float


class Embedded(NamedTuple):
    """The embedding (D,) float32 of an image or a clip, and the frames of a clip."""

    vector: np.ndarray
    clip: ClipFrames | None = None


def is_video(path: str | Path) -> bool:
    """Whether a file has the suffix of a video; such a file is a clip, regardless of its content."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def is_clip(source: Path | bytes, name: str | Path | None = None) -> bool:
    """Whether a file or its bytes are a clip: a video (by the suffix of its name or by its first bytes), or an
    animated GIF or WebP.

    Args:
        source: the file or its bytes.
        name: file name of the bytes.
    """
    named = name or (source if isinstance(source, Path) else "")
    suffix = Path(named).suffix.lower()
    if is_video(named):
        return True
    if suffix in IMAGE_SUFFIXES and suffix not in ANIMATION_SUFFIXES:
        return False
    if isinstance(source, bytes) and has_video_header(source):
        return True
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=ANIMATED) as opened:
            return bool(getattr(opened, "is_animated", False))  # PIL's documented attribute of these formats
    except Exception:  # decoders raise all kinds of errors; reading the image reports them
        return False


def has_video_header(data: bytes) -> bool:
    """Whether bytes begin with the header of an MP4, MOV, WebM, Matroska or AVI file."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"AVI "
    return data[:4] == EBML or (data[4:8] == b"ftyp" and not data[8:12].startswith(STILL_BRANDS))


def read_media(source: Path | bytes, num_frames: int, name: str | None = None) -> Media:
    """Read an image, or the frames of a clip, from a file or its bytes.

    Args:
        source: the file or its bytes.
        num_frames: number of frames to sample from a clip, at uniform times.
        name: name used in errors, whose suffix marks a video; the path if not given.

    Raises:
        BrokenImage: if it cannot be read.
    """
    if is_clip(source, name):
        return read_clip(source, num_frames, name=name)
    return read_image(source, name)


def read_moment(source: Path | bytes, moment: float, name: str | None = None) -> Image.Image:
    """Read the frame of a clip at a time in seconds, upright and in RGB.

    Raises:
        BrokenImage: if it cannot be read.
    """
    return read_clip(source, 1, times=[moment], name=name).images[0]


def first_times(clip: VideoFrames) -> tuple[float, ...]:
    """Return the time in seconds at which each distinct frame of a clip is first sampled."""
    return tuple(clip.times[clip.frame_index.index(i)] for i in range(len(clip.images)))


def digest_file(path: Path) -> str:
    """Hash a file without loading all of it into memory.

    Raises:
        BrokenImage: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hex_digest(iter(lambda: file.read(CHUNK), b""))
    except FileNotFoundError:
        raise BrokenImage(str(path), "no such file") from None
    except OSError as error:
        raise BrokenImage(str(path), f"{type(error).__name__}: {error.strerror}") from None


def digest_source(source: Path | bytes) -> str:
    """Hash a file or bytes; errors as for [`digest_file`]."""
    return hex_digest([source]) if isinstance(source, bytes) else digest_file(source)


def pool_frames(frames: np.ndarray, clips: Sequence[PreparedClip]) -> np.ndarray:
    """Compute the (n, D) embeddings of clips as the normalized mean of their sampled frames' embeddings, like the mean
    pooling of CLIP4Clip (Luo et al. 2021, section 3.3).

    Args:
        frames: (m, D) embeddings of the distinct frames of all clips, one clip after another.
        clips: the n clips.
    """
    pooled, start = [], 0
    for clip in clips:
        mean = frames[start : start + len(clip.frames)][clip.frame_index].mean(axis=0)
        pooled.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        start += len(clip.frames)
    return np.array(pooled, dtype=np.float32)


def count_frames(prepared: Any) -> int:
    """Return how many images a model has to encode for a prepared image or clip."""
    return len(prepared.frames) if isinstance(prepared, PreparedClip) else 1


class ReadAhead:
    """The number of items to read ahead of a model, such that about one batch of images is waiting, whether they are
    single images or frames of clips.

    Args:
        most: images or frames per batch of the model.
        first: expected number of images in each of the first items.
    """

    def __init__(self, most: int, first: int = 1):
        self.most = most
        self._frames = deque([first], maxlen=RECENT)

    @classmethod
    def of_files(cls, most: int, names: Iterable[str | Path], num_frames: int) -> "ReadAhead":
        """Create one for files; the first ones are assumed to be clips if any file has the suffix of one, as .gif."""
        maybe = any(Path(name).suffix.lower() in (*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES) for name in names)
        return cls(most, num_frames if maybe else 1)

    def note(self, prepared: Any) -> int:
        """Record the size of an item that was read; returns its number of images."""
        self._frames.append(count_frames(prepared))
        return self._frames[-1]

    def depth(self) -> int:
        """Return how many items may wait, assuming that all are as large as the largest of the last ones."""
        return max(1, self.most // max(self._frames))


def in_passes(clips: Iterable[PreparedClip], most: int) -> Iterable[list[PreparedClip]]:
    """Batch clips into lists of at most `most` frames in total; a clip with more frames is a batch of its own."""
    batch: list[PreparedClip] = []
    frames = 0
    for clip in clips:
        if batch and frames + len(clip.frames) > most:
            yield batch
            batch, frames = [], 0
        batch.append(clip)
        frames += len(clip.frames)
    if batch:
        yield batch


def describe_count(count: int, clips: int) -> str:
    """Describe how many images and clips there are: "7 images", "7 clips" or "7 images and clips"."""
    kind = "images" if clips == 0 else "clips" if clips == count else "images and clips"
    return f"{count} {kind}"
