"""Clips in an index: a few frames of each, its embedding, and the moment that matches a query best."""

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


CHUNK = 1 << 20  # bytes of a video that are in memory while it is hashed
RECENT = 64  # items by whose size that of the next ones is guessed
EBML = b"\x1aE\xdf\xa3"  # WebM and Matroska
STILL_BRANDS = (b"avi", b"mif", b"msf", b"hei", b"hev")  # of AVIF and HEIC: images in files of MP4's kind
ANIMATED = ("GIF", "WEBP")  # formats of images that may be clips
FRAME_TYPE = np.dtype("<f2")  # of the frames' vectors, of which only the best one is asked for
Media: TypeAlias = Image.Image | VideoFrames


@dataclass(frozen=True)
class ClipFrames:
    """What an index keeps of a clip beside its embedding.

    Attributes:
        times: seconds of its distinct frames, each where it was first sampled.
        duration: in seconds.
        vectors: (frames, D) float16, the embedding of each of them alone.
    """

    times: tuple[float, ...]
    duration: float
    vectors: np.ndarray

    def find_moment(self, query: np.ndarray) -> float:
        """The time of the frame that is most similar to a query (D,), of equal ones the first."""
        return self.times[int(np.argmax(self.vectors.astype(np.float32) @ query))]


def pack_clip(clip: ClipFrames) -> tuple[bytes, float, bytes]:
    """Times, duration and vectors as an index keeps them."""
    return np.array(clip.times, "<f8").tobytes(), clip.duration, clip.vectors.astype(FRAME_TYPE).tobytes()


def unpack_clip(times: bytes, duration: float, vectors: bytes) -> ClipFrames:
    """What [`pack_clip`] has packed."""
    seconds = tuple(np.frombuffer(times, "<f8").tolist())
    return ClipFrames(seconds, duration, np.frombuffer(vectors, FRAME_TYPE).reshape(len(seconds), -1))


def clip_to_json(times: bytes, duration: float, vectors: bytes) -> dict[str, Any]:
    """What [`pack_clip`] has packed, as JSON can hold it."""
    return {
        "times": np.frombuffer(times, "<f8").tolist(),
        "duration": duration,
        "vectors": base64.b64encode(vectors).decode(),
    }


def clip_from_json(clip: dict[str, Any]) -> ClipFrames:
    """The inverse of [`clip_to_json`]."""
    return unpack_clip(
        np.array(clip["times"], "<f8").tobytes(), clip["duration"], base64.b64decode(clip["vectors"], validate=True)
    )


class PreparedClip(NamedTuple):
    """A clip as a model takes it.

    Attributes:
        frames: its distinct frames, each prepared as an image.
        frame_index: for each sampled time, which of them.
        times: of them, as in [`ClipFrames`].
        duration: in seconds.
    """

    frames: list[Any]
    frame_index: list[int]
    times: tuple[float, ...]
    duration: float


class Embedded(NamedTuple):
    """The embedding (D,) float32 of an image or a clip, and what else an index keeps of a clip."""

    vector: np.ndarray
    clip: ClipFrames | None = None


def is_video(path: str | Path) -> bool:
    """Whether a file has the suffix of a video, which is a clip whatever is in it."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def is_clip(source: Path | bytes, name: str | Path | None = None) -> bool:
    """Whether a file or its bytes are a clip: a video, by the suffix of its name or by its first bytes, or a GIF or
    WebP that is animated.

    Args:
        name: of bytes.
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
    except Exception:  # decoders raise whatever they like: what is wrong is told where the image is read
        return False


def has_video_header(data: bytes) -> bool:
    """Whether bytes begin as an MP4, MOV, WebM, Matroska or AVI file."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"AVI "
    return data[:4] == EBML or (data[4:8] == b"ftyp" and not data[8:12].startswith(STILL_BRANDS))


def read_media(source: Path | bytes, num_frames: int, name: str | None = None) -> Media:
    """Read a file or its bytes: a clip's frames, or an image.

    Args:
        num_frames: of a clip, at uniform times.
        name: what to call it in errors, and by whose suffix a video is known; the path if not given.

    Raises:
        BrokenImage: if it cannot be read.
    """
    if is_clip(source, name):
        return read_clip(source, num_frames, name=name)
    return read_image(source, name)


def read_moment(source: Path | bytes, moment: float, name: str | None = None) -> Image.Image:
    """The frame of a clip at a time in seconds, upright and RGB.

    Raises:
        BrokenImage: if it cannot be read.
    """
    return read_clip(source, 1, times=[moment], name=name).images[0]


def first_times(clip: VideoFrames) -> tuple[float, ...]:
    """Seconds at which each distinct frame of a clip is sampled first."""
    return tuple(clip.times[clip.frame_index.index(i)] for i in range(len(clip.images)))


def digest_file(path: Path) -> str:
    """The hash of a file's bytes, of which few are in memory at a time.

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
    """The hash of a file's bytes, or of bytes; errors as of [`digest_file`]."""
    return hex_digest([source]) if isinstance(source, bytes) else digest_file(source)


def pool_frames(frames: np.ndarray, clips: Sequence[PreparedClip]) -> np.ndarray:
    """(n, D) embeddings of clips: the normalized mean of those of their sampled frames, as CLIP4Clip's mean pooling
    (Luo et al. 2021, section 3.3).

    Args:
        frames: (m, D), of the distinct frames of all clips, one clip after another.
    """
    pooled, start = [], 0
    for clip in clips:
        mean = frames[start : start + len(clip.frames)][clip.frame_index].mean(axis=0)
        pooled.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        start += len(clip.frames)
    return np.array(pooled, dtype=np.float32)


def count_frames(prepared: Any) -> int:
    """How many images a model has to encode for what is prepared."""
    return len(prepared.frames) if isinstance(prepared, PreparedClip) else 1


class ReadAhead:
    """How many items to read ahead of a model, so that about as many images wait as it takes at a time, whether they
    come alone or as clips' frames.

    Args:
        most: images or frames that the model takes at a time.
        first: images in each of the first items, as far as one knows.
    """

    def __init__(self, most: int, first: int = 1):
        self.most = most
        self._frames = deque([first], maxlen=RECENT)

    @classmethod
    def of_files(cls, most: int, names: Iterable[str | Path], num_frames: int) -> "ReadAhead":
        """For files, of which the first are taken for clips if any has the name of one, as a GIF has."""
        maybe = any(Path(name).suffix.lower() in (*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES) for name in names)
        return cls(most, num_frames if maybe else 1)

    def note(self, prepared: Any) -> int:
        """Count the images of an item that has come; returns their number."""
        self._frames.append(count_frames(prepared))
        return self._frames[-1]

    def depth(self) -> int:
        """How many items may wait, if those to come are as large as the largest of the last ones."""
        return max(1, self.most // max(self._frames))


def in_passes(clips: Iterable[PreparedClip], most: int) -> Iterable[list[PreparedClip]]:
    """Clips in lists of at most `most` frames, or of one clip that has more."""
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
    """How many images and clips there are, as in "7 images", "7 clips", "7 images and clips"."""
    kind = "images" if clips == 0 else "clips" if clips == count else "images and clips"
    return f"{count} {kind}"
