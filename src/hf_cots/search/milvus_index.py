"""An index on a Milvus server, which many machines can share: like a [`DiskIndex`], with an address for a folder."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.images import BrokenImage
from .base import AnyQuery, Match, StoredIndex, check_k, describe_clip
from .building import bring_up_to_date, check_model, check_not_empty, name_model
from .clips import ClipFrames, clip_from_json
from .encoders import Encoder
from .gallery import Gallery, SourceOptions, open_gallery, place
from .loading import load_encoder
from .milvus import IMAGES, MOST_HITS, Collection, MilvusStore, among
from .milvus_where import WhereTranslator
from .update import UpdateSummary


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MORE = 32  # candidates beyond k; the best are chosen by float64 scores


class MilvusIndex(StoredIndex):
    """An index in a Milvus collection, created by [`build`] and opened by [`open`].

    Matches, their order and their scores are those of a [`DiskIndex`] over the same source.

    Args:
        uri: `http://host:19530/collection`.
        encoder: the model that it was built with.
        root: the folder that image paths are relative to; by default the source folder it was built from.

    Attributes:
        summary: summary of the last update.

    Raises:
        FileNotFoundError: if there is no such collection.
        ModuleNotFoundError: without pymilvus.
        OSError: if the server does not answer.
        ValueError: if the index was built with another model, or the collection is not an index.
    """

    def __init__(self, uri: str, encoder: Encoder, root: Path | None = None):
        super().__init__(encoder)
        self.uri = uri
        self.collection = Collection(uri)
        self.refresh()
        check_model(self.collection.uri, self.meta, encoder)
        self.root = root or (Path(self.meta["root"]) if self.meta["root"] else None)
        self.summary = UpdateSummary()

    def refresh(self) -> None:
        """Read the metadata and columns of the index again, since another process may have changed them."""
        self._meta, columns = read_existing(self.collection)
        self.columns = [name for name, _ in columns]
        self._where = WhereTranslator(columns)

    @staticmethod
    def build(
        model: str | Path | Encoder,
        source: str | Path | Gallery,
        to: str,
        dtype: str | None = None,
        options: SourceOptions | None = None,
        batch_size: int = 64,
        progress: bool = False,
        device: "str | torch.device | None" = None,
        revision: str | None = None,
        with_columns: bool = True,
        approximate: bool | None = None,
        recall: float | None = None,
        precision: str | None = None,
    ) -> "MilvusIndex":
        """Create an index, or update it from its source; arguments and errors as for [`DiskIndex.build`].

        Args:
            to: address of the collection.
            dtype: "float32" or None.
            approximate, recall: not supported, since Milvus is searched exactly.
        """
        if dtype not in (None, "float32"):
            raise ValueError(f"an index in Milvus only stores float32 vectors, not {dtype}: leave out --dtype")
        if approximate or recall is not None:
            raise ValueError("an index in Milvus is always searched exactly: leave out --approximate and --recall")
        gallery = source if isinstance(source, Gallery) else open_gallery(source, options, with_columns)
        encoder = load_encoder(model, device, revision) if isinstance(model, (str, Path)) else model
        summary = bring_up_to_date(
            lambda dim, **meta: MilvusStore(to, dim, **name_model(model, revision), **meta),
            encoder,
            gallery,
            dtype,
            precision,
            batch_size,
            progress,
        )
        index = MilvusIndex(to, encoder, gallery.root)
        index.summary = summary
        check_not_empty(index, gallery, summary)
        return index

    @staticmethod
    def open(
        uri: str, model: str | Path | Encoder | None = None, device: "str | torch.device | None" = None
    ) -> "MilvusIndex":
        """Open an index for searching; arguments and errors as for [`DiskIndex.open`] and the class."""
        if model is None:
            meta, _ = read_existing(Collection(uri))
            model = load_encoder(meta["model"], device, meta.get("revision"))
        return MilvusIndex(uri, load_encoder(model, device) if isinstance(model, (str, Path)) else model)

    def update(self, batch_size: int = 64, progress: bool = False) -> UpdateSummary:
        """Update the index from the source that it was built from; arguments and errors as for [`build`]."""
        options, columns = SourceOptions(**json.loads(self.meta["options"])), self.meta["with_columns"] == "1"
        updated = MilvusIndex.build(
            self.encoder, self.meta["source"], self.uri, None, options, batch_size, progress, with_columns=columns
        )
        self.refresh()
        self.summary = updated.summary
        return self.summary

    # ------------------------------------------------------------------ contents

    def __len__(self) -> int:
        return self.collection.count(IMAGES)

    @property
    def paths(self) -> list[Path]:
        """The searchable images, in sorted order."""
        return [place(self.root, entity["path"]) for entity in self.collection.scan([], IMAGES)]

    @property
    def broken(self) -> list[BrokenImage]:
        """The images that cannot be used, with the reasons."""
        found = self.collection.scan(["row"], 'found == false and path != ""')
        return [BrokenImage(str(place(self.root, entity["path"])), entity["row"]["reason"]) for entity in found]

    @property
    def meta(self) -> dict[str, str]:
        return self._meta

    def version(self) -> int:
        return int(self.collection.read_index()[0].get("version", 0))

    # ------------------------------------------------------------------ search

    def search(
        self,
        query: AnyQuery | None = None,
        k: int = 10,
        image: AnyQuery | None = None,
        minus: AnyQuery | None = None,
        where: str | None = None,
    ) -> list[Match]:
        """Find the k best images, exactly; arguments and errors as for [`DiskIndex.search`].

        Args:
            where: an SQL expression, limited to what Milvus supports; anything else is refused by name.
        """
        check_k(k)
        self.check_where(where)  # before the query is encoded
        return self.search_vector(self.embed_query(query, image, minus), k, where)

    def approximation(self, k: int = 10, where: str | None = None, exact: bool = False) -> None:
        """Return None, since Milvus is searched exactly; see [`DiskIndex.approximation`]."""

    def check_where(self, where: str | None) -> None:
        """Check a filter; raises a ValueError that names the mistake."""
        self._translate(where)

    def _translate(self, where: str | None) -> str:
        if where is None:
            return IMAGES
        try:
            return f"{IMAGES} and {self._where.translate(where)}"
        except ValueError:
            self.refresh()  # another process may have added the column
            return f"{IMAGES} and {self._where.translate(where)}"

    def search_vector(self, vector: np.ndarray, k: int = 10, where: str | None = None) -> list[Match]:
        """Find the k best images for a normalized embedding (D,); otherwise as [`search`].

        Milvus' float32 scores differ from the exact ones by at most half of `margin`, so the candidates are complete
        once the last one is more than `margin` below the k-th.
        """
        check_k(k)
        if k > MOST_HITS:
            raise ValueError(f"Milvus returns at most {MOST_HITS} images per search, not {k}: set a lower -k")
        condition, query = self._translate(where), np.asarray(vector, dtype=np.float32)
        margin = 4 * len(query) * 2.0**-24
        fetch = int(k) + MORE
        while True:
            fetch = min(fetch, MOST_HITS)
            hits = self.collection.search(query, fetch, condition)
            if len(hits) < fetch or hits[-1][1] < hits[k - 1][1] - margin:
                break
            if fetch == MOST_HITS:
                logger.warning(
                    "more than %d images have almost the same score: Milvus chooses which of them are returned", fetch
                )
                break
            fetch *= 4
        if any(int(key[1:]) >= len(self.columns) for *_, cells in hits for key in cells):
            self.refresh()
        kept = np.array([kept for *_, kept, _ in hits], dtype=np.float64).reshape(len(hits), len(query))
        scores = (kept * query.astype(np.float64)).sum(axis=1).tolist()
        best = sorted(zip(scores, hits), key=lambda pair: (-pair[0], pair[1][0]))[:k]
        keys = {name: f"c{i}" for i, name in enumerate(self.columns)}
        clips = self._read_clips([path for _, (path, *_) in best])
        return [
            Match(
                place(self.root, path),
                score,
                {name: cells.get(key) for name, key in keys.items()},
                **describe_clip(clips.get(path), vector),
            )
            for score, (path, _, _, cells) in best
        ]

    def _read_clips(self, paths: list[str]) -> dict[str, ClipFrames]:
        """Read the frames of the clips among some images."""
        if "num_frames" not in self.meta or not paths:
            return {}
        found = self.collection.query(among(paths), ["path", "row"])
        return {entity["path"]: clip_from_json(entity["row"]["clip"]) for entity in found if entity["row"].get("clip")}


def read_existing(collection: Collection) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Read the metadata of an index and its columns with their affinities.

    Raises:
        FileNotFoundError: if there is no index.
    """
    meta, columns = collection.read_index()
    if not meta:
        uri = collection.uri
        raise FileNotFoundError(f"no index at {uri}: create one with `hf-cots index MODEL SOURCE --to {uri}`")
    return meta, columns
