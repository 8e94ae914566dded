"""Read images that may be broken, and report which ones are."""

import json
import logging
import warnings
from pathlib import Path

from filelock import FileLock
from PIL import Image

from ..models import open_image, to_rgb


logger = logging.getLogger(__name__)

MAX_ASPECT = 100  # strips longer than this are separators and spacers, of which a square crop shows nothing
LARGE_SIDE = 16_384  # pixels; decoded all the same, but so slowly that it is reported


class BrokenImage(ValueError):
    """An image that cannot be read. `name` says which one, `reason` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):
        return BrokenImage, (self.name, self.reason)  # crosses from a worker process to the main one


class BrokenImageReport:
    """A JSON-lines file that names each damaged image once, shared by the workers and ranks of a run.

    A line is `{"image": name, "used": bool, "reason": text}`: unusable images are skipped; unusual ones (an animation,
    a PNG named .jpg) are used.

    Args:
        path: the report; created when the first image is found damaged.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._read = 0  # bytes of the file that are known
        self._used: dict[str, bool] = {}  # by name, in the order of the file

    def _read_new_lines(self) -> None:
        """Read what other processes, or an earlier start of the run, have added."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill
                continue
            self._used[entry["image"]] = entry["used"]

    def names(self) -> set[str]:
        """The images reported so far, by all workers and earlier starts of the run."""
        self._read_new_lines()
        return set(self._used)

    def skipped(self) -> int:
        """The number of reported images that could not be used."""
        self._read_new_lines()
        return sum(not used for used in self._used.values())

    def last_skipped(self) -> str:
        """The image that was last reported as unusable, and why; an empty text if there is none."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill
                continue
            if not entry["used"]:
                return f"{entry['image']}: {entry['reason']}"
        return ""

    def add(self, name: str, reason: str, used: bool = False) -> None:
        """Append one line, unless the image has one."""
        if name in self._used:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            self._read_new_lines()
            if name in self._used:
                return
            line = json.dumps({"image": name, "used": used, "reason": reason}, ensure_ascii=False) + "\n"
            with open(self.path, "ab") as file:
                torn = file.tell() > self._read
                file.write(("\n" if torn else "").encode() + line.encode())
            self._read_new_lines()


def skip_image(broken: BrokenImage, report: BrokenImageReport | None = None) -> None:
    """Report that an image or a clip is skipped: in the report file, or as a warning if there is none."""
    if report is not None:
        report.add(broken.name, broken.reason)
    else:
        logger.warning("skipping unreadable %s: %s", broken.name, broken.reason)


def read_image(
    source: str | Path | bytes, name: str | None = None, report: BrokenImageReport | None = None
) -> Image.Image:
    """Read a file or its bytes as an upright RGB image.

    Args:
        source: path or encoded bytes. A path is never a URL: nothing is downloaded.
        name: name of the image in errors; defaults to the path.
        report: receives images that are unusual but usable.

    Raises:
        BrokenImage: if it cannot be used (missing, truncated, not an image, too many pixels, one pixel wide, ...).
    """
    name = name or (str(source) if not isinstance(source, bytes) else "image without a name")
    source = Path(source) if isinstance(source, str) else source
    try:
        with warnings.catch_warnings():
            # PIL only warns of moderate decompression bombs; those would take gigabytes too.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_image(source) as opened:
                width, height = opened.size
                if min(width, height) == 1 or max(width, height) > MAX_ASPECT * min(width, height):
                    raise ValueError(f"an image of {width} x {height} pixels is too small")
                unusual = "; ".join(warnings_for(opened, source))
                image = to_rgb(opened)
    except FileNotFoundError:
        raise BrokenImage(name, "no such file") from None
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(name, f"{type(error).__name__}: {error}") from error
    if unusual and report is not None:
        report.add(name, unusual, used=True)
    return image


def warnings_for(opened: Image.Image, source: str | Path | bytes) -> list[str]:
    """List what is unusual in an image that can be used all the same."""
    found = []
    frames = getattr(opened, "n_frames", 1)  # PIL's documented attribute of the formats that have frames
    if frames > 1 and opened.format != "MPO":  # cameras' JPEGs with a preview
        found.append(f"animated: the first of {frames} frames is used")
    if not isinstance(source, bytes):
        expected = Image.registered_extensions().get(Path(source).suffix.lower())
        if expected and expected != opened.format.replace("MPO", "JPEG"):
            found.append(f"{opened.format} under the name of {Path(source).suffix}")
    if max(opened.size) > LARGE_SIDE:
        found.append(f"{opened.width} x {opened.height} pixels: slow to decode")
    return found
