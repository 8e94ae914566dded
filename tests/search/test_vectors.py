"""Search over kept vectors, exact and by signs, against brute force in float64."""

import numpy as np
import pytest

from hf_cots.search import vectors
from hf_cots.search.vectors import DTYPES, nearest, nearest_by_signs, pack, packing_error, sign_bits, unpack


def unit(count, dim=24, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(rows, query, k, allowed=None):
    """Rows and scores, by falling score and then by row; with all ties of the last."""
    scores = unpack(rows).astype(np.float64) @ query.astype(np.float64)
    numbers = [i for i in range(len(rows)) if allowed is None or allowed[i]]
    numbers.sort(key=lambda i: (-scores[i], i))
    k = min(k, len(numbers))
    return numbers[: k + sum(scores[i] >= scores[numbers[k - 1]] for i in numbers[k:])], scores


@pytest.fixture(params=["faiss", "numpy"])
def engine(request, monkeypatch):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(vectors, "load_faiss", lambda: None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [None, 0.9, 0.5, 0.1, 0.002])
def test_equals_brute_force(engine, monkeypatch, dtype, share):
    monkeypatch.setattr(vectors, "BLOCK", 300)
    rows = pack(unit(1000), dtype)
    allowed = None if share is None else np.random.default_rng(1).random(1000) < share
    for k in (1, 10, 100, 5000):
        for query in unit(3, seed=2):
            found, scores = nearest(rows, query, k, allowed)
            expected, exact = brute_force(rows, query, k, allowed)
            assert found.tolist() == expected
            np.testing.assert_allclose(scores, exact[expected], atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_tie_come_in_their_order_and_all_of_them(engine, dtype):
    few = unit(5)
    rows = pack(np.concatenate([few] * 40), dtype)
    found, scores = nearest(rows, few[3], 3)
    assert found.tolist() == list(range(3, 200, 5))
    assert len(set(scores.tolist())) == 1


def test_the_best_rows_are_found_below_many_that_do_not_count(engine):
    query = unit(1)[0]
    rows = np.concatenate([np.repeat(query[None], 900, axis=0), unit(100, seed=3)])
    allowed = np.arange(1000) >= 500
    allowed[500:900] = False
    found, _ = nearest(rows, query, 10, allowed)
    assert found.tolist() == brute_force(rows, query, 10, allowed)[0]
    assert found.min() >= 900


def test_nothing_to_find(engine):
    rows = pack(unit(4), "float32")
    assert nearest(rows, unit(1)[0], 3, np.zeros(4, dtype=bool))[0].tolist() == []
    assert nearest(rows[:0], unit(1)[0], 3)[0].tolist() == []


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0), ("float16", 1e-3), ("int8", 2e-2)])
def test_the_packing_error_bounds_every_score(dtype, most):
    embeds = unit(500)
    bound = packing_error(embeds, dtype)
    assert bound <= most
    scores = np.abs((unpack(pack(embeds, dtype)) - embeds) @ unit(200, seed=5).T).max()
    assert scores <= bound + 1e-7
    assert dtype == "float32" or scores > 0
    kept = np.linalg.norm(unpack(pack(embeds, dtype)), axis=1)
    np.testing.assert_allclose(kept, 1, atol=1e-3)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="float32, float16, int8, binary, not 'int4'"):
        vectors.row_type(4, "int4")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [12, 24, 32, 64])
def test_the_search_by_signs_scores_the_rows_of_the_fewest_other_signs(monkeypatch, dtype, dim):
    monkeypatch.setattr(vectors, "BLOCK", 300)
    rows, allowed = pack(unit(1000, dim), dtype), np.random.default_rng(1).random(1000) < 0.7
    bits, decoded = sign_bits(rows), unpack(rows)
    assert (bits.dtype, bits.shape) == (np.uint8, (1000, -(-dim // 8)))
    for query in unit(5, dim, seed=2):
        for mask in (None, allowed):
            others = [int(((query > 0) != (row > 0)).sum()) for row in decoded]
            counted = np.arange(1000) if mask is None else np.flatnonzero(mask)
            found, scores = nearest_by_signs(rows, bits, query, 10, 100, mask)
            exact = decoded.astype(np.float64) @ query.astype(np.float64)
            np.testing.assert_allclose(scores, exact[found], atol=1e-12)
            assert scores.tolist() == sorted(scores, reverse=True)
            hundredth = sorted(others[i] for i in counted)[99]
            assert all(others[i] <= hundredth for i in found)
            surely = [i for i in counted if others[i] < hundredth]  # of those that are level any may be left out
            assert scores[0] >= max(exact[surely]) - 1e-12
            assert (
                nearest_by_signs(rows, bits, query, 10, 1000, mask)[0].tolist()
                == nearest(rows, query, 10, mask)[0].tolist()
            )
    assert len(nearest_by_signs(rows[:0], bits[:0], unit(1, dim)[0], 10, 100)[0]) == 0
