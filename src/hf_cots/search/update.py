"""Bring an index up to date: read new or changed images, encode new contents, and remove deleted images."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..data.hashes import hex_digest
from ..data.images import BrokenImage
from .clips import Embedded, count_frames
from .encoders import Encoder, frames_per_clip, media_steps
from .gallery import Gallery, place
from .processes import processes
from .reading import ImageReader, Loaded, read_together
from .store import IndexStore, find_affinity, to_value
from .vectors import pack, packing_error


logger = logging.getLogger(__name__)

COMMIT_VECTORS, COMMIT_IMAGES, COMMIT_SECONDS = 1_024, 8_192, 20.0  # bounds of what is lost if the process is killed
COMPACT_HOLES, COMPACT_FRACTION = 1_000, 0.25  # compact with at least so many holes and this part of the file


@dataclass
class UpdateSummary:
    """The result of an update. Each image of the source is added, changed, moved, unchanged or broken.

    Attributes:
        added: images that were not in the index.
        changed: images whose contents or columns changed.
        moved: images that were in the index under another name.
        deleted: images that are no longer in the source.
        encoded: images encoded by the model; equal files are encoded once.
        unchanged: images that did not change.
        broken: images that cannot be used.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    encoded: int = 0
    unchanged: int = 0
    broken: list[BrokenImage] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return the number of images by field."""
        return {name: len(value) if isinstance(value, list) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts().items())


class Row(NamedTuple):
    """The row of an image in the index."""

    id: int
    slot: int | None
    size: int | None
    mtime: int | None
    reason: str | None
    described: str | None


class IndexUpdate:
    """One update of an index from its source.

    Args:
        store: opened for writing.
        encoder: the model that the index was built with.
        gallery: the current images of the source.
        batch_size: images per forward pass.
    """

    def __init__(self, store: IndexStore, encoder: Encoder, gallery: Gallery, batch_size: int):
        self.store, self.encoder, self.gallery, self.batch_size = store, encoder, gallery, batch_size
        rows = store.database.execute("SELECT path, id, slot, size, mtime, reason, described FROM images")
        self.known = {path: Row(*values) for path, *values in rows}
        self.slots: dict[str, int] = dict(store.database.execute("SELECT hash, slot FROM contents"))
        gone = self.known.keys() - set(gallery.paths)
        self.gone: set[int | None] = {self.known[path].id for path in gone}
        self.gone_by_slot: dict[int | None, list[int]] = defaultdict(list)
        for path in sorted(gone, reverse=True):
            self.gone_by_slot[self.known[path].slot].append(self.known[path].id)
        self.prepare, self.embed = media_steps(encoder, batch_size)
        self.summary = UpdateSummary()
        self.descriptions: dict[int, tuple[str, dict[str, Any]]] = {}  # new columns and their hash, by image index
        self.batch: list[Loaded] = []
        self.waiting: dict[str, Any] = {}  # preprocessed inputs of the model, by hash
        self.waiting_frames = 0  # number of images in `waiting`
        self.embedded: dict[str, Embedded] = {}  # embeddings that are not committed yet, by hash
        self.committed, self.model_seconds = time.monotonic(), 0.0

    def run(self, to_read: list[int], progress: bool) -> UpdateSummary:
        """Read, encode and write images; under torchrun together with the processes that run [`help_to_update`].

        Args:
            to_read: result of [`compare`].
            progress: show a progress bar.
        """
        start = time.monotonic()
        # The total has only files that must be read and the rate is recent, so the estimated time left is realistic.
        with tqdm(total=len(to_read), desc="images", disable=not progress, leave=False, smoothing=0.05) as bar:
            for loaded in self._read(to_read):
                self._take(loaded)
                bar.update()
        self._commit()
        self._log_rate(time.monotonic() - start)
        self._remove_gone()
        return self.summary

    def _read(self, to_read: list[int]) -> Iterator[Loaded]:
        reader = ImageReader(self.gallery, self.prepare, self.slots, frames_per_clip(self.encoder))
        if processes().num_processes > 1:
            return read_together(reader, self._embed, to_read, self.batch_size, self.store.precision)
        return reader.load_all(to_read, self.batch_size)

    def _log_rate(self, seconds: float) -> None:
        if self.summary.encoded:
            waited = max(0.0, seconds - self.model_seconds)
            slower = "reading and decoding" if waited > self.model_seconds else "the model"
            logger.info(
                "encoded %d images at %.1f a second; most time went to %s (%.1f s in the model, %.1f s waiting)",
                self.summary.encoded,
                self.summary.encoded / max(seconds, 1e-9),
                slower,
                self.model_seconds,
                waited,
            )

    # ------------------------------------------------------------------ what must be read

    def compare(self) -> list[int]:
        """Find the images that must be read and return their indices; write changed columns of all other images."""
        to_read, described_anew = [], []
        seen: dict[str, list[Any]] = defaultdict(list)
        present = set(self.store.column_names())
        for index, (path, columns) in enumerate(zip(self.gallery.paths, self.gallery.columns())):
            if not self._has_usable_name(path):
                continue
            row, stamp = self.known.get(path), self.gallery.stamp(index)
            values = {name: to_value(cell) for name, cell in columns.items()}
            told = {name: value for name, value in values.items() if value is not None}
            described = hex_digest([json.dumps(told, sort_keys=True).encode()], digest_size=8)
            if row is None or row.described != described:
                self.descriptions[index] = described, values
                for name in values.keys() - present:
                    seen[name].append(values[name])
            if row is None or stamp is None or (row.size, row.mtime) != stamp:
                to_read.append(index)
            elif row.reason is not None:
                self.summary.broken.append(BrokenImage(self._name(path), row.reason))
            elif index in self.descriptions:
                described_anew.append((row.id, index))
            else:
                self.summary.unchanged += 1
        with self.store.transaction():
            # In the order of the source, so that equal sources yield equal indexes.
            order = dict.fromkeys(name for _, values in self.descriptions.values() for name in values)
            self.store.add_columns({name: find_affinity(seen[name]) for name in order if name in seen})
            for image, index in described_anew:
                self._describe(image, index)
        self.summary.changed += len(described_anew)
        return to_read

    def _name(self, path: str) -> str:
        return str(place(self.gallery.root, path))

    def _has_usable_name(self, path: str) -> bool:
        try:
            path.encode()
        except UnicodeEncodeError:
            self.summary.broken.append(BrokenImage(ascii(path), "its name is not valid Unicode: rename it"))
            return False
        return True

    def _describe(self, image: int, index: int) -> None:
        """Write the columns of an image if they are new."""
        if index in self.descriptions:
            described, values = self.descriptions.pop(index)
            self.store.write_columns(image, values)
            self.store.database.execute("UPDATE images SET described = ? WHERE id = ?", (described, image))

    # ------------------------------------------------------------------ reading and encoding

    def _take(self, loaded: Loaded) -> None:
        new = loaded.digest not in self.slots and loaded.digest not in self.embedded
        if loaded.prepared is not None and new and loaded.digest not in self.waiting:
            self.waiting[loaded.digest] = loaded.prepared
            self.waiting_frames += count_frames(loaded.prepared)
        if loaded.embedded is not None and new:
            self.embedded[loaded.digest] = loaded.embedded
        loaded.prepared = loaded.embedded = None
        self.batch.append(loaded)
        if self.waiting_frames >= self.batch_size:
            self._encode()
        late = time.monotonic() - self.committed > COMMIT_SECONDS
        if late or len(self.embedded) >= COMMIT_VECTORS or len(self.batch) >= COMMIT_IMAGES:
            self._commit()

    def _encode(self) -> None:
        if not self.waiting:
            return
        self.embedded |= zip(self.waiting, self._embed(list(self.waiting.values())))
        self.waiting.clear()
        self.waiting_frames = 0

    def _embed(self, prepared: list[Any]) -> list[Embedded]:
        start = time.monotonic()
        embedded = self.embed(prepared)
        self.model_seconds += time.monotonic() - start
        return embedded

    # ------------------------------------------------------------------ writing

    def _commit(self) -> None:
        """Append the vectors to their file, then write all rows of the batch in one transaction."""
        self._encode()
        good = {digest: each for digest, each in self.embedded.items() if np.isfinite(each.vector).all()}
        embeds = np.array([each.vector for each in good.values()], dtype=np.float32).reshape(len(good), self.store.dim)
        appended = self.store.append(pack(embeds, self.store.dtype)) if good else None
        with self.store.transaction() as database:
            if appended is not None:
                first, checksum = appended
                database.execute("INSERT INTO batches VALUES (?, ?, ?)", (first, len(good), checksum))
                slots = dict(zip(good, range(first, first + len(good))))
                database.executemany("INSERT INTO contents(hash, slot) VALUES (?, ?)", slots.items())
                self.slots |= slots
                clips = {digest: each.clip for digest, each in good.items() if each.clip is not None}
                self.store.write_clips(clips, frames_per_clip(self.encoder))
                error = max(float(self.store.meta.get("error", 0)), packing_error(embeds, self.store.dtype))
                self.store.set_meta(error=str(error))
            for loaded in self.batch:
                self._write(loaded)
        self.summary.encoded += len(self.embedded)
        self.embedded, self.batch, self.committed = {}, [], time.monotonic()

    def _write(self, loaded: Loaded) -> None:
        """Write the row of an image and count it in the summary."""
        path, slot = self.gallery.paths[loaded.index], self.slots.get(loaded.digest)
        broken = loaded.broken
        if broken is None and slot is None:
            broken = BrokenImage(self._name(path), "its embedding is not finite")
        row = self.known.get(path)
        moved = self.gone_by_slot[slot].pop() if row is None and slot is not None and self.gone_by_slot[slot] else None
        self.gone.discard(moved)
        image = self._write_row(moved if row is None else row.id, path, slot, loaded.stamp, broken)
        if broken is not None:
            self.summary.broken.append(broken)
        elif row is None:
            self.summary.moved += moved is not None
            self.summary.added += moved is None
        else:
            same = row.reason is None and row.slot in (None, slot) and loaded.index not in self.descriptions
            self.summary.unchanged += same
            self.summary.changed += not same
        self._describe(image, loaded.index)

    def _write_row(
        self,
        image: int | None,
        path: str,
        slot: int | None,
        stamp: tuple[int, int] | None,
        broken: BrokenImage | None,
    ) -> int:
        """Update the row of an image, or insert it if `image` is None; returns its id."""
        size, mtime = stamp or (None, None)
        values = (path, slot, size, mtime, broken.reason if broken else None)
        database = self.store.database
        if image is None:
            made = database.execute(
                "INSERT INTO images(path, slot, size, mtime, reason) VALUES (?, ?, ?, ?, ?)", values
            )
            return made.lastrowid  # type: ignore[return-value]
        database.execute(
            "UPDATE images SET path = ?, slot = ?, size = ?, mtime = ?, reason = ? WHERE id = ?", (*values, image)
        )
        return image

    def _remove_gone(self) -> None:
        with self.store.transaction():
            self.store.remove_images(image for image in self.gone if image is not None)
            if self.store.holds_clips():
                self.store.set_meta(clips=str(self.store.count_clips()))
        self.summary.deleted += len(self.gone)
        holes = self.store.holes()
        if holes >= COMPACT_HOLES and holes > COMPACT_FRACTION * self.store.end():
            self.store.compact()
