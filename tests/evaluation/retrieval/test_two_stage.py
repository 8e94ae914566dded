"""Fusion, candidate budget and ranking of two-stage search, against loops."""

import math

import numpy as np
import pytest
import torch

from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.ranking import nearest
from hf_cots.evaluation.retrieval.two_stage import rank_two_stage
from hf_cots.search.fusion import CandidateBudget, Fusion, rerank_order
from tests.support.embeddings import assert_same, equal


def data(queries=30, gallery=20, seed=0):
    """Embeddings, ids (each image of the gallery answers some queries, two answer each other's), and candidates."""
    source = torch.Generator().manual_seed(seed)
    q, g = (torch.nn.functional.normalize(torch.randn(n, 6, generator=source), dim=1) for n in (queries, gallery))
    gallery_ids = torch.arange(gallery)
    gallery_ids[1] = 0
    query_ids = gallery_ids[torch.randint(0, gallery, (queries,), generator=source)]
    return q.numpy(), g.numpy(), query_ids.numpy(), gallery_ids.numpy()


def slow_ranks(q, g, query_ids, gallery_ids, candidates, fused, counts):
    """Rank of the best correct answer of each query, by sorting lists."""
    ranks = []
    for i in range(len(q)):
        scored = list(zip(fused[i].tolist(), candidates[i].tolist()))[: int(counts[i])]
        first = [entry for _, entry in sorted(scored, key=lambda pair: -pair[0])]
        others = [j for j in range(len(g)) if j not in first]
        others.sort(key=lambda j: -float(q[i].astype(float) @ g[j].astype(float)))
        order = first + others
        ranks.append(1 + min(order.index(j) for j in range(len(g)) if gallery_ids[j] == query_ids[i]))
    return ranks


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ranks_equal_sorted_lists(k):
    q, g, query_ids, gallery_ids = data()
    _, candidates = nearest(q, g, k)
    fused = torch.randn(30, k, generator=torch.Generator().manual_seed(1)).double().numpy()
    counts = torch.randint(0, k + 1, (30,), generator=torch.Generator().manual_seed(2)).numpy()
    ours = rank_two_stage(q, g, query_ids, gallery_ids, candidates, fused, counts)
    expected = slow_ranks(q, g, query_ids, gallery_ids, candidates, fused, counts)
    assert ours.columns["rank"].tolist() == expected
    assert ours.columns["R@5"].tolist() == [100.0 * (rank <= 5) for rank in expected]


def test_without_a_second_stage_nothing_changes():
    q, g, query_ids, gallery_ids = data()
    plain = rank_direction(q, g, query_ids, gallery_ids)
    similarities, candidates = nearest(q, g, 8)
    nothing = np.full((30, 8), math.nan)  # scores of other entries are ignored
    for fused, count in ((nothing, 0), (similarities, 8)):
        ours = rank_two_stage(q, g, query_ids, gallery_ids, candidates, fused, np.full(30, count))
        assert_same(ours.columns, plain.columns)


def test_equal_scores_are_ties():
    """All candidates equal: the rank of one correct answer among 6 is 3.5 on average."""
    q, g, query_ids, gallery_ids = data(gallery=6)
    gallery_ids = np.arange(6)
    _, candidates = nearest(q, g, 6)
    fused, counts = np.zeros((30, 6)), np.full(30, 6)
    ours = rank_two_stage(q, g, query_ids % 6, gallery_ids, candidates, fused, counts)
    assert set(ours.columns["rank"].tolist()) == {3.5}


def test_a_perfect_reranker_lifts_r1_to_the_recall_of_the_candidates():
    q, g, query_ids, gallery_ids = data()
    _, candidates = nearest(q, g, 5)
    correct = gallery_ids[candidates] == query_ids[:, None]
    ours = rank_two_stage(q, g, query_ids, gallery_ids, candidates, correct.astype(float), np.full(30, 5))
    assert ours.metrics()["R@1"] == pytest.approx(rank_direction(q, g, query_ids, gallery_ids).metrics()["R@5"])


# ---------------------------------------------------------------------- fusion


