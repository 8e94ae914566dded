"""Search a folder with a text or an image: one forward pass per file, one dot product per query."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.folders import find_images
from ..data.images import BrokenImage, read_image
from ..models import load_image
from .encoders import Encoder
from .encoding import check_batch_size
from .loading import load_encoder


@dataclass(frozen=True)
class Match:
    """A search result: the file and its cosine similarity to the query, in [-1, 1]."""

    path: Path
    score: float


def check_k(k: int) -> None:
    """Check the number of matches that is asked for.

    Raises:
        ValueError: if it is not a positive whole number.
    """
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be at least 1 and a whole number, got {k!r}")


class ImageIndex:
    """The embeddings of a set of image files.

    Args:
        encoder: embeds images and queries; see [`load_encoder`].
        paths: the files. Those that cannot be read, or whose embedding is not finite, are skipped and kept, with the
            reason, in `broken`.
        batch_size: images in a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if no file can be used, or the batch size is not positive.

    Example:
        >>> index = ImageIndex.from_folder("runs/demo/model", "my/photos")  # doctest: +SKIP
        >>> for match in index.search("an animal with wings", k=5):  # doctest: +SKIP
        ...     print(f"{match.score:.3f}  {match.path}")
    """

    def __init__(self, encoder: Encoder, paths: Iterable[Path | str], batch_size: int = 64, progress: bool = False):
        check_batch_size(batch_size)
        files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        self.encoder = encoder
        self.paths: list[Path] = []
        self.broken: list[BrokenImage] = []
        embeds = encoder.encode_images(self._readable(files), batch_size, len(files) if progress else None)
        finite = embeds.isfinite().all(dim=1)
        self.broken += [
            BrokenImage(str(path), "its embedding is not finite") for path, good in zip(self.paths, finite) if not good
        ]
        self.paths = [path for path, good in zip(self.paths, finite) if good]
        self.embeds = embeds if finite.all() else embeds[finite]  # (n, D)
        if not self.paths:
            reasons = "".join(f"; {broken}" for broken in self.broken[:3])
            raise ValueError(f"none of {len(files)} image files can be read{reasons}")

    @classmethod
    def from_folder(
        cls,
        model: str | Path,
        folder: Path | str,
        batch_size: int = 64,
        progress: bool = False,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> "ImageIndex":
        """Load a model by Hub id or folder and encode every image below a folder.

        Args:
            model, device, revision: see [`load_encoder`], whose errors are raised too.
            folder: searched with its sub-folders.
            batch_size, progress: as for the class.

        Raises:
            FileNotFoundError: if the folder does not exist or holds no image.
        """
        paths = find_images(Path(folder))
        return cls(load_encoder(model, device, revision), paths, batch_size, progress)

    def _readable(self, paths: list[Path]) -> Iterator[Image.Image]:
        for path in paths:
            try:
                image = read_image(path)
            except BrokenImage as broken:
                self.broken.append(broken)
                continue
            self.paths.append(path)
            yield image

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, query: str | Path | bytes | Image.Image | np.ndarray | torch.Tensor, k: int = 10) -> list[Match]:
        """Find the k best files for a text, or for an image.

        Args:
            query: a text, if it is a `str`; otherwise an image: a `Path`, bytes, a PIL image, an array or a tensor.
            k: how many; fewer are returned by a smaller index.

        Raises:
            ValueError: if the query is empty, no text and no image, or has an embedding that is not finite; or if k is
                not positive.
        """
        check_k(k)
        scores, order = torch.topk(self.embeds @ self._embed(query), min(int(k), len(self)))
        return [Match(self.paths[i], score) for i, score in zip(order.tolist(), scores.tolist())]

    def _embed(self, query: str | Path | bytes | Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The embedding (D,) of one text or image."""
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty")
            embeds = self.encoder.encode_texts([query])
        elif isinstance(query, (Path, bytes, Image.Image, np.ndarray, torch.Tensor)):
            embeds = self.encoder.encode_images([load_image(query)])
        else:
            raise ValueError(f"the query must be one text (str) or one image, not {type(query).__name__}")
        if not embeds.isfinite().all():
            raise ValueError("the query's embedding is not finite: the model's weights or the query are damaged")
        return embeds[0]
