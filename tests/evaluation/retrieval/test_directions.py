"""Recall@K against loops, and ties that give exactly the chance level."""

import json
import math
import statistics

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.evaluation.retrieval.directions import evaluate_retrieval, retrieval_metrics
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


def random_task(captions, pictures=12, seed=0):
    """Embeddings with some signal: each picture with `captions` texts, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(pictures, 6, generator=generator, dtype=torch.float64)
    ids = torch.arange(pictures).repeat(captions)[torch.randperm(captions * pictures, generator=generator)]
    texts = images[ids] + 1.5 * torch.randn(len(ids), 6, generator=generator, dtype=torch.float64)
    return images, texts, torch.arange(pictures), ids


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_a_loop(captions, seed):
    images, texts, image_ids, text_ids = random_task(captions, seed=seed)
    for task in ((texts, images, text_ids, image_ids), (images, texts, image_ids, text_ids)):
        expected = loop_metrics(*task)
        assert 0 < expected["R@1"] < 100
        metrics = retrieval_metrics(*task)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_the_size_of_a_block_changes_nothing(block):
    images, texts, image_ids, text_ids = random_task(5)
    assert retrieval_metrics(texts, images, text_ids, image_ids, block) == retrieval_metrics(
        texts, images, text_ids, image_ids
    )


@pytest.mark.parametrize("gallery", [10, 37])
def test_a_constant_model_gets_exactly_the_chance_level(gallery):
    same, ids = torch.ones(gallery, 4), torch.arange(gallery)
    metrics = retrieval_metrics(same, same, ids, ids)
    assert metrics == pytest.approx(chance_level(gallery, gallery), abs=1e-9)
    assert metrics["R@5"] == pytest.approx(500 / gallery, abs=1e-9)
    assert metrics["median_rank"] == (gallery + 1) / 2


def test_a_constant_model_with_five_captions_a_picture():
    """Any of five correct answers among 60: 1 - C(55, K) / C(60, K)."""
    images, texts = torch.ones(12, 4), torch.ones(60, 4)
    metrics = retrieval_metrics(images, texts, torch.arange(12), torch.arange(60) % 12)
    for k in KS:
        assert metrics[f"R@{k}"] == pytest.approx(100 * (1 - math.comb(55, k) / math.comb(60, k)), abs=1e-9)
    assert metrics["median_rank"] == pytest.approx(61 / 6)  # the expected least of 5 places among 60


def test_a_tie_with_a_wrong_answer_counts_half():
    queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    metrics = retrieval_metrics(queries, gallery, torch.tensor([1]), torch.tensor([1, 2, 3]))
    assert metrics["R@1"] == pytest.approx(50)
    assert metrics["R@5"] == 100
    assert metrics["median_rank"] == 1.5


def test_the_best_of_several_correct_answers_counts():
    queries = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[0.1, 0.0], [0.9, 0.0], [0.5, 0.0]])
    metrics = retrieval_metrics(queries, gallery, torch.tensor([1]), torch.tensor([1, 1, 2]))
    assert metrics["R@1"] == 100
    assert metrics["median_rank"] == 1


def test_an_even_number_of_ranks_has_the_mean_of_the_middle_ones_as_median():
    gallery = torch.eye(4)
    queries = torch.tensor([[4.0, 3, 2, 1], [4.0, 3, 2, 1]])
    assert retrieval_metrics(queries, gallery, torch.tensor([0, 3]), torch.arange(4))["median_rank"] == 2.5


def test_nothing_to_compare_is_an_error():
    some, none = torch.ones(2, 3), torch.ones(0, 3)
    ids, no_ids = torch.arange(2), torch.arange(0)
    with pytest.raises(ValueError, match="0 queries, 2 gallery"):
        retrieval_metrics(none, some, no_ids, ids)
    with pytest.raises(ValueError, match="2 queries, 0 gallery"):
        retrieval_metrics(some, none, ids, no_ids)


def test_a_query_without_an_answer_is_named():
    some = torch.ones(3, 3)
    with pytest.raises(ValueError, match="query 2 has no correct answer"):
        retrieval_metrics(some, some, torch.tensor([0, 1, 9]), torch.arange(3), block=2)


# ---------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model(world):
    return AutoModel.from_pretrained(world.model).eval()


@pytest.fixture(scope="module")
def processor(world):
    return AutoProcessor.from_pretrained(world.model)


def test_encodings_are_normalised_and_independent_of_the_batch(model, processor):
    pictures = [picture for _, picture, _ in all_pairs()[:7]]
    texts = [caption for _, _, caption in all_pairs()[12:19]]  # of two lengths
    for encode, items in ((encode_images, pictures), (encode_texts, texts)):
        whole, pieces = encode(model, processor, items), encode(model, processor, items, batch_size=2)
        assert whole.shape == (7, 16)
        torch.testing.assert_close(whole.norm(dim=1), torch.ones(7))
        torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-5)  # float32 sums in another order
        assert encode(model, processor, []).shape == (0, 16)


def test_evaluation_equals_the_metrics_of_its_parts(world, model, processor):
    pairs = load_pairs(str(world.imagefolder))
    images = encode_images(model, processor, [picture for _, picture, _ in all_pairs()])
    texts = encode_texts(model, processor, [caption for _, _, caption in all_pairs()])
    results = evaluate_retrieval(model, processor, pairs, batch_size=64)
    ids = torch.arange(40)
    for direction, task in {"text_to_image": (texts, images), "image_to_text": (images, texts)}.items():
        expected = loop_metrics(*task, ids, ids)
        assert {name: results[direction][name] for name in expected} == pytest.approx(expected)


def test_a_broken_picture_is_left_out_with_its_captions(model, caplog):
    pictures = [encoded(draw(colour, "circle", "left")) for colour in ("red", "green", "black")]
    table = {"image": [pictures[0], b"nothing", *pictures[1:]], "caption": [["a", "b"], ["c"], ["d"], ["e", "f"]]}
    results = evaluate_retrieval(model, tiny_processor(), PairDataset(datasets.Dataset.from_dict(table), name="x"))
    assert (results["text_to_image"]["queries"], results["text_to_image"]["gallery"]) == (5, 3)
    assert (results["image_to_text"]["queries"], results["image_to_text"]["gallery"]) == (3, 5)
    assert "x, row 1" in caplog.text


def test_a_file_named_by_several_rows_is_one_picture_of_the_gallery(world, model, processor, tmp_path):
    """One caption a row, five rows a picture, is how many CSV files look; a list a row says the same."""
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


def test_evaluation_takes_pictures_one_batch_at_a_time(world, model, processor, monkeypatch):
    sizes = []
    get_image_features = type(model).get_image_features

    def watched(self, pixel_values, **kwargs):
        sizes.append(len(pixel_values))
        return get_image_features(self, pixel_values, **kwargs)

    monkeypatch.setattr(type(model), "get_image_features", watched)
    evaluate_retrieval(model, processor, load_pairs(str(world.imagefolder)), batch_size=16)
    assert sizes == [16, 16, 8]
    assert np.sum(sizes) == 40


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_embeddings_that_are_no_numbers_are_refused(side):
    embeds = {"query": torch.eye(3), "gallery": torch.eye(3)}
    embeds[side] = embeds[side].clone().index_fill(0, torch.tensor([1]), float("nan"))
    with pytest.raises(ValueError, match=f"1 {side} embeddings are not finite, the first is number 1"):
        retrieval_metrics(embeds["query"], embeds["gallery"], torch.arange(3), torch.arange(3))
