"""Batches of pairs as a pure function of (seed, epoch), split into equal shards for the ranks."""

from collections.abc import Iterator

import numpy as np


def take_shard(pairs, rank: int, world_size: int):
    """Take a rank's part of a global batch (a list or an array): consecutive pairs, divided as evenly as possible.

    If the last batch has fewer pairs than there are ranks, some ranks get none.
    """
    start, stop = (len(pairs) * part // world_size for part in (rank, rank + 1))
    return pairs[start:stop]


class PairBatches:
    """Batches of `(epoch, index)`: each epoch is a new permutation of all pairs, a pure function of (seed, epoch).

    A global batch is `batch_size * world_size` consecutive pairs of the permutation, cut into one shard per rank. The
    last batch of an epoch holds what remains, cut as evenly as can be: no pair is seen twice or dropped, and one
    process with the global batch sees what many ranks see together. (accelerate would fill the last batch up with
    pairs of the epoch's beginning.)

    A position is a number of pairs: another batch size, or another number of ranks, goes on with the same next pair.

    Args:
        length: number of pairs.
        batch_size: pairs of a full batch on one rank.
        seed: of the order.
        rank, world_size: which shard to give, of how many.
        drop_last: drop the ragged last batch.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, drop_last: bool = False
    ):
        self.length, self.global_size, self.seed = length, batch_size * world_size, seed
        self.epoch, self.offset = 0, 0
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def set_epoch(self, epoch: int, offset: int = 0) -> None:
        """Give the pairs of this epoch from `offset` on."""
        self.epoch, self.offset = epoch, offset

    def state_dict(self, batches: int) -> dict[str, int]:
        """The position after `batches` batches from where this epoch was entered, as plain JSON types."""
        if batches >= self.remaining():
            return {"epoch": self.epoch + 1, "offset": 0}
        return {"epoch": self.epoch, "offset": self.offset + batches * self.global_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the position of another run's checkpoint."""
        self.set_epoch(**state)
        if self.remaining() == 0:  # the last batch, of this size, would be incomplete, and is dropped
            self.set_epoch(self.epoch + 1)

    def remaining(self) -> int:
        """Batches of this epoch from `offset` on."""
        full, rest = divmod(self.length - self.offset, self.global_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __len__(self) -> int:
        """Batches of a full epoch."""
        full, rest = divmod(self.length, self.global_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])).permutation(self.length)
        for batch in range(self.remaining()):
            start = self.offset + batch * self.global_size
            shard = take_shard(order[start : start + self.global_size], self.rank, self.world_size)
            yield [(self.epoch, int(index)) for index in shard]
