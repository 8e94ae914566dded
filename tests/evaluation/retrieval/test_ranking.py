"""Streaming ranks against sorting; exact scores, whatever the block, the shard or the position in the gallery."""

import sys

import numpy as np
import pytest
import torch

from hf_cots.evaluation.retrieval import ranking
from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.metrics import concatenate
from hf_cots.evaluation.retrieval.ranking import Scores, count_above, nearest, rank_queries
from tests.support.brute import metrics_of_order
from tests.support.embeddings import assert_close, assert_same, equal, many_to_many, unit
from tests.support.processes import run_python


@pytest.mark.parametrize("classes", [6, 40])  # more, and fewer, answers than `FEW_LEVELS`
def test_ranks_equal_a_loop_that_sorts(classes):
    queries, gallery, query_ids, gallery_ids = many_to_many(classes=classes)
    counts = (query_ids[:, None] == gallery_ids).sum(dim=1)
    assert (counts.max() > ranking.FEW_LEVELS) == (classes == 6)
    columns = rank_queries(queries, gallery, query_ids, gallery_ids)
    scores = queries.double() @ gallery.double().T
    for query in range(len(queries)):
        order = scores[query].argsort(descending=True)
        expected = metrics_of_order((gallery_ids[order] == query_ids[query]).tolist())
        for name, value in expected.items():
            assert columns[name][query] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("classes", [6, 40])
@pytest.mark.parametrize("block", [1, 3, 16, 1000])
def test_the_size_of_a_block_changes_no_bit(classes, block):
    task = many_to_many(classes=classes)
    assert_same(rank_queries(*task, block=block), rank_queries(*task))


@pytest.mark.parametrize("shards", [2, 3, 60])  # more shards than queries, too
def test_concatenated_shards_are_bit_for_bit_the_complete_result(shards):
    task = many_to_many()
    parts = [rank_queries(*task, shard=(i, shards)) for i in range(shards)]
    assert_same(concatenate(parts), rank_queries(*task))


def test_a_constant_model_is_exactly_at_chance_whatever_its_vector():
    """Equal rows must tie wherever a matrix product puts them; a float32 product does not grant that."""
    vector = unit(1, 257, seed=3)
    ids = torch.arange(313)
    queries, gallery = vector.expand(313, -1), vector.expand(313 * 4, -1)
    direction = rank_direction(queries, gallery, ids, ids.repeat(4))
    assert direction.metrics() == direction.chance()
    direction = rank_direction(gallery, queries, ids.repeat(4), ids)
    assert direction.metrics() == direction.chance()


def test_equal_entries_tie_wherever_they_stand():
    queries, entry = unit(37, 200), unit(1, 200, seed=1)
    tiles = [tile for _, tile in Scores(queries, entry.expand(1003, -1)).tiles(slice(0, 37), 256)]
    scores = np.concatenate(tiles, axis=1)
    assert equal(scores, np.repeat(scores[:, :1], 1003, axis=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1.0, 1.0000001, 1.41, 37.0, 1e-6])
def test_scores_are_within_the_rounding_of_the_embeddings(dtype, length):
    queries, gallery = length * unit(9, 300, dtype=dtype), length * unit(11, 300, seed=1, dtype=dtype)
    ((_, tile),) = Scores(queries, gallery).tiles(slice(0, 9), 11)
    exact = (queries.double() @ gallery.double().T).numpy()
    assert np.abs(tile - exact).max() < 5e-8 * length**2
    row, column = np.meshgrid(np.arange(9), np.arange(11), indexing="ij")
    assert equal(Scores(queries, gallery).pairs(row.flatten(), column.flatten()).reshape(9, 11), tile)


def test_integers_stay_below_the_limit_of_exactness():
    """Worst cases: all the weight in one component, and equal weight in all."""
    for vector in (torch.eye(1, 4096), torch.full((1, 4096), 1 / 64)):
        for length in (0.71, 1.0, 1.4, 1.404, 1.405, 1.99):
            fixed = ranking.FixedPoint(length * vector.double(), "query")[slice(0, 1)]
            assert float((fixed * fixed).sum()) < 2**53


def test_counting_by_comparison_and_by_search_agree(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(12, (5, 200), generator=generator).double()
    levels = torch.randint(12, (5, 7), generator=generator).double().sort(dim=1, descending=True).values
    levels[0, :3] = torch.inf
    expected = (scores[:, None] > levels[..., None]).sum(dim=2), (scores[:, None] >= levels[..., None]).sum(dim=2)
    for few_levels in (ranking.FEW_LEVELS, 0):
        monkeypatch.setattr(ranking, "FEW_LEVELS", few_levels)
        assert all(equal(found, slow) for found, slow in zip(count_above(scores.numpy(), levels.numpy()), expected))


def test_a_query_with_very_many_answers_does_not_widen_the_levels_of_the_others(monkeypatch):
    """Then blocks shrink, and nothing changes."""
    task = list(many_to_many(queries=40, gallery=400, classes=4))
    expected = rank_queries(*task)
    sizes = []
    inner = ranking.count_above
    monkeypatch.setattr(
        ranking, "count_above", lambda scores, levels: sizes.append(levels.shape) or inner(scores, levels)
    )
    assert_same(rank_queries(*task, block=16), expected)
    assert max(rows * places for rows, places in sizes) <= 4 * 16**2


@pytest.mark.parametrize("k", [1, 3, 100])
def test_nearest_equals_sorting(k):
    queries, gallery, *_ = many_to_many()
    gallery[10] = gallery[3]  # a tie: the lower index comes first
    scores = queries.double() @ gallery.double().T
    scores[:, 10] = scores[:, 3]
    values, order = scores.sort(dim=1, descending=True, stable=True)
    best, where = nearest(queries, gallery, k, block=4)
    assert equal(where, order[:, :k])
    assert_close(best, values[:, :k], rtol=0, atol=5e-8)


def test_a_missing_answer_is_named_in_every_shard():
    queries, gallery = unit(4, 8), unit(3, 8)
    for shard in ((0, 2), (1, 2)):
        with pytest.raises(ValueError, match="query 3 has no correct answer"):
            rank_queries(queries, gallery, torch.tensor([0, 1, 2, 9]), torch.arange(3), shard=shard)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_mapped_embeddings_and_scores_are_not_held_in_memory(tmp_path):
    """205 MB of embeddings and 160 MB of scores for a process that may hold a fraction of either."""
    script = tmp_path / "measure.py"
    script.write_text(
        "import sys, threading, numpy\n"
        "from pathlib import Path\n"
        "from hf_cots.evaluation.retrieval.ranking import rank_queries\n"
        "def held():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.split('RssAnon:')[1].split()[0]) / 1000\n"
        "embeds = numpy.load(sys.argv[1], mmap_mode='r')\n"
        "ids = numpy.arange(len(embeds))\n"
        "rank_queries(embeds[:2], embeds[:2], ids[:2], ids[:2])\n"
        "before, peak, done = held(), 0, threading.Event()\n"
        "def watch():\n"
        "    global peak\n"
        "    while not done.wait(0.002): peak = max(peak, held())\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        "rank_queries(embeds[:200], embeds, ids[:200], ids, block=128)\n"
        "done.set(); thread.join()\n"
        "print(peak - before)\n"
    )
    np.save(tmp_path / "embeds.npy", torch.randn(100_000, 512).numpy())
    done = run_python(script, tmp_path / "embeds.npy")
    assert float(done.stdout) < 40, done.stderr[-2000:]
