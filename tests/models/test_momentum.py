"""The queues against lists, the momentum update against a loop, the filter's threshold against numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hf_cots import COTSForPreTraining
from hf_cots.models.ema import parameters_outside, update_momentum
from hf_cots.models.queues import KeyQueue, ScoreQueue
from tests.support.runs import assert_same_weights
from tests.support.tiny import tiny_config
from tests.support.tiny_cookie import tiny_cookie
from tests.support.tiny_simla import tiny_simla


class SlowQueue:
    """A list of (slot contents) with a write position: what [`KeyQueue`] must equal."""

    def __init__(self, size):
        self.slots, self.position, self.size = [None] * size, 0, size

    def enqueue(self, rows):
        for row in rows[max(0, len(rows) - self.size) :]:
            self.slots[self.position] = row
            self.position = (self.position + 1) % self.size


def key_of(pair, modality):
    """A key that tells which pair and modality it came from."""
    return [float(pair), float(modality), pair / 7]


def feed(queue, first, count):
    pairs = range(first, first + count)
    image_keys, text_keys = (torch.tensor([key_of(p, m) for p in pairs]) for m in (0, 1))
    queue.enqueue(image_keys, text_keys, torch.tensor([1000 + p for p in pairs]), torch.tensor(list(pairs)))
    return list(pairs)


# 4 divides neither 10 nor its wrap-around; 10 and 10 fill the queue exactly, twice; 25 are more than it holds.
BATCHES = ([3, 3], [4, 4, 4], [10, 10], [25], [7, 23, 1, 9, 10, 2], [1] * 23)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_queue_equals_a_list_through_wrap_around(batches):
    queue, slow, seen = KeyQueue(10, 3), SlowQueue(10), 0
    for count in batches:
        slow.enqueue(feed(queue, seen, count))
        seen += count
        assert int(queue.filled) == min(seen, 10)
        assert int(queue.pointer) == slow.position
        empty = queue.invalid_negatives(torch.tensor([-1]))[0]
        for slot, pair in enumerate(slow.slots):
            assert bool(empty[slot]) == (pair is None)
            if pair is not None:  # slot j of both buffers and of the ids belongs to the same pair
                assert queue.image_keys[slot].tolist() == pytest.approx(key_of(pair, 0))
                assert queue.text_keys[slot].tolist() == pytest.approx(key_of(pair, 1))
                assert int(queue.image_ids[slot]) == 1000 + pair
                assert int(queue.pair_index[slot]) == pair


def test_the_newest_pairs_of_a_large_batch_are_kept():
    queue = KeyQueue(4, 3)
    feed(queue, 0, 11)
    assert sorted(queue.image_ids.tolist()) == [1007, 1008, 1009, 1010]


def test_no_negative_masks_empty_slots_and_the_own_image():
    queue = KeyQueue(6, 3)
    keys = torch.rand(4, 3)
    queue.enqueue(keys, keys, torch.tensor([5, 7, 5, 0]), torch.arange(4))
    mask = queue.invalid_negatives(torch.tensor([5, 0, 99]))
    assert mask.tolist() == [
        [True, False, True, False, True, True],
        [False, False, False, True, True, True],
        [False, False, False, False, True, True],
    ]


def test_queue_state_survives_a_resume():
    """A queue restored from its state dict goes on exactly as the one that was not interrupted."""
    queue = KeyQueue(10, 3)
    feed(queue, 0, 13)
    resumed = KeyQueue(10, 3)
    resumed.load_state_dict(copy.deepcopy(queue.state_dict()))
    names = {"image_keys", "text_keys", "image_ids", "pair_index", "pointer", "filled"}
    assert set(queue.state_dict()) == names
    scores, resumed_scores = ScoreQueue(6), ScoreQueue(6)
    scores.enqueue(torch.rand(8))
    resumed_scores.load_state_dict(copy.deepcopy(scores.state_dict()))
    more = torch.rand(3)
    for keys, one in ((queue, scores), (resumed, resumed_scores)):
        feed(keys, 13, 4)
        one.enqueue(more)
    assert_same_weights(dict(resumed.named_buffers()), dict(queue.named_buffers()))
    assert_same_weights(dict(resumed_scores.named_buffers()), dict(scores.named_buffers()))
    assert scores.threshold(1.0) == resumed_scores.threshold(1.0) > -torch.inf


def test_enqueue_takes_no_gradient_and_keeps_the_queue_dtype():
    queue = KeyQueue(4, 3)
    keys = torch.rand(2, 3, dtype=torch.bfloat16, requires_grad=True)
    queue.enqueue(keys, keys, torch.arange(2), torch.arange(2))
    assert queue.image_keys.dtype == torch.float32
    assert not queue.image_keys.requires_grad
    assert torch.equal(queue.text_keys[:2], keys.detach().float())


def test_momentum_update_equals_a_loop():
    torch.manual_seed(1)
    online, follower = (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double() for _ in range(2))
    online.add_module("extra", nn.Linear(2, 2).double())  # the online side may own more
    expected = []
    for (_, target), source in zip(follower.named_parameters(), online.parameters()):
        values = [0.9 * t + 0.1 * s for t, s in zip(target.flatten().tolist(), source.flatten().tolist())]
        expected.append(torch.tensor(values, dtype=torch.float64).view_as(target))
    before = [p.clone() for p in online.parameters()]
    update_momentum(follower, online, 0.9)
    for parameter, wanted in zip(follower.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(before, online.parameters())), "the online side must not move"


def test_momentum_zero_copies_exactly():
    online, follower = nn.Linear(3, 4), nn.Linear(3, 4)
    update_momentum(follower, online, 0.0)
    assert torch.equal(follower.weight, online.weight)
    assert follower.weight.data_ptr() != online.weight.data_ptr()


def test_momentum_update_matches_by_name_and_refuses_an_unknown_one():
    class Reordered(nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in names:
                self.register_parameter(name, nn.Parameter(torch.rand(2)))

    online, follower = Reordered("a", "b"), Reordered("b", "a")
    update_momentum(follower, online, 0.0)
    assert torch.equal(follower.a, online.a)
    assert torch.equal(follower.b, online.b)
    with pytest.raises(KeyError, match="c"):
        update_momentum(Reordered("a", "c"), online, 0.5)


@pytest.mark.parametrize("batches", [[5, 5, 5], [23], [4, 9, 2, 8]], ids=str)
def test_threshold_equals_numpy_over_the_newest_scores(batches):
    queue, rng, history = ScoreQueue(10), np.random.default_rng(0), []
    for count in batches:
        scores = rng.normal(0.3, 0.2, count)
        history.extend(scores)
        queue.enqueue(torch.tensor(scores, dtype=torch.float32))
        if len(history) < 10:
            assert queue.threshold(2.0) == -torch.inf
        else:
            newest = np.array(history[-10:])
            for lam in (0.0, 1.0, 2.5):
                assert float(queue.threshold(lam)) == pytest.approx(newest.mean() - lam * newest.std(), abs=1e-6)


@pytest.mark.parametrize("make", [lambda: COTSForPreTraining(tiny_config()), tiny_simla, tiny_cookie])
def test_all_of_a_momentum_encoder_follows_and_each_parameter_once(make):
    for follower, _ in make().ema_pairs:
        names = [name for name, _ in parameters_outside(follower, ())]
        assert sorted(names) == sorted(name for name, _ in follower.named_parameters())
