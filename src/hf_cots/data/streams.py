"""Image-text pairs read as they are needed, from sources too large to copy or to index.

The main process reads rows, still encoded, and hands them to the dataloader's workers as if they were indices; the
workers decode and augment. So the number of workers does not change the data, and a position in the stream is a
position in the source: a resumed run opens the shard where it stopped.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..models.masking import mix
from ..models.video_frames import VideoFrames
from .batches import take_shard
from .hashes import stable_id
from .images import BrokenImage, skip_image
from .loading import read_source, to_text
from .resolve import resolve
from .sources import AUTO, NUM_FRAMES, MissingColumnError, PairSource, choose_column, is_blank, list_wanted


FIRST_ROWS = 100  # that are looked at before a stream is used


@dataclass(frozen=True)
class StreamedPair:
    """One caption of one row, with all that a worker needs to make an item."""

    cell: Any
    caption: Any
    name: str
    image_id: int
    seed: int


class PairStream(PairSource):
    """Like [`PairDataset`], for a streamed table: one item per caption, asked for by [`StreamBatches`].

    An item that cannot be used (a broken image, an empty caption) is reported and becomes None; the collator drops
    it, and its batch is that much smaller.

    Args:
        table: rows with an image and one or several captions, read in their order.
        image_column, caption_column, image_id_column, root, seed, report, name, num_frames, frame_jitter: as for
            [`PairDataset`]; without an id column or paths an image's id is the index of its first caption in the
            stream.
        shuffle_buffer_size: pairs that are held in memory and shuffled together; 1 keeps the source's order.

    Attributes:
        first_pairs: of the first rows.

    Raises:
        ValueError: naming the column that is missing, or, if none of the first 100 rows can be used, why; or if
            `shuffle_buffer_size` is not positive.
    """

    def __init__(
        self,
        table: datasets.IterableDataset,
        image_column: str = "image",
        caption_column: str | None = AUTO,
        image_id_column: str | None = None,
        root: Path | str = ".",
        seed: int = 0,
        report: Path | str | None = None,
        name: str = "data",
        shuffle_buffer_size: int = 1000,
        num_frames: int | None = None,
        frame_jitter: bool = False,
    ):
        if shuffle_buffer_size < 1:
            raise ValueError(f"--shuffle_buffer_size must be at least 1, got {shuffle_buffer_size}")
        self.start = table.state_dict()
        # CSV and JSON tell their columns with the rows.
        columns = table.column_names or list(dict.fromkeys(c for row in table.take(FIRST_ROWS) for c in row))
        if not columns:
            raise ValueError(f"{name} has no rows")
        named = (image_column, caption_column, image_id_column)
        super().__init__(table, columns, *named, root, seed, report, name, num_frames, frame_jitter)
        self.shuffle_buffer_size = shuffle_buffer_size
        self.first_pairs = [pair for row in self.table.take(FIRST_ROWS) for pair in self.split_row(row, 0, 0)]
        self._check_first_pairs()

    def _check_first_pairs(self) -> None:
        """Fail at once if nothing can be used: training would go through empty batches."""
        reasons = []
        for pair in self.first_pairs:
            try:
                self.read_pair(pair)
                return
            except BrokenImage as broken:
                reasons.append(broken)
        if not reasons:
            raise ValueError(f"{self.name} has no rows")
        shown = list(dict.fromkeys(str(broken) for broken in reasons))[:3]
        raise ValueError(
            f"{self.name}: none of the first {len(reasons)} pairs can be used: {'; '.join(shown)}"
            + ("; ..." if len(reasons) > len(shown) else "")
        )

    def __getstate__(self) -> dict:
        """Workers decode; they need no source."""
        return self.__dict__ | {"table": None, "start": None, "first_pairs": []}

    def split_row(self, row: dict[str, Any], epoch: int, index: int) -> list[StreamedPair]:
        """Split a row into pairs, of which the first is pair `index` of its epoch."""
        captions = "" if self.caption_column is None else row.get(self.caption_column)
        cell = row.get(self.image_column)
        path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
        named = None if self.image_id_column is None else to_text(row.get(self.image_id_column))
        if named is None and isinstance(path, str):
            named = path
        image_id = stable_id(named) if named else index
        return [
            StreamedPair(cell, caption, f"{self.name}, pair {index}", image_id, mix(self.seed, epoch, index + i))
            for i, caption in enumerate(captions if isinstance(captions, list) and captions else [captions])
        ]

    def read_pair(self, pair: StreamedPair) -> Image.Image | VideoFrames:
        """Read the image, or the frames of the clip, of a pair whose caption is one.

        Raises:
            BrokenImage: naming the file, or data set and pair.
        """
        if self.caption_column and is_blank(pair.caption):
            raise BrokenImage(pair.name, f"column '{self.caption_column}' is empty or not a text")
        return self.read_cell(pair.cell, pair.name, pair.seed)

    def __getitem__(self, pair: StreamedPair) -> dict[str, Any] | None:
        """The item of [`PairDataset`], or None."""
        try:
            media = self.read_pair(pair)
        except BrokenImage as broken:
            skip_image(broken, self.report)
            return None
        return self.make_item(media, pair.caption, pair.image_id, pair.seed)


@dataclass(frozen=True)
class StreamPosition:
    """How far a stream was read, counted in pairs, as a checkpoint holds it.

    Args:
        epoch: passes through the source before it.
        number: pairs of this pass before the current block.
        offset: pairs of the (shuffled) block before it.
        source: the source's state at the beginning of the block; None at the beginning of the source.
        block_size: pairs that were shuffled together in the current block; None for the stream's own number.
    """

    epoch: int = 0
    number: int = 0
    offset: int = 0
    source: dict | None = field(default=None, repr=False)
    block_size: int | None = None


class StreamBatches:
    """Endless batches of a [`PairStream`], cut into one shard per rank as by [`PairBatches`].

    The stream is read in blocks, and the pairs of a block are shuffled, a pure function of (seed, epoch, position in
    the stream). Files follow one another in their own order: shuffle them when they are written. Batches run on from
    one pass to the next, so that all are full. Every rank reads the full stream and decodes its own shard.

    Resuming needs the source's state and one block: what lies before is not read again where the source can be
    entered in the middle (parquet, tars and JSON lines by shard; see `datasets.IterableDataset.load_state_dict`).
    A position is a place between two pairs, so that another batch size, another number of ranks or another size of
    the blocks goes on with the next pair: a block under way is finished as it was begun.

    Args:
        stream: the pairs.
        batch_size: pairs of a batch on one rank.
        rank, world_size: which shard to give, of how many.
        seed: of the order; by default that of the stream.
    """

    def __init__(
        self, stream: PairStream, batch_size: int, rank: int = 0, world_size: int = 1, seed: int | None = None
    ):
        self.stream, self.rank, self.world_size = stream, rank, world_size
        self.global_size = batch_size * world_size
        self.seed = stream.seed if seed is None else seed
        self.start = StreamPosition()
        # Where each batch ends that was handed out but perhaps not yet trained on (workers ask ahead), and its number.
        self._ends: deque[tuple[int, StreamPosition]] = deque(maxlen=10_000)

    def state_dict(self, batches: int) -> dict[str, Any]:
        """The position after `batches` batches from the start of the iteration, as plain JSON types; earlier ones are
        forgotten.

        Raises:
            ValueError: if so many were not handed out.
        """
        while self._ends and self._ends[0][0] < batches:
            self._ends.popleft()
        if not self._ends or self._ends[0][0] != batches:
            raise ValueError(f"the stream has not returned {batches} batches")
        return asdict(self._ends[0][1])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the position of another run's checkpoint.

        Raises:
            ValueError: if the source cannot be entered there.
        """
        if state.get("source") and _reader_types(state["source"]) != _reader_types(self.stream.start):
            raise ValueError(
                f"cannot resume the stream {self.stream.name} where the checkpoint stopped: the checkpoint read other "
                "data or was written by an older version; start a new run from its weights with --model"
            )
        # Older checkpoints also hold a number of batches, which says nothing to a run with other batches.
        self.start = StreamPosition(**{name: value for name, value in state.items() if name != "batches"})

    def __iter__(self) -> Iterator[list[StreamedPair]]:
        self._ends.clear()
        self._ends.append((0, self.start))
        batch: list[StreamedPair] = []
        batches = 0
        for pair, position in self._pairs():
            batch.append(pair)
            if len(batch) == self.global_size:
                batches += 1
                self._ends.append((batches, position))
                yield take_shard(batch, self.rank, self.world_size)
                batch = []

    def _pairs(self) -> Iterator[tuple[StreamedPair, StreamPosition]]:
        """Each pair from the start on, with the position after it."""
        start = self.start
        while True:
            empty = True
            for block, begin in self._blocks(start):
                empty = False
                key = [self.seed, mix(begin.epoch, begin.number)]
                order = np.random.Generator(np.random.Philox(key=key)).permutation(len(block))
                for offset in range(begin.offset, len(block)):
                    yield block[order[offset]], replace(begin, offset=offset + 1)
            if empty:
                raise ValueError(f"{self.stream.name} has no rows")
            start = StreamPosition(epoch=start.epoch + 1)

    def _blocks(self, start: StreamPosition) -> Iterator[tuple[list[StreamedPair], StreamPosition]]:
        """The blocks of one pass, each with the position at its beginning."""
        table, stream = self.stream.table, self.stream
        table.load_state_dict(start.source or stream.start)
        size = start.block_size or stream.shuffle_buffer_size
        block: list[StreamedPair] = []
        for row in table:
            block += stream.split_row(row, start.epoch, start.number + len(block))
            if len(block) >= size:
                after = table.state_dict()
                yield block, replace(start, block_size=size)
                start = StreamPosition(epoch=start.epoch, number=start.number + len(block), source=after)
                block, size = [], stream.shuffle_buffer_size
        if block:
            yield block, replace(start, block_size=size)


