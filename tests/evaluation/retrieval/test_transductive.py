"""Re-scoring block by block against its definition on the whole matrix of scores."""

import numpy as np
import pytest
import torch

from hf_cots.evaluation.retrieval import transductive
from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.transductive import dual_softmax, gallery_bias, querybank
from tests.support.embeddings import assert_close, assert_same, equal, unit


BETA = 20.0


def task(queries=60, gallery=40, bank=50, seed=0):
    """Images and noisy texts of them, with hubs: all entries lean towards one direction, some far more."""
    generator = torch.Generator().manual_seed(seed)
    hub = unit(1, 12, seed=9)
    entries = unit(gallery, 12, seed=seed) + hub * 1.5 * torch.rand(gallery, 1, generator=generator) ** 3
    ids = torch.randint(gallery, (queries,), generator=generator)
    texts = entries[ids] + 0.25 * torch.randn(queries, 12, generator=generator) + 0.3 * hub
    others = unit(bank, 12, seed=seed + 5) + 0.5 * hub
    return *(torch.nn.functional.normalize(x, dim=1) for x in (texts, entries, others)), ids, torch.arange(gallery)


def ranks(scores, query_ids):
    """Rank of the one right answer by sorting a whole matrix without ties."""
    own = scores.gather(1, query_ids[:, None])
    return (1 + (scores > own).sum(dim=1)).numpy()


def test_dual_softmax_is_the_product_of_both_softmaxes():
    texts, images, _, ids, image_ids = task()
    scores = BETA * texts.double() @ images.double().T
    expected = ranks(scores.softmax(dim=0) * scores.softmax(dim=1), ids)
    plain = rank_direction(texts, images, ids, image_ids)
    result = rank_direction(texts, images, ids, image_ids, rescoring=dual_softmax(texts, images, BETA))
    np.testing.assert_array_equal(result.columns["rank"], expected)
    assert not np.array_equal(plain.columns["rank"], expected)


def test_querybank_is_the_dynamic_inverted_softmax():
    texts, images, bank, ids, image_ids = task()
    scores, of_bank = texts.double() @ images.double().T, bank.double() @ images.double().T
    hubs = set(of_bank.argmax(dim=1).tolist())
    inverted = (BETA * scores).exp() / (BETA * of_bank).exp().sum(dim=0)
    met = torch.tensor([int(best) in hubs for best in scores.argmax(dim=1)])
    assert 0 < int(met.sum()) < len(met)
    expected = ranks(torch.where(met[:, None], inverted, scores), ids)
    rescoring = querybank(texts, images, bank, BETA)
    assert equal(rescoring.biased, met)
    result = rank_direction(texts, images, ids, image_ids, rescoring=rescoring)
    np.testing.assert_array_equal(result.columns["rank"], expected)
    assert not np.array_equal(ranks(scores, ids), expected)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_bias_does_not_depend_on_the_block(block):
    texts, images, *_ = task()
    exact = (BETA * texts.double() @ images.double().T).logsumexp(dim=0) / BETA
    assert_close(gallery_bias(texts, images, BETA, block), exact, rtol=0, atol=1e-7)


def test_a_steep_softmax_of_a_large_bank_does_not_overflow():
    texts, images, *_ = task()
    assert np.isfinite(gallery_bias(texts, images, 1e5)).all()


def test_ranks_with_a_bias_do_not_depend_on_the_block():
    texts, images, bank, ids, image_ids = task()
    rescoring = querybank(texts, images, bank, BETA)
    whole = rank_direction(texts, images, ids, image_ids, rescoring=rescoring)
    pieces = rank_direction(texts, images, ids, image_ids, block=3, rescoring=rescoring)
    assert_same(whole.columns, pieces.columns)


def test_a_constant_model_stays_at_chance():
    vector = unit(1, 77)
    texts, images, ids = vector.expand(939, -1), vector.expand(313, -1), torch.arange(313)
    for rescoring in (dual_softmax(texts, images), querybank(texts, images, texts)):
        direction = rank_direction(texts, images, ids.repeat(3), ids, rescoring=rescoring)
        assert direction.metrics() == direction.chance()


@pytest.mark.parametrize("beta", [0, -1, float("nan")])
def test_beta_must_be_positive(beta):
    texts, images, *_ = task()
    with pytest.raises(ValueError, match="beta must be above 0"):
        transductive.dual_softmax(texts, images, beta)
