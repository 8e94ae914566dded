"""SIMLA's own loss functions, one by one."""

import pytest
import torch

from hf_cots.models import losses_simla as simla
from tests.support import reference_simla as slow


def test_distilled_cross_entropy_equals_the_loop():
    logits, teacher = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    targets, a = torch.tensor([0, 6, 3, 3, 1]), 0.3
    ours = simla.distilled_cross_entropy(logits, targets, teacher, a)
    expected = torch.stack([slow.distilled(x, t, y, a) for x, t, y in zip(logits, targets, teacher)])
    torch.testing.assert_close(ours, expected)
    hard = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(simla.distilled_cross_entropy(logits, targets, None, a), hard)
    torch.testing.assert_close(simla.distilled_cross_entropy(logits, targets, teacher, 0.0), hard)


def test_masked_classes_of_the_lowest_logit_give_no_nan():
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([[1.0, lowest, 2.0]], requires_grad=True)
    loss = simla.distilled_cross_entropy(logits, torch.tensor([0]), torch.tensor([[0.5, lowest, 0.1]]), 0.4)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 0


def test_keyword_loss_equals_the_loop():
    logits, teacher = torch.randn(3, 11).double(), torch.randn(3, 11).double()
    y = (torch.rand(3, 11) < 0.3).double()
    q = 1 / (1 + torch.exp(-teacher))
    expected = [0.7 * slow.binary(x, t) + 0.3 * slow.binary(x, p) for x, t, p in zip(logits, y, q)]
    torch.testing.assert_close(simla.keyword_loss(logits, y, teacher, 0.3), torch.stack(expected))
    torch.testing.assert_close(
        simla.keyword_loss(logits, y, None, 0.3), torch.stack(list(map(slow.binary, logits, y)))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, teacher, targets = torch.randn(4, 50).to(dtype), torch.randn(4, 50).to(dtype), torch.arange(4)
    ours = simla.distilled_cross_entropy(logits, targets, teacher, 0.4)
    assert torch.equal(ours, simla.distilled_cross_entropy(logits.float(), targets, teacher.float(), 0.4))
    labels = torch.rand(4, 50)
    assert torch.equal(
        simla.keyword_loss(logits, labels, teacher, 0.4),
        simla.keyword_loss(logits.float(), labels, teacher.float(), 0.4),
    )


def test_hard_negatives_follow_the_softmax():
    """20,000 draws of each row: fractions within five standard deviations of the probabilities."""
    similarities = torch.tensor(
        [[5.0, 1.0, 0.0, 2.0], [0.0, 9.0, 0.0, 0.0], [1.0, 1.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0]]
    )
    allowed = ~torch.eye(4, dtype=torch.bool)
    allowed[2, 3] = allowed[3, 2] = False
    weights = similarities.softmax(dim=1) * allowed
    expected = weights / weights.sum(dim=1, keepdim=True)
    draws = 20_000
    counts = torch.zeros(4, 4)
    for _ in range(draws // 100):
        rows, exists = simla.hard_negatives(similarities.repeat(100, 1), allowed.repeat(100, 1))
        assert exists.all()
        counts += torch.nn.functional.one_hot(rows.view(100, 4), 4).sum(dim=0)
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 5 * deviation).all()
    assert (counts[~allowed] == 0).all()


def test_a_row_whose_probabilities_have_vanished_is_drawn_uniformly():
    """The own partner has taken all: exp(-1000) is 0 in any precision."""
    similarities = torch.full((4, 4), -1000.0).fill_diagonal_(0)
    assert similarities.softmax(dim=1)[0, 1] == 0
    allowed = ~torch.eye(4, dtype=torch.bool)
    seen = torch.stack([simla.hard_negatives(similarities, allowed)[0] for _ in range(300)])
    for row in range(4):
        counts = torch.bincount(seen[:, row], minlength=4)
        assert counts[row] == 0
        assert counts.sum() - counts.max() > 150
        assert (counts > 60).sum() == 3


def test_without_a_negative_it_is_said():
    rows, exists = simla.hard_negatives(
        torch.zeros(3, 3), torch.tensor([[False] * 3, [True, False, True], [False] * 3])
    )
    assert exists.tolist() == [False, True, False]
    assert rows[1] in (0, 2)
    assert ((rows >= 0) & (rows < 3)).all()
    rows, exists = simla.hard_negatives(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    assert rows.tolist() == [0]
    assert exists.tolist() == [False]


def test_keywords_of_a_hand_made_attention():
    """Three heads of two votes. Votes: position 2 has 3, 4 has 2, 5 has 1; the special 0 and the padding 6 none."""
    heads = (
        [0.50, 0.00, 0.20, 0.05, 0.15, 0.10, 0.00],
        [0.30, 0.01, 0.25, 0.04, 0.30, 0.10, 0.00],
        [0.10, 0.05, 0.40, 0.05, 0.10, 0.20, 0.10],
    )
    attention = torch.tensor(heads)[None]
    may_vote = torch.tensor([[False, True, True, True, True, True, False]])
    chosen = simla.keyword_positions(attention, may_vote, votes_per_head=2, num_keywords=2)
    assert chosen[0].nonzero().flatten().tolist() == [2, 4]
    chosen = simla.keyword_positions(attention, may_vote, votes_per_head=2, num_keywords=5)
    assert chosen[0].nonzero().flatten().tolist() == [2, 4, 5], "a position without a vote is no keyword"
    as_authors = simla.keyword_positions(attention, torch.ones_like(may_vote), votes_per_head=2, num_keywords=1)
    assert as_authors[0].nonzero().flatten().tolist() == [0], "the first token votes and wins where all may"


def test_equal_votes_are_told_apart_by_attention():
    attention = torch.tensor([[[0.1, 0.3, 0.2, 0.4]]])
    chosen = simla.keyword_positions(attention, torch.ones(1, 4, dtype=torch.bool), votes_per_head=4, num_keywords=2)
    assert chosen[0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_keywords_equal_the_loop(length):
    attention = torch.rand(20, 12, length).softmax(dim=-1)
    may_vote = torch.rand(20, length) < 0.7
    ours = simla.keyword_positions(attention, may_vote)
    for row in range(20):
        assert set(ours[row].nonzero().flatten().tolist()) == slow.keywords(attention[row], may_vote[row])


def test_multi_hot_marks_each_chosen_word_once():
    ids = torch.tensor([[3, 5, 5, 1], [2, 0, 0, 0]])
    chosen = torch.tensor([[False, True, True, True], [False, False, False, False]])
    assert simla.multi_hot(ids, chosen, 6).tolist() == [[0, 1, 0, 0, 0, 1], [0] * 6]
