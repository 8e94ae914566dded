"""The interface that all indexes share: how they are searched and what a search returns."""

import json
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from PIL import Image
from transformers.utils import is_torch_tensor

from ..data.clips import read_clip
from ..data.images import BrokenImage, read_image
from ..models import load_image
from ..models.video_frames import VideoFrames
from .clips import ClipFrames, is_clip, read_moment
from .encoders import Encoder, encode_clips, frames_per_clip
from .gallery import Gallery, SourceOptions, open_gallery, place, read_file
from .vectors import l2_normalize


if TYPE_CHECKING:
    import torch

# A str is a text query, never a path.
AnyQuery: TypeAlias = Union[str, Path, bytes, Image.Image, np.ndarray, "torch.Tensor", VideoFrames]


@dataclass(frozen=True)
class Match:
    """A search result: a file, its score and its columns.

    Args:
        path: the file.
        score: cosine similarity to the query, in [-1, 1]; in a hybrid search the sum of reciprocal ranks; for a
            re-ranked match the fused score.
        columns: the file's columns in the source.
        id: row id, in an index on disk.
        similarity: cosine similarity, if the score of the first stage is a different one.
        digest: hash of the indexed bytes, in an index on disk.
        moment: for a clip, the time in seconds of the frame that is most similar to the query.
        duration: for a clip, its duration in seconds.
        times: for a clip, the times in seconds of the frames that were compared.
    """

    path: Path
    score: float
    columns: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    id: int | None = field(default=None, compare=False, repr=False)
    similarity: float | None = field(default=None, compare=False, repr=False)
    digest: str | None = field(default=None, compare=False, repr=False)
    moment: float | None = field(default=None, compare=False, repr=False)
    duration: float | None = field(default=None, compare=False, repr=False)
    times: tuple[float, ...] | None = field(default=None, compare=False, repr=False)


def describe_clip(clip: ClipFrames | None, query: np.ndarray) -> dict[str, Any]:
    """Return the clip fields of a [`Match`] for a query embedding (D,); empty for an image."""
    if clip is None:
        return {}
    return {"moment": clip.find_moment(query), "duration": clip.duration, "times": clip.times}


def check_k(k: int) -> None:
    """Check the requested number of matches.

    Raises:
        ValueError: if it is not a positive whole number.
    """
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")


class BaseIndex(ABC):
    """The embeddings of a set of images, in memory or on disk.

    Attributes:
        encoder: the encoder of queries and images.
    """

    encoder: Encoder

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_image(self, path: Path, moment: float | None = None) -> Image.Image:
        """Read the image of a match, or the frame of a clip at `moment`, upright and in RGB.

        Raises:
            BrokenImage: if the file can no longer be read.
        """

    def read_bytes(self, path: Path) -> bytes:
        """Read the encoded image of a match; errors as for [`read_image`]."""
        return read_file(path)

    def find_source(self, path: Path) -> Path | bytes:
        """Return the file of a match, or its bytes if it is inside a data set; errors as for [`read_image`]."""
        return path

    @abstractmethod
    def search(
        self,
        query: AnyQuery | None = None,
        k: int = 10,
        image: AnyQuery | None = None,
        minus: AnyQuery | None = None,
    ) -> list[Match]:
        """Find the k best images for a text, an image, or a combination of them.

        Args:
            query: a text (`str`); an image (`Path`, bytes, PIL image, array or tensor); or a clip (`Path`, bytes or
                [`VideoFrames`]).
            k: number of matches; a smaller index returns fewer.
            image: an image to search for, alone or together with a text; here a `str` is a path.
            minus: a text or an image that the matches should not be similar to. The embeddings of all parts are added
                or subtracted, and the result is normalized.

        Raises:
            ValueError: if the query is empty, is neither a text nor an image, or has a non-finite embedding; or if k
                is not positive.
        """

    def embed_query(
        self, query: AnyQuery | None, image: AnyQuery | None = None, minus: AnyQuery | None = None
    ) -> np.ndarray:
        """Compute the embedding (D,) of a query; arguments and errors as for [`search`]."""
        image = Path(image) if isinstance(image, str) else image
        parts = [self._embed(part) for part in (query, image) if part is not None]
        if not parts:
            raise ValueError("the query is missing: give a text (str), an image, or both")
        if len(parts) == 1 and minus is None:
            return parts[0]
        total = np.sum(parts, axis=0) - (0 if minus is None else self._embed(minus))
        if float(np.linalg.norm(total)) < 1e-6:
            raise ValueError("the parts of the query cancel each other: change the query or `minus`")
        return l2_normalize(total)

    def _embed(self, query: AnyQuery) -> np.ndarray:
        """Compute the embedding (D,) of one text, image or clip."""
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty")
            embeds = np.asarray(self.encoder.encode_texts([query]))
        elif isinstance(query, (Path, bytes, Image.Image, np.ndarray, VideoFrames)) or is_torch_tensor(query):
            embeds = self._embed_media(query)
        else:
            raise ValueError(f"the query must be one text (str) or one image, not {type(query).__name__}")
        if not np.isfinite(embeds).all():
            raise ValueError("the query's embedding is not finite: the model's weights or the query are damaged")
        return embeds[0]

    def _embed_media(self, query: AnyQuery) -> np.ndarray:
        """Compute the embedding (1, D) of an image or a clip."""
        if isinstance(query, (Path, bytes)) and is_clip(query):
            query = read_clip(query, frames_per_clip(self.encoder))
        if isinstance(query, VideoFrames):
            return encode_clips(self.encoder, [query])
        return self.encoder.encode_images([load_image(query)])


class StoredIndex(BaseIndex):
    """An index that is stored on disk or in Milvus and can read the images of its source.

    Attributes:
        root: the folder that image paths are relative to; None if the images are inside a data set.
    """

    root: Path | None

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._opening = threading.Lock()
        self._opened: tuple[int, Gallery, dict[Path, int]] | None = None

    @property
    @abstractmethod
    def meta(self) -> dict[str, str]:
        """The metadata of the index, such as its model and source."""

    def count_clips(self) -> int:
        """Return the number of clips after the last update."""
        return int(self.meta.get("clips", 0))

    @abstractmethod
    def version(self) -> int:
        """Return a number that grows with each committed batch of any process."""

    def _open_gallery(self) -> tuple[Gallery, dict[Path, int]]:
        """Open the source, again after each update; returns it and the position of each image by path."""
        with self._opening:
            version = self.version()
            if self._opened is None or self._opened[0] != version:
                options = SourceOptions(**json.loads(self.meta["options"]))
                gallery = open_gallery(self.meta["source"], options, with_columns=False)
                numbers = {place(gallery.root, path): i for i, path in enumerate(gallery.paths)}
                self._opened = version, gallery, numbers
            return self._opened[1:]

    def read_bytes(self, path: Path) -> bytes:
        if self.root is not None:
            return read_file(path)
        gallery, numbers = self._open_gallery()
        if path not in numbers:
            raise BrokenImage(str(path), f"it is no longer in {self.meta['source']}")
        return gallery.read(numbers[path])

    def find_source(self, path: Path) -> Path | bytes:
        return path if self.root is not None else self.read_bytes(path)

    def read_image(self, path: Path, moment: float | None = None) -> Image.Image:
        source, name = self.find_source(path), str(path)
        return read_image(source, name) if moment is None else read_moment(source, moment, name)
