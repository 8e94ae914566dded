"""Clips of an index for a browser: single frames, sheets of frames, and the files, with Range requests."""

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path, PurePath

from fastapi import Response
from fastapi.responses import FileResponse
from PIL import Image

from ..data.clips import read_clip
from ..data.images import BrokenImage
from ..search.clips import EBML, digest_source, read_moment
from .images import draw_thumbnail


SHEET_SIDE = 160  # pixels of a frame in a sheet; less if there are many
WIDEST = 16_000  # maximum width of a sheet in pixels; WebP allows 16,383
QUALITY = 82
KEPT_STATES = 10_000  # files whose hashes are cached
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",  # browsers do not try to play its own type
    ".webm": "video/webm",
    ".mkv": "video/webm",  # likewise
    ".avi": "video/x-msvideo",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


BEGINNINGS = {b"GIF8": "image/gif", b"RIFF": "image/webp", EBML: "video/webm"}


def media_type_of(path: str | PurePath) -> str:
    """Return the media type of a clip by the suffix of its name; video/mp4 if that is unknown, as inside data sets."""
    return MEDIA_TYPES.get(PurePath(path).suffix.lower(), "video/mp4")


class ClipFiles:
    """Checks that the files of clips are those that were indexed; each file is hashed once, and again if its size or
    modification time has changed."""

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, source: Path | bytes, digest: str, name: str) -> None:
        """Check that a clip has not changed since it was indexed.

        Raises:
            BrokenImage: if it has changed.
        """
        if self._digest(source) != digest:
            raise BrokenImage(name, "it has changed since it was indexed")

    def _digest(self, source: Path | bytes) -> str:
        if isinstance(source, bytes):
            return digest_source(source)
        try:
            stat = source.stat()
        except OSError as error:
            raise BrokenImage(str(source), str(error)) from error
        state = (str(source), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            known = self._digests.get(state)
        if known is None:
            known = digest_source(source)
            with self._lock:
                self._digests[state] = known
                if len(self._digests) > KEPT_STATES:
                    self._digests.popitem(last=False)
        return known


def answer_clip(source: Path | bytes, media_type: str, headers: dict[str, str]) -> Response:
    """Respond with a clip; Range requests are supported for files."""
    if isinstance(source, bytes):
        return Response(source, media_type=BEGINNINGS.get(source[:4], media_type), headers=headers)
    return FileResponse(source, media_type=media_type, headers=headers)


def nearest_time(times: Sequence[float], at: float | None) -> float:
    """Return the time of a clip's frame that is nearest to `at`; the middle one if `at` is None."""
    return times[len(times) // 2] if at is None else min(times, key=lambda time: abs(time - at))


def draw_frame(source: Path | bytes, name: str, time: float) -> bytes:
    """Draw a thumbnail of the frame at a time in seconds; errors as for [`draw_sheet`]."""
    return draw_thumbnail(read_moment(source, time, name))


def draw_sheet(source: Path | bytes, name: str, times: Sequence[float]) -> bytes:
    """Draw the frames at some times, side by side in squares on white, as a WebP.

    Raises:
        BrokenImage: if the clip cannot be read.
    """
    clip = read_clip(source, times=times, name=name)
    side = min(SHEET_SIDE, WIDEST // len(times))
    sheet = Image.new("RGB", (side * len(times), side), "white")
    for number, index in enumerate(clip.frame_index):
        frame = clip.images[index].copy()
        frame.thumbnail((side, side))
        sheet.paste(frame, (number * side + (side - frame.width) // 2, (side - frame.height) // 2))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=QUALITY, method=2)
    return file.getvalue()
