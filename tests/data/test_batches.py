"""The order of the pairs: a permutation per epoch, cut into shards that make up the global batch."""

import numpy as np
import pytest

from hf_cots.data.batches import PairBatches


def epoch_of(seed, epoch, length=50, size=8, **shard):
    batches = PairBatches(length, size, seed, **shard)
    batches.set_epoch(epoch)
    return list(batches)


def flat(batches):
    return [key for batch in batches for key in batch]


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    np.random.seed(0)
    first = epoch_of(3, 5)
    np.random.seed(1)
    assert epoch_of(3, 5) == first
    assert [epoch for epoch, _ in flat(first)] == [5] * 50
    assert sorted(index for _, index in flat(first)) == list(range(50))
    orders = [[i for _, i in flat(epoch_of(seed, epoch))] for seed, epoch in ((3, 5), (3, 6), (4, 5), (5, 3))]
    assert len({tuple(each) for each in orders}) == 4


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 24, 25, 27, 31, 50])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_shards_of_all_ranks_are_the_batch_of_one_process(length, ranks):
    """Also of the last batch, which may hold fewer pairs than there are ranks."""
    whole = epoch_of(1, 2, length, 8)
    shards = [epoch_of(1, 2, length, 8 // ranks, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert all(len(shard) == len(whole) for shard in shards)
    for batch, *parts in zip(whole, *shards):
        assert flat(parts) == batch
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("length", "full", "all_of_it"), [(50, 6, 7), (48, 6, 6), (7, 0, 1)])
def test_lengths_with_and_without_the_ragged_batch(length, full, all_of_it):
    assert len(PairBatches(length, 8)) == all_of_it == len(epoch_of(0, 0, length))
    assert len(PairBatches(length, 8, drop_last=True)) == full == len(epoch_of(0, 0, length, drop_last=True))
    assert epoch_of(0, 0, length)[:full] == epoch_of(0, 0, length, drop_last=True)


@pytest.mark.parametrize("size", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("stop", range(1, 8))
def test_an_epoch_goes_on_with_the_next_pair_in_batches_of_another_size(size, stop):
    """50 pairs in batches of eight; behind the seventh, the ragged one, the next epoch begins."""
    first = PairBatches(50, 8, 3)
    first.set_epoch(2)
    whole = list(first)
    position = first.state_dict(stop)
    assert position == ({"epoch": 2, "offset": 8 * stop} if stop < 7 else {"epoch": 3, "offset": 0})
    batches = PairBatches(50, size, 3)
    batches.load_state_dict(position)
    pairs = flat(whole[stop:]) or flat(epoch_of(3, 3))
    assert flat(batches) == pairs
    assert batches.remaining() == len(list(batches))
    assert batches.state_dict(batches.remaining()) == {"epoch": position["epoch"] + 1, "offset": 0}


def test_an_epoch_whose_rest_is_dropped_is_over():
    batches = PairBatches(50, 16, drop_last=True)
    batches.load_state_dict({"epoch": 2, "offset": 40})
    assert (batches.epoch, batches.offset) == (3, 0)
