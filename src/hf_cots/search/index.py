"""Search a folder of pictures with a text or with a picture: one encoding per file, one dot product per query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from ..data.images import BrokenImage, read_image
from ..models import COTSModel, COTSProcessor
from .encoding import encode_images, encode_texts


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Match:
    """One answer: the file and its cosine similarity to the query, in [-1, 1]."""

    path: Path
    score: float


class ImageIndex:
    """The embeddings of a set of picture files.

    Args:
        model, processor: the encoder, in evaluation mode.
        paths: the files. Those that cannot be read are left out and kept, with the reason, in `broken`.
        batch_size: pictures in a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if no file can be read.
    """

    def __init__(
        self,
        model: COTSModel,
        processor: COTSProcessor,
        paths: Sequence[Path],
        batch_size: int = 64,
        progress: bool = False,
    ):
        self.model, self.processor = model, processor
        self.paths: list[Path] = []
        self.broken: list[BrokenImage] = []
        pictures = self._readable(paths)
        self.embeds = encode_images(model, processor, pictures, batch_size, len(paths) if progress else None)  # (n, D)
        if not self.paths:
            raise ValueError(
                f"none of {len(paths)} picture files can be read" + "".join(f"; {b}" for b in self.broken[:3])
            )

    @classmethod
    def from_folder(cls, model: str, folder: Path | str, batch_size: int = 64, progress: bool = False) -> "ImageIndex":
        """Load a model by Hub id or folder and encode every picture below a folder.

        Raises:
            FileNotFoundError: if the folder does not exist or holds no picture.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder: {folder}")
        paths = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
        )
        if not paths:
            raise FileNotFoundError(f"no picture ({', '.join(sorted(IMAGE_SUFFIXES))}) below {folder}")
        encoder = AutoModel.from_pretrained(model).eval()
        return cls(encoder, AutoProcessor.from_pretrained(model), paths, batch_size, progress)

    def _readable(self, paths: Sequence[Path]) -> Iterator[Image.Image]:
        for path in paths:
            try:
                picture = read_image(path)
            except BrokenImage as broken:
                self.broken.append(broken)
                continue
            self.paths.append(path)
            yield picture

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, query: str | Image.Image, k: int = 10) -> list[Match]:
        """The k best files for a text, or for a picture.

        Args:
            query: a text, or a PIL image.
            k: how many; fewer come back from a smaller index.

        Raises:
            ValueError: if the text is empty or k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty")
            embed = encode_texts(self.model, self.processor, [query])[0]
        else:
            embed = encode_images(self.model, self.processor, [query])[0]
        scores, order = torch.topk(self.embeds @ embed, min(k, len(self)))
        return [Match(self.paths[i], score) for i, score in zip(order.tolist(), scores.tolist())]
