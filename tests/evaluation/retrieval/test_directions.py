"""Recall@K against loops, and with a model."""

import json
import math
import statistics

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.evaluation.retrieval.directions import evaluate_retrieval, rank_direction
from hf_cots.evaluation.retrieval.metrics import KS, chance_level
from hf_cots.search.encoding import encode_images, encode_texts
from tests.support.worlds import all_pairs, draw, encoded, tiny_processor


def loop_metrics(queries, gallery, query_ids, gallery_ids):
    """Rank of the best correct answer by sorting; there are no ties in random data."""
    ranks = []
    for query, own in zip(queries.tolist(), query_ids.tolist()):
        scores = [sum(a * b for a, b in zip(query, entry)) for entry in gallery.tolist()]
        best_first = sorted(range(len(scores)), key=lambda j: -scores[j])
        ranks.append(1 + next(place for place, j in enumerate(best_first) if gallery_ids[j] == own))
    recalls = {f"R@{k}": 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in KS}
    return recalls | {"median_rank": statistics.median(ranks), "queries": len(queries), "gallery": len(gallery)}


def random_task(captions, seed=0, count=12):
    """Embeddings with some signal: each image with `captions` texts, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    ids = torch.arange(count).repeat(captions)[torch.randperm(captions * count, generator=generator)]
    texts = images[ids] + 1.5 * torch.randn(len(ids), 6, generator=generator, dtype=torch.float64)
    return images, texts, torch.arange(count), ids


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_a_loop(captions, seed):
    images, texts, image_ids, text_ids = random_task(captions, seed=seed)
    for task in ((texts, images, text_ids, image_ids), (images, texts, image_ids, text_ids)):
        expected = loop_metrics(*task)
        assert 0 < expected["R@1"] < 100
        metrics = rank_direction(*task).metrics()
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("gallery", [10, 37])
def test_a_constant_model_gets_exactly_the_chance_level(gallery):
    same, ids = torch.ones(gallery, 4), torch.arange(gallery)
    metrics = rank_direction(same, same, ids, ids).metrics()
    assert metrics == pytest.approx(chance_level(gallery, gallery), abs=1e-9)
    assert metrics["R@5"] == pytest.approx(500 / gallery, abs=1e-9)
    assert metrics["median_rank"] == (gallery + 1) / 2


def test_a_constant_model_with_five_captions_an_image():
    """Any of five correct answers among 60: 1 - C(55, K) / C(60, K)."""
    metrics = rank_direction(torch.ones(12, 4), torch.ones(60, 4), torch.arange(12), torch.arange(60) % 12).metrics()
    for k in KS:
        assert metrics[f"R@{k}"] == pytest.approx(100 * (1 - math.comb(55, k) / math.comb(60, k)), abs=1e-9)
    assert metrics["median_rank"] == pytest.approx(61 / 6)  # the expected least of 5 ranks among 60


@pytest.mark.parametrize(
    ("gallery", "gallery_ids", "r1", "median"),
    [
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1, 2, 3], 50, 1.5),  # a tie with a wrong answer counts half
        ([[0.1, 0.0], [0.9, 0.0], [0.5, 0.0]], [1, 1, 2], 100, 1),  # the best of several correct answers counts
    ],
)
def test_one_query(gallery, gallery_ids, r1, median):
    task = torch.tensor([[1.0, 0.0]]), torch.tensor(gallery), torch.tensor([1]), torch.tensor(gallery_ids)
    metrics = rank_direction(*task).metrics()
    assert (metrics["R@1"], metrics["R@5"], metrics["median_rank"]) == pytest.approx((r1, 100, median))


def test_an_even_number_of_ranks_has_the_mean_of_the_middle_ones_as_median():
    gallery = torch.eye(4)
    queries = torch.tensor([[4.0, 3, 2, 1], [4.0, 3, 2, 1]])
    assert rank_direction(queries, gallery, torch.tensor([0, 3]), torch.arange(4)).metrics()["median_rank"] == 2.5


@pytest.mark.parametrize(
    ("queries", "gallery", "query_ids", "message"),
    [
        (torch.ones(0, 3), torch.ones(3, 3), [], "0 queries, 3 gallery"),
        (torch.ones(2, 3), torch.ones(0, 3), [0, 1], "2 queries, 0 gallery"),
        (torch.ones(3, 3), torch.ones(3, 3), [0, 1, 9], "query 2 has no correct answer"),
        (
            torch.eye(3).index_fill(0, torch.tensor([1]), math.nan),
            torch.eye(3),
            [0, 1, 2],
            "1 query embeddings are not",
        ),
        (
            torch.eye(3),
            torch.eye(3).index_fill(0, torch.tensor([1]), math.nan),
            [0, 1, 2],
            "finite, the first is number 1",
        ),
    ],
)
def test_errors(queries, gallery, query_ids, message):
    with pytest.raises(ValueError, match=message):
        rank_direction(queries, gallery, torch.tensor(query_ids), torch.arange(len(gallery)), block=2)


# ---------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model(world):
    return AutoModel.from_pretrained(world.model).eval()


@pytest.fixture(scope="module")
def processor(world):
    return AutoProcessor.from_pretrained(world.model)


def test_encodings_are_normalized_and_independent_of_the_batch(model, processor):
    images = [image for _, image, _ in all_pairs()[:7]]
    texts = [caption for _, _, caption in all_pairs()[12:19]]  # of two lengths
    for encode, items in ((encode_images, images), (encode_texts, texts)):
        whole, pieces = encode(model, processor, items), encode(model, processor, items, batch_size=2)
        assert whole.shape == (7, 16)
        torch.testing.assert_close(whole.norm(dim=1), torch.ones(7))
        torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-5)  # float32 sums in another order
        assert encode(model, processor, []).shape == (0, 16)


def test_evaluation_equals_the_metrics_of_its_parts(world, model, processor):
    pairs = load_pairs(str(world.imagefolder))
    images = encode_images(model, processor, [image for _, image, _ in all_pairs()])
    texts = encode_texts(model, processor, [caption for _, _, caption in all_pairs()])
    results = evaluate_retrieval(model, processor, pairs, batch_size=64)
    ids = torch.arange(40)
    for direction, task in {"text_to_image": (texts, images), "image_to_text": (images, texts)}.items():
        expected = loop_metrics(*task, ids, ids)
        assert {name: results[direction][name] for name in expected} == pytest.approx(expected)


def test_a_broken_image_is_skipped_with_its_captions(model, caplog):
    images = [encoded(draw(colour, "circle", "left")) for colour in ("red", "green", "black")]
    table = {"image": [images[0], b"nothing", *images[1:]], "caption": [["a", "b"], ["c"], ["d"], ["e", "f"]]}
    results = evaluate_retrieval(model, tiny_processor(), PairDataset(datasets.Dataset.from_dict(table), name="x"))
    assert (results["text_to_image"]["queries"], results["text_to_image"]["gallery"]) == (5, 3)
    assert (results["image_to_text"]["queries"], results["image_to_text"]["gallery"]) == (3, 5)
    assert "x, row 1" in caplog.text


def test_a_file_named_by_several_rows_is_one_image_of_the_gallery(world, model, processor, tmp_path):
    """One caption a row, five rows an image, is how many CSV files look; a list a row means the same."""
    many, few = [], []
    for name, _, caption in all_pairs()[:10]:
        captions = [caption, f"a {caption}", f"the {caption}"]
        few.append({"image": str(world.imagefolder / name), "caption": captions})
        many += [{"image": str(world.imagefolder / name), "caption": each} for each in captions]
    results = []
    for name, rows in (("few", few), ("many", many)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        results.append(evaluate_retrieval(model, processor, load_pairs(str(path))))
    assert results[0] == results[1]
    assert results[0]["text_to_image"]["queries"] == 30
    assert results[0]["text_to_image"]["gallery"] == 10


def test_evaluation_takes_images_one_batch_at_a_time(world, model, processor, monkeypatch):
    sizes = []
    get_image_features = type(model).get_image_features

    def watched(self, pixel_values, **kwargs):
        sizes.append(len(pixel_values))
        return get_image_features(self, pixel_values, **kwargs)

    monkeypatch.setattr(type(model), "get_image_features", watched)
    evaluate_retrieval(model, processor, load_pairs(str(world.imagefolder)), batch_size=16)
    assert sizes == [16, 16, 8]
    assert np.sum(sizes) == 40
