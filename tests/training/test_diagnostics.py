"""The signs of a run going wrong, against loops."""

import pytest
import torch
import torch.nn.functional as F

from hf_cots import COTSForPreTraining
from hf_cots.training.diagnostics import batch_accuracy, embedding_variance, similarity_to_queue
from tests.support.embeddings import unit
from tests.support.tiny import tiny_config


def loop_accuracy(images, texts, ids):
    hits = 0
    for queries, gallery in ((images, texts), (texts, images)):
        for i in range(len(ids)):
            rivals = [j for j in range(len(ids)) if j == i or ids[j] != ids[i]]
            scores = {j: float(queries[i] @ gallery[j]) for j in rivals}
            hits += max(scores, key=scores.get) == i
    return hits / (2 * len(ids))


@pytest.mark.parametrize("seed", range(4))
def test_batch_accuracy_equals_a_loop(seed):
    images = unit(12, 5, seed=seed)
    texts = F.normalize(images + 0.7 * unit(12, 5, seed=seed + 50), dim=1)
    ids = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 7])
    expected = loop_accuracy(images, texts, ids)
    assert 0 < expected < 1
    assert batch_accuracy(images, texts, ids).item() == pytest.approx(expected)


def test_batch_accuracy_of_a_collapsed_model_is_chance():
    same = torch.ones(8, 3)
    assert batch_accuracy(same, same, torch.arange(8)).item() == pytest.approx(1 / 8)


def test_captions_of_one_image_do_not_compete():
    """Three captions of an image are equally good answers: none of them is a mistake."""
    images, ids = unit(2, 5).repeat_interleave(3, dim=0), torch.tensor([4, 4, 4, 9, 9, 9])
    assert batch_accuracy(images, images, ids).item() == 1


def test_embedding_variance():
    assert embedding_variance(torch.tensor([[0.6, 0.8]] * 5)).item() == pytest.approx(0, abs=1e-6)
    assert embedding_variance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(1)
    embeds = unit(9, 5)
    pairwise = sum(float(a @ b) for a in embeds for b in embeds) / 81
    assert embedding_variance(embeds).item() == pytest.approx(1 - pairwise, abs=1e-6)


@pytest.mark.parametrize(("stored", "step"), [(6, 6), (20, 8), (50, 8), (50, 40), (9, 4)])
def test_similarity_to_current_and_older_keys_equals_a_loop(stored, step):
    """The queue of 32 is part full, full, wrapped around, or smaller than the step."""
    model = COTSForPreTraining(tiny_config(mvm_weight=0, mlm_weight=0))
    keys, ids = unit(stored, 16, seed=1), torch.arange(stored) // 2
    for first in range(0, stored - step, 7):
        part = slice(first, min(first + 7, stored - step))
        model.key_queue.enqueue(unit(stored, 16, seed=2)[part], keys[part], ids[part], ids[part])
    model.key_queue.enqueue(unit(step, 16, seed=3), keys[-step:], ids[-step:], ids[-step:])
    images, image_ids = unit(5, 16, seed=4), ids[-5:]
    found = similarity_to_queue(model, images, image_ids, step)
    current, older = [], []
    for i in range(5):
        for j in range(max(0, stored - 32), stored):
            if ids[j] != image_ids[i]:
                (current if j >= stored - step else older).append(float(images[i] @ keys[j]))
    for name, values in (("sim_current_keys", current), ("sim_queued_keys", older)):
        expected = sum(values) / max(1, len(values))
        assert found[name].item() == pytest.approx(expected, abs=1e-6)


def test_the_staleness_shortcut_shows():
    """Keys that drifted together: current and older negatives differ."""
    model = COTSForPreTraining(tiny_config(mvm_weight=0, mlm_weight=0))
    drift = torch.zeros(16)
    drift[0] = 3
    old, new = (F.normalize(unit(16, 16, seed=s) + sign * drift, dim=1) for s, sign in ((1, -1), (2, 1)))
    for n, keys in enumerate((old, new)):
        model.key_queue.enqueue(keys, keys, *2 * [16 * n + torch.arange(16)])
    found = similarity_to_queue(model, new, 16 + torch.arange(16), 16)
    assert found["sim_current_keys"] > 0.8
    assert found["sim_queued_keys"] < -0.8
