"""Read clips (video files and animated images) that may be broken."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..models.video_frames import VideoFrames, read_frames
from .images import MAX_ASPECT, BrokenImage, BrokenImageReport


VIDEO_SUFFIXES = (".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi")
ANIMATION_SUFFIXES = (".gif", ".webp")  # which may be still images too


def is_clip(path: Path | str) -> bool:
    """Whether a file is a clip: a video, by its suffix, or a gif or webp with more than one frame, by its content."""
    suffix = Path(path).suffix.lower()
    if suffix in ANIMATION_SUFFIXES:
        try:
            with Image.open(path) as opened:
                return getattr(opened, "is_animated", False)
        except Exception:  # what is wrong with it is said where it is read
            return False
    return suffix in VIDEO_SUFFIXES


def read_clip(
    source: str | Path | bytes,
    num_frames: int = 8,
    times: Sequence[float] | None = None,
    name: str | None = None,
    report: BrokenImageReport | None = None,
) -> VideoFrames:
    """Read frames of a clip, as [`read_frames`] does.

    Args:
        source: path or bytes of a video file, an animated image or a still one. A path is never a URL.
        num_frames, times: as for [`read_frames`].
        name: name of the clip in errors; defaults to the path.
        report: receives clips that are unusual but usable.

    Raises:
        BrokenImage: if it cannot be used (missing, cut off, without frames, too many pixels, one pixel wide, ...).
        ModuleNotFoundError: if it is a video file and PyAV is not installed.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "clip without a name")
    try:
        clip = read_frames(source, num_frames, times)
        width, height = clip.images[0].size
        if min(width, height) == 1 or max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"an image of {width} x {height} pixels is too small")
    except FileNotFoundError:
        raise BrokenImage(name, "no such file") from None
    except (OSError, ValueError) as error:
        reason = str(error)
        for called in (str(source), "clip without a name"):
            reason = reason.removeprefix(f"{called}: ")
        raise BrokenImage(name, reason) from error
    if len(clip.images) == 1 and len(clip.times) > 1 and report is not None:
        report.add(name, f"all of its {len(clip.times)} frames are equal", used=True)
    return clip