def _reader_types(state: Any) -> list[str]:
    """The types of the readers, one within the other, that a source's state is of."""
    found = []
    while isinstance(state, dict):
        found.append(str(state.get("type")))
        state = state.get("examples_iterable")
    return found


def load_stream(
    data: str | Path,
    image_column: str = "image",
    caption_column: str | None = AUTO,
    image_id_column: str | None = None,
    split: str = "train",
    seed: int = 0,
    report: Path | str | None = None,
    shuffle_buffer_size: int = 1000,
    separator: str | None = None,
    video_column: str | None = None,
    num_frames: int = NUM_FRAMES,
    frame_jitter: bool = False,
) -> PairStream:
    """Load data as a stream of pairs; see [`load_pairs`] and [`PairStream`] for arguments and errors."""
    columns = (choose_column(image_column, video_column), caption_column, image_id_column)
    frames: dict[str, Any] = {} if video_column is None else {"num_frames": num_frames, "frame_jitter": frame_jitter}
    source = resolve(data, split, clips=video_column is not None)
    table = read_source(source, split, True, list_wanted(*columns), separator)
    try:
        return PairStream(table, *columns, source.root, seed, report, source.name, shuffle_buffer_size, **frames)
    except MissingColumnError as error:
        raise MissingColumnError(f"{error}{source.hint}") from None
