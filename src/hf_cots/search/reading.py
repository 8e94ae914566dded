"""Read and preprocess the images and clips of a source ahead of the model, in one process or divided among several."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..data.ahead import map_ahead
from ..data.hashes import hex_digest
from ..data.images import BrokenImage
from .clips import Embedded, ReadAhead, digest_file, read_media
from .encoders import Encoder, frames_per_clip, media_steps, set_precision
from .gallery import Gallery, place
from .processes import broadcast, gather_in_first, gather_objects, own_blocks, processes


@dataclass
class Loaded:
    """An image or clip that was read.

    Attributes:
        index: its position in the source.
        stamp: size and modification time of its file before it was read.
        digest: hash of its bytes.
        prepared: input of the model; None if the contents are in the index or encoded already.
        broken: why it is unusable.
        embedded: embedding, if this or another process has encoded the contents already.
    """

    index: int
    stamp: tuple[int, int] | None
    digest: str = ""
    prepared: Any = None
    broken: BrokenImage | None = None
    embedded: Embedded | None = None


@dataclass(frozen=True)
class ImageReader:
    """Reads the images and clips of a source, in threads.

    Args:
        gallery: the source.
        prepare: the first of [`media_steps`].
        known: hashes of contents that need no encoding.
        num_frames: number of frames to sample from a clip.
    """

    gallery: Gallery
    prepare: Callable[[Any], Any]
    known: Collection[str]
    num_frames: int

    def load(self, index: int) -> Loaded:
        """Read an image or a clip. Hash and pixels come from the same bytes, and the stamp is taken before: a file
        that changes in the meantime has a different stamp at the next update."""
        stamp, name = self.gallery.stamp(index), str(place(self.gallery.root, self.gallery.paths[index]))
        try:
            video = self.gallery.video(index)
            if video is not None:
                return self._load_video(index, stamp, video)
            data = self.gallery.read(index)
            digest = hex_digest([data])
            if digest in self.known:
                return Loaded(index, stamp, digest)
            return Loaded(index, stamp, digest, self.prepare(read_media(data, self.num_frames, name)))
        except BrokenImage as broken:
            return Loaded(index, stamp, broken=broken)
        except ModuleNotFoundError as error:  # without a stamp, so that it is read once the package is installed
            return Loaded(index, None, broken=BrokenImage(name, str(error)))

    def _load_video(self, index: int, stamp: tuple[int, int] | None, path: Path) -> Loaded:
        """Read a video without loading the whole file into memory. It is read twice, for its hash and for its frames;
        size and modification time show whether it changed in between."""
        before = file_state(path)
        digest = digest_file(path)
        if digest in self.known:
            return Loaded(index, stamp, digest)
        prepared = self.prepare(read_media(path, self.num_frames))
        if file_state(path) != before:
            raise BrokenImage(str(path), "it changed while it was being read")
        return Loaded(index, stamp, digest, prepared)

    def load_all(self, indices: Sequence[int], batch_size: int) -> Iterator[Loaded]:
        """Read images and clips in order, about one batch of the model ahead."""
        names = (self.gallery.paths[index] for index in indices)
        ahead = ReadAhead.of_files(batch_size, names, self.num_frames)
        for loaded in map_ahead(self.load, indices, depth=ahead.depth):
            if loaded.prepared is not None:
                ahead.note(loaded.prepared)
            yield loaded


def file_state(path: Path) -> tuple[int, int] | None:
    """Return size and modification time (ns) of a file; None if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def encode_own(
    reader: ImageReader, embed: Callable[[list[Any]], list[Embedded]], indices: Sequence[int], batch_size: int
) -> Iterator[list[Loaded]]:
    """Read and encode this process's blocks of some images, block by block."""
    blocks = [block for _, block in own_blocks(indices, batch_size)]
    loaded = reader.load_all(list(chain(*blocks)), batch_size)
    done: set[str] = set()
    for block in blocks:
        images = list(islice(loaded, len(block)))
        first = {each.digest: each for each in reversed(images) if each.prepared is not None}
        new = [each for each in images if first.get(each.digest) is each and each.digest not in done]
        if new:
            for each, embedded in zip(new, embed([each.prepared for each in new])):
                each.embedded = embedded
        done |= first.keys()
        for each in images:
            each.prepared = None
        yield images


def exchange_rounds(own: Iterator[list[Loaded]], rounds: int) -> Iterator[Loaded]:
    """Yield what all processes have read and encoded, in the order of the source, in the first process; nothing in the
    others. All must call."""
    for _ in range(rounds):
        yield from chain(*gather_in_first(next(own, [])))


def count_rounds(images: int, batch_size: int) -> int:
    """Return the number of rounds in which all processes exchange one block each."""
    return -(-images // (batch_size * processes().num_processes))


def check_same_source(gallery: Gallery) -> None:
    """Check that all processes see the same images; all must call.

    Raises:
        ValueError: if they do not.
    """
    own = hex_digest([path.encode(errors="surrogateescape") + b"\0" for path in gallery.paths])
    if len(set(gather_objects([own]))) > 1:
        raise ValueError(
            f"the processes see different images in {gallery.name}: it has just changed, or is not shared by their "
            "machines. Start them again on one machine"
        )


def help_to_update(encoder: Encoder, gallery: Gallery, batch_size: int) -> None:
    """Run the part of an update that belongs to a process other than the first, which writes the index."""
    check_same_source(gallery)
    precision, indices, known = broadcast([None, None, None])
    prepare, embed = media_steps(set_precision(encoder, precision), batch_size)
    own = encode_own(ImageReader(gallery, prepare, known, frames_per_clip(encoder)), embed, indices, batch_size)
    for _ in exchange_rounds(own, count_rounds(len(indices), batch_size)):
        pass


def read_together(
    reader: ImageReader,
    embed: Callable[[list[Any]], list[Embedded]],
    indices: Sequence[int],
    batch_size: int,
    precision: str,
) -> Iterator[Loaded]:
    """Read and encode images together with the processes that run [`help_to_update`], in the order of the source."""
    check_same_source(reader.gallery)
    broadcast([precision, list(indices), set(reader.known)])
    own = encode_own(reader, embed, indices, batch_size)
    yield from exchange_rounds(own, count_rounds(len(indices), batch_size))
