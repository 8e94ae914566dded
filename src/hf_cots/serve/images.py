"""Decode the images of queries, and serve the images of the index with thumbnails."""

import base64
import binascii
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from ..data.clips import read_clip
from ..data.hashes import hex_digest
from ..data.images import BrokenImage, read_image
from ..models.image_processing_cots import to_rgb
from ..models.video_frames import VideoFrames
from ..search.clips import Media, has_video_header, is_clip


MAX_PIXELS = 50_000_000  # of a query image
MAX_CLIP_PIXELS = 10 * MAX_PIXELS  # of all frames of an animation
Image.init()
# Those of these formats that PIL was built with. Decoders of other formats may start other programs.
FORMATS: list[str] = [name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN]
SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}  # in all browsers
THUMBNAIL_SIDE = 320
SMALL_SIDE = 128  # up to this size images are likely icons, whose edges lossy compression blurs
THUMBNAIL_BYTES = 64 << 20  # size of the cache in memory
DECODERS = 4  # at a time, to bound their memory


class UploadError(ValueError):
    """A query image that is refused. `status` is the HTTP status of the response."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def decode_data_url(text: str) -> bytes:
    """Decode a base64 data URL.

    Raises:
        UploadError: if it is anything else; no other URL or path is ever opened.
    """
    head, comma, data = text.partition(",")
    if not comma or not head.startswith(("data:image/", "data:video/")) or not head.endswith(";base64"):
        raise UploadError("image: give a data URL (data:image/png;base64,...), or upload a file", 422)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UploadError("image: the data URL's base64 is not valid", 422) from None


def check_upload(data: bytes, max_bytes: int) -> None:
    """Check the size of an upload.

    Raises:
        UploadError: if it is too large or empty.
    """
    if len(data) > max_bytes:
        raise UploadError(f"image: {len(data):,} bytes, but the server accepts at most {max_bytes:,}", 413)
    if not data:
        raise UploadError("image: the file is empty", 422)


def decode_upload(data: bytes, num_frames: int) -> Media:
    """Decode a query image as upright RGB, or `num_frames` frames of a clip.

    Raises:
        UploadError: if it has too many pixels, or is not an image or clip of a supported format.
    """
    if is_clip(data):
        return decode_clip(data, num_frames)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header only
                if opened.width * opened.height > MAX_PIXELS:
                    raise UploadError(
                        f"image: {opened.width} x {opened.height} pixels, but the server accepts at most "
                        f"{MAX_PIXELS:,}",
                        413,
                    )
                return to_rgb(opened)
    except UploadError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UploadError(f"image: too many pixels; the server accepts at most {MAX_PIXELS:,}", 413) from None
    except Exception:  # decoders raise all kinds of errors
        raise UploadError(f"image: cannot be read; supported formats are {', '.join(FORMATS)}", 422) from None


def decode_clip(data: bytes, num_frames: int) -> VideoFrames:
    """Decode frames of a query clip; errors as for [`decode_upload`]."""
    try:
        if not has_video_header(data):  # an animation, which is decoded as a whole
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                pixels = opened.width * opened.height * getattr(opened, "n_frames", 1)
            if pixels > MAX_CLIP_PIXELS:
                raise UploadError(
                    f"image: {pixels:,} pixels in all frames, but the server accepts at most {MAX_CLIP_PIXELS:,} of "
                    "an animation",
                    413,
                )
        return read_clip(data, num_frames, name="image")
    except ModuleNotFoundError as error:
        raise UploadError(f"image: {error}, on the server", 422) from None
    except UploadError:
        raise
    except Exception as error:  # decoders raise all kinds of errors
        raise UploadError(str(error) if isinstance(error, BrokenImage) else "image: cannot be read", 422) from None


class ImageFiles:
    """Serves the images of an index and caches thumbnails. Files that changed since they were indexed are refused."""

    def __init__(self) -> None:
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()  # by hash (and time), the least recently used first
        self._size = 0
        self._lock, self._decoders = threading.Lock(), threading.Semaphore(DECODERS)

    def original(self, data: bytes, digest: str, name: str) -> tuple[bytes, str]:
        """Return an image and its media type: unchanged, or as a PNG if browsers cannot show its format.

        Raises:
            BrokenImage: if it has changed since it was indexed.
        """
        check_digest(data, digest, name)
        with Image.open(io.BytesIO(data)) as opened:
            media_type = SHOWN.get(str(opened.format))
        if media_type is not None:
            return data, media_type
        with self._decoders:
            file = io.BytesIO()
            read_image(data, name).save(file, "PNG")
        return file.getvalue(), "image/png"

    def kept_thumbnail(self, digest: str) -> bytes | None:
        """Return a cached thumbnail, or None."""
        with self._lock:
            if digest in self._thumbnails:
                self._thumbnails.move_to_end(digest)
            return self._thumbnails.get(digest)

    def thumbnail(self, data: bytes, digest: str, name: str) -> bytes:
        """Create a thumbnail as [`draw_thumbnail`] does, on white as the model sees the image, and cache it.

        Raises:
            BrokenImage: if the image has changed since it was indexed.
        """
        check_digest(data, digest, name)
        return self.make(digest, lambda: draw_thumbnail(read_image(data, name)))

    def make(self, key: str, draw: Callable[[], bytes]) -> bytes:
        """Create a thumbnail and cache it."""
        with self._decoders:
            made = draw()
        with self._lock:
            if key not in self._thumbnails:
                self._thumbnails[key] = made
                self._size += len(made)
            while self._size > THUMBNAIL_BYTES:
                self._size -= len(self._thumbnails.popitem(last=False)[1])
        return made


def draw_thumbnail(image: Image.Image) -> bytes:
    """Draw an image as a WebP of at most [`THUMBNAIL_SIDE`] pixels."""
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small = max(image.size) <= SMALL_SIDE
    image.save(file, "WEBP", lossless=small, quality=50 if small else 88, method=2)
    return file.getvalue()


def check_digest(data: bytes, digest: str, name: str) -> None:
    """Check that an image has not changed since it was indexed.

    Raises:
        BrokenImage: if it has changed.
    """
    if hex_digest([data]) != digest:
        raise BrokenImage(name, "it has changed since it was indexed")
