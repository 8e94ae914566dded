"""Reading pictures that may be broken, and telling which ones were."""

import io
import json
import warnings
from pathlib import Path

from filelock import FileLock
from PIL import Image

from ..models import to_rgb


MAX_ASPECT = 100  # strips longer than this are separators and spacers, of which a square crop shows nothing
LARGE_SIDE = 16_384  # pixels; decoded all the same, but slow enough to be told


class BrokenImage(Exception):
    """A picture that cannot be read. `name` says which one, `reason` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):
        return BrokenImage, (self.name, self.reason)  # crosses from a worker process to the main one


class BrokenImageReport:
    """A JSON-lines file that names each damaged picture once, shared by the workers and ranks of a run.

    A line is `{"image": name, "used": bool, "reason": text}`: a picture that cannot be used is skipped, one that is
    only odd (an animation, a PNG under the name of .jpg) is used.

    Args:
        path: the report; created when the first picture is found damaged.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._read = 0  # bytes of the file that are known
        self._used: dict[str, bool] = {}  # by name, in the order of the file

    def _read_on(self) -> None:
        """Take in what other processes, or an earlier start of the run, have added."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill
                continue
            self._used[entry["image"]] = entry["used"]

    def names(self) -> set[str]:
        """The pictures reported so far, by all workers and earlier starts of the run."""
        self._read_on()
        return set(self._used)

    def skipped(self) -> int:
        """How many of them could not be used."""
        self._read_on()
        return sum(not used for used in self._used.values())

    def add(self, name: str, reason: str, used: bool = False) -> None:
        """Append one line, unless the picture has one."""
        if name in self._used:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            self._read_on()
            if name in self._used:
                return
            line = json.dumps({"image": name, "used": used, "reason": reason}, ensure_ascii=False) + "\n"
            with open(self.path, "ab") as file:
                torn = file.tell() > self._read
                file.write(("\n" if torn else "").encode() + line.encode())
            self._read_on()


def read_image(
    source: str | Path | bytes, name: str | None = None, report: BrokenImageReport | None = None
) -> Image.Image:
    """A file or its bytes as an upright RGB picture.

    Args:
        source: path or encoded bytes.
        name: what to call it in errors; the path if not given.
        report: told of pictures that are used, but odd.

    Raises:
        BrokenImage: whatever is wrong with it (missing, truncated, no picture, too many pixels, one pixel wide, ...).
    """
    name = name or (str(source) if not isinstance(source, bytes) else "image without a name")
    try:
        with warnings.catch_warnings():
            # PIL only warns of moderate decompression bombs; those would take gigabytes too.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                width, height = opened.size
                if min(width, height) == 1 or max(width, height) > MAX_ASPECT * min(width, height):
                    raise ValueError(f"{width} x {height} pixels show nothing")
                odd = "; ".join(warnings_for(opened, source))
                picture = to_rgb(opened)
    except FileNotFoundError:
        raise BrokenImage(name, "no such file") from None
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(name, f"{type(error).__name__}: {error}") from error
    if odd and report is not None:
        report.add(name, odd, used=True)
    return picture


def warnings_for(opened: Image.Image, source: str | Path | bytes) -> list[str]:
    """What is worth telling of a picture that can be used all the same."""
    odd = []
    frames = getattr(opened, "n_frames", 1)  # PIL's documented attribute of the formats that have frames
    if frames > 1 and opened.format != "MPO":  # cameras' JPEGs with a preview
        odd.append(f"animated: the first of {frames} frames is used")
    if not isinstance(source, bytes):
        named = Image.registered_extensions().get(Path(source).suffix.lower())
        if named and named != opened.format.replace("MPO", "JPEG"):
            odd.append(f"{opened.format} under the name of {Path(source).suffix}")
    if max(opened.size) > LARGE_SIDE:
        odd.append(f"{opened.width} x {opened.height} pixels: slow to decode")
    return odd
