"""Search a folder with a text or an image: one forward pass per file, one dot product per query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..data.folders import find_images
from ..data.images import BrokenImage, read_image
from .encoders import Encoder
from .loading import load_encoder


@dataclass(frozen=True)
class Match:
    """A search result: the file and its cosine similarity to the query, in [-1, 1]."""

    path: Path
    score: float


class ImageIndex:
    """The embeddings of a set of image files.

    Args:
        encoder: embeds images and queries; see [`load_encoder`].
        paths: the files. Those that cannot be read are skipped and kept, with the reason, in `broken`.
        batch_size: images in a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if no file can be read.

    Example:
        >>> index = ImageIndex.from_folder("runs/demo/model", "my/photos")  # doctest: +SKIP
        >>> for match in index.search("an animal with wings", k=5):  # doctest: +SKIP
        ...     print(f"{match.score:.3f}  {match.path}")
    """

    def __init__(self, encoder: Encoder, paths: Sequence[Path], batch_size: int = 64, progress: bool = False):
        self.encoder = encoder
        self.paths: list[Path] = []
        self.broken: list[BrokenImage] = []
        self.embeds = encoder.encode_images(
            self._readable(paths), batch_size, len(paths) if progress else None
        )  # (n, D)
        if not self.paths:
            reasons = "".join(f"; {broken}" for broken in self.broken[:3])
            raise ValueError(f"none of {len(paths)} image files can be read{reasons}")

    @classmethod
    def from_folder(
        cls,
        model: str,
        folder: Path | str,
        batch_size: int = 64,
        progress: bool = False,
        device: str | torch.device | None = None,
    ) -> "ImageIndex":
        """Load a model by Hub id or folder and encode every image below a folder.

        Args:
            model, device: see [`load_encoder`], whose errors are raised too.
            folder: searched with its sub-folders.
            batch_size, progress: as for the class.

        Raises:
            FileNotFoundError: if the folder does not exist or holds no image.
        """
        paths = find_images(Path(folder))
        return cls(load_encoder(model, device), paths, batch_size, progress)

    def _readable(self, paths: Sequence[Path]) -> Iterator[Image.Image]:
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

    def search(self, query: str | Image.Image, k: int = 10) -> list[Match]:
        """Find the k best files for a text, or for an image.

        Args:
            query: a text, or a PIL image.
            k: how many; fewer are returned by a smaller index.

        Raises:
            ValueError: if the text is empty or k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty")
            embed = self.encoder.encode_texts([query])[0]
        else:
            embed = self.encoder.encode_images([query])[0]
        scores, order = torch.topk(self.embeds @ embed, min(k, len(self)))
        return [Match(self.paths[i], score) for i, score in zip(order.tolist(), scores.tolist())]
