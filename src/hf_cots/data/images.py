"""Reading pictures that may be broken, and telling which ones were."""

import io
import json
import os
import warnings
from pathlib import Path

from PIL import Image

from ..models import to_rgb


class BrokenImage(Exception):
    """A picture that cannot be read. `name` says which one, `reason` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):
        return BrokenImage, (self.name, self.reason)  # crosses from a worker process to the main one


def read_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """A file or its bytes as an upright RGB picture.

    Args:
        source: path or encoded bytes.
        name: what to call it in errors; the path if not given.

    Raises:
        BrokenImage: whatever is wrong with it (missing, truncated, no picture, too many pixels, ...).
    """
    name = name or (str(source) if not isinstance(source, bytes) else "image without a name")
    try:
        with warnings.catch_warnings():
            # PIL only warns of moderate decompression bombs; those would take gigabytes too.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                return to_rgb(opened)
    except FileNotFoundError:
        raise BrokenImage(name, "no such file") from None
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(name, f"{type(error).__name__}: {error}") from error


class BrokenImageReport:
    """A JSON-lines file that names each broken picture once, shared by the workers of a run.

    Args:
        path: the report; created when the first picture breaks.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def names(self) -> set[str]:
        """The pictures reported so far, by all workers and earlier starts of the run."""
        if not self.path.is_file():
            return set()
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["image"] for line in lines if line.endswith("}")}

    def add(self, broken: BrokenImage) -> None:
        """Append one line, unless the picture has one."""
        if broken.name in self.names():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"image": broken.name, "reason": broken.reason}, ensure_ascii=False) + "\n"
        # One write to a file opened for appending: lines of several workers do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
