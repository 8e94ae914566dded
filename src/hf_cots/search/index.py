"""Search images and clips with a text or an image: one forward pass per image, one dot product per query.

[`ImageIndex`] keeps its embeddings in memory. [`DiskIndex`] is stored in a folder and can be updated, filtered and
shared between processes.
"""

import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .._errors import check_output_folder
from ..data.folders import cache_folder, find_images
from ..data.hashes import hex_digest
from ..data.images import BrokenImage, read_image
from .base import AnyQuery, BaseIndex, Match, check_k, describe_clip
from .clips import ClipFrames, ReadAhead, read_media, read_moment
from .disk_index import DiskIndex
from .encoders import Encoder, encode_media, frames_per_clip
from .encoding import check_batch_size
from .fingerprint import describe_model
from .gallery import FolderGallery, is_media
from .loading import load_encoder
from .milvus import is_milvus
from .milvus_index import MilvusIndex
from .vectors import nearest


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class ImageIndex(BaseIndex):
    """A search index in memory: the embeddings of image files and clips (videos, animated GIFs and WebPs).

    Args:
        encoder: embeds images and queries; see [`load_encoder`].
        paths: the files. Files that cannot be read or have a non-finite embedding are skipped and listed in `broken`
            with the reason.
        batch_size: images per forward pass.
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
        num_frames, total = frames_per_clip(encoder), len(files) if progress else None
        ahead = ReadAhead.of_files(batch_size, files, num_frames)
        read = partial(read_media, num_frames=num_frames)
        found, problems = encode_media(encoder, read, files, batch_size, total, ahead)
        vectors = [each.vector for each in found]
        embeds = np.array(vectors, dtype=np.float32) if found else encoder.encode_images([])
        self.paths: list[Path] = [path for path, problem in zip(files, problems) if problem is None]
        self.broken: list[BrokenImage] = [problem for problem in problems if problem is not None]
        finite = np.isfinite(embeds).all(axis=1)
        self.broken += [
            BrokenImage(str(path), "its embedding is not finite") for path, good in zip(self.paths, finite) if not good
        ]
        self.paths = [path for path, good in zip(self.paths, finite) if good]
        self.clips: list[ClipFrames | None] = [each.clip for each, good in zip(found, finite) if good]
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
        device: "str | torch.device | None" = None,
        revision: str | None = None,
    ) -> "ImageIndex":
        """Load a model and encode all images and clips below a folder.

        Args:
            model, device, revision: see [`load_encoder`], whose errors are raised too.
            folder: folder of images and clips, including its sub-folders.
            batch_size, progress: as for the class.

        Raises:
            FileNotFoundError: if the folder does not exist or contains no images or clips.
        """
        paths = find_images(Path(folder), is_media)
        return cls(load_encoder(model, device, revision), paths, batch_size, progress)

    def __len__(self) -> int:
        return len(self.paths)

    def read_image(self, path: Path, moment: float | None = None) -> Image.Image:
        return read_image(path) if moment is None else read_moment(path, moment)

    @staticmethod
    def build(
        model: str | Path | Encoder, source: str | Path, to: str | Path, **options: Any
    ) -> DiskIndex | MilvusIndex:
        """Create or update an index on disk or in Milvus; see [`DiskIndex.build`]."""
        if is_milvus(to):
            return MilvusIndex.build(model, source, str(to), **options)
        return DiskIndex.build(model, source, to, **options)

    @staticmethod
    def open(
        index: str | Path, model: str | Path | Encoder | None = None, device: "str | torch.device | None" = None
    ) -> DiskIndex | MilvusIndex:
        """Open an index on disk or in Milvus; see [`DiskIndex.open`]."""
        if is_milvus(index):
            return MilvusIndex.open(str(index), model, device)
        return DiskIndex.open(index, model, device)

    def search(
        self, query: AnyQuery | None = None, k: int = 10, image: AnyQuery | None = None, minus: AnyQuery | None = None
    ) -> list[Match]:
        check_k(k)
        vector = self.embed_query(query, image, minus)
        found, scores = nearest(self.embeds, vector, int(k))
        return [
            Match(self.paths[i], score, **describe_clip(self.clips[i], vector))
            for i, score in zip(found[:k].tolist(), scores[:k].tolist())
        ]


def open_folder(
    model: str | Path, folder: Path, revision: str | None = None, progress: bool = False
) -> tuple[BaseIndex, list[BrokenImage]]:
    """Update a folder's index in the user's cache and open it; if the cache is not writable, build an index in memory.

    Args:
        model, revision: see [`load_encoder`].
        folder: folder of images, including its sub-folders.
        progress: show a progress bar.

    Returns:
        The index, and the images that cannot be used.

    Raises:
        FileNotFoundError: if the folder does not exist or contains no image.
        OSError, ValueError: as for [`load_encoder`] and [`DiskIndex.build`].
    """
    gallery = FolderGallery(folder, with_columns=False)
    encoder = load_encoder(model, None, revision)
    key = hex_digest([gallery.name.encode(errors="surrogateescape"), json.dumps(describe_model(encoder)).encode()])
    cached = cache_folder("indexes", key)
    try:
        check_output_folder(cached)
    except OSError as error:
        logger.info("building the index in memory, for this search only: %s", error)
        in_memory = ImageIndex(encoder, [folder / path for path in gallery.paths], progress=progress)
        return in_memory, in_memory.broken
    index = DiskIndex.build(encoder, gallery, cached, progress=progress, wait=True)
    return index, index.summary.broken