def fusion_data(noise_first, noise_second, seed=0):
    source = torch.Generator().manual_seed(seed)
    correct = torch.zeros(200, 10, dtype=torch.bool)
    correct[torch.arange(200), torch.randint(0, 10, (200,), generator=source)] = True
    first = 0.1 * (correct + noise_first * torch.randn(200, 10, generator=source))
    second = 5 * (correct + noise_second * torch.randn(200, 10, generator=source))
    return first.double().numpy(), second.numpy(), correct.numpy()


def slow_reciprocal_rank(fused, correct):
    total = 0.0
    for scores, right in zip(fused.tolist(), correct.tolist()):
        best = max(s for s, r in zip(scores, right) if r)
        total += 1 / (1 + sum(s >= best for s, r in zip(scores, right) if not r))
    return total / len(fused)


def test_the_fitted_weight_is_the_best_of_the_grid():
    first, second, correct = fusion_data(0.5, 0.5)
    fitted = Fusion.fit(first, second, correct)
    scales = float(first.std()), float(second.astype(float).std())
    slow = [
        slow_reciprocal_rank(w / 40 * first / scales[0] + (1 - w / 40) * second.astype(float) / scales[1], correct)
        for w in range(41)
    ]
    assert fitted.weight == pytest.approx(np.argmax(slow) / 40)
    assert 0.2 < fitted.weight < 0.8, "two equally good stages have similar weights"
    assert max(slow) > slow[0] + 0.02
    assert max(slow) > slow[40] + 0.02


@pytest.mark.parametrize(("noises", "expected"), [((0.3, 1e6), 1.0), ((1e6, 0.0), 0.0)])
def test_a_useless_stage_gets_no_weight(noises, expected):
    assert Fusion.fit(*fusion_data(*noises)).weight == pytest.approx(expected, abs=0.05)


def test_fusion_without_answers_or_spread():
    first, second, correct = fusion_data(0.5, 0.5)
    with pytest.raises(ValueError, match="no validation query has a correct answer"):
        Fusion.fit(first, second, np.zeros_like(correct))
    constant = Fusion.fit(first, np.ones_like(second), correct)
    assert constant.weight > 0
    assert np.isfinite(constant(first, second)).all()


def test_the_default_ranks_by_the_reranker_alone():
    first, second, _ = fusion_data(0.5, 0.5)
    assert equal(Fusion()(first, second), second.astype(float))


# ---------------------------------------------------------------------- candidate budget


SIMILARITIES = np.array([[0.9, 0.5, 0.4, 0.3], [0.9, 0.88, 0.87, 0.2], [0.5, 0.5, 0.49, 0.48]], np.float32)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (CandidateBudget(4), [4, 4, 4]),
        (CandidateBudget(4, 0.05), [0, 3, 4]),
        (CandidateBudget(3, 0.05), [0, 3, 3]),
        (CandidateBudget(4, 0.0), [0, 0, 2]),
        (CandidateBudget(1), [0, 0, 0]),  # one candidate has no order
    ],
)
def test_candidates_within_a_margin(budget, expected):
    assert budget.num_candidates(SIMILARITIES).tolist() == expected


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("average", [0, 0.5, 3, 7.25, 100])
def test_the_budget_is_kept_and_used(average, most):
    similarities = torch.rand(50, 16, generator=torch.Generator().manual_seed(0)).double()
    similarities = similarities.sort(dim=1, descending=True).values.numpy()
    budget = CandidateBudget.from_pairs_per_query(similarities, average, most)
    assert budget.num_candidates(similarities).mean() <= average
    gaps = np.unique(similarities[:, :1] - similarities[:, :most])
    wider = gaps[gaps > budget.margin]
    if len(wider):
        assert CandidateBudget(most, float(wider[0])).num_candidates(similarities).mean() > average


def test_queries_in_doubt_get_more():
    similarities = SIMILARITIES[[0] * 5 + [2] * 5]
    counts = CandidateBudget.from_pairs_per_query(similarities, 2, 4).num_candidates(similarities)
    assert counts.tolist() == [0] * 5 + [4] * 5
    with pytest.raises(ValueError, match="pairs_per_query must not be negative, got -1"):
        CandidateBudget.from_pairs_per_query(similarities, -1, 4)


def test_the_order_of_one_query():
    assert rerank_order(np.array([0.1, 0.9, 0.9, 5.0]), 3).tolist() == [1, 2, 0, 3]
