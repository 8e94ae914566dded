"""The re-ranker: cached keys and values give the scores of the full forward, whatever the cache, order and batches."""

import pytest
import torch

from hf_cots.search.loading import load_reranker
from hf_cots.search.rerank import Reranker, image_bytes
from tests.support.embeddings import assert_close
from tests.support.simla_world import simla_folder
from tests.support.worlds import all_pairs


TEXTS = [caption for _, _, caption in all_pairs()][:9]
IMAGES = [image for _, image, _ in all_pairs()]


@pytest.fixture(scope="module")
def simla(world):
    return load_reranker(str(simla_folder(world)), "cpu")


@pytest.fixture(scope="module")
def every_pair(simla):
    """(texts, images) logits of the full forward, one pair at a time, without a cache."""
    model, processor = simla
    scores = torch.empty(len(TEXTS), len(IMAGES))
    for i, text in enumerate(TEXTS):
        for j, image in enumerate(IMAGES):
            inputs = processor(images=[image], text=[text], return_tensors="pt")
            with torch.no_grad():
                logits = model.match(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"])
            scores[i, j] = logits[0, 1]
    assert scores.std() > 0.1
    return scores


def reranker(simla, seen, images=None, **options):
    """With room for so many images; `seen` collects those that are read."""
    model, processor = simla
    if images is not None:
        options["cache_bytes"] = images * image_bytes(model) + 1
    return Reranker(model, processor, lambda j: seen.append(j) or IMAGES[j], **options)


@pytest.mark.parametrize("images", [None, 40, 7, 1, 0])
@pytest.mark.parametrize(("batch_size", "image_batch"), [(64, 16), (5, 3), (1, 1)])
def test_scores_are_those_of_the_full_forward(simla, every_pair, images, batch_size, image_batch):
    seen = []
    ours = reranker(simla, seen, images, batch_size=batch_size, image_batch=image_batch)
    order = torch.randperm(every_pair.numel(), generator=torch.Generator().manual_seed(3))[:150]
    text_rows, columns = order // len(IMAGES), order % len(IMAGES)
    found = ours.score(TEXTS, text_rows, columns)
    assert_close(found, every_pair[text_rows, columns], rtol=0, atol=1e-5)
    assert sorted(seen) == columns.unique().tolist(), "each image is encoded once"
    assert ours.cost.pairs == 150
    assert ours.cost.images == len(seen)
    assert ours.cost.pair_seconds > 0
    assert ours.cost.image_seconds > 0


def test_cached_images_are_not_encoded_again(simla, every_pair):
    seen = []
    ours = reranker(simla, seen, images=4)
    ours.score(TEXTS, torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]))
    ours.score(TEXTS, torch.tensor([3]), torch.tensor([5]))
    assert seen == [5, 6, 7]
    found = ours.score(TEXTS, torch.tensor([4, 4]), torch.tensor([8, 9]))  # of the four, 6 was used longest ago
    assert set(ours.cached) == {7, 5, 8, 9}
    assert_close(found, every_pair[4, 8:10], rtol=0, atol=1e-5)
    again = ours.score(TEXTS, torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]))
    assert_close(again, every_pair[[0, 1, 2], [5, 6, 7]], rtol=0, atol=1e-5)
    assert seen == [5, 6, 7, 8, 9, 6]


def test_no_pairs_and_odd_pairs(simla):
    ours = reranker(simla, [])
    assert ours.score(TEXTS, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)).shape == (0,)
    assert ours.score([], torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)).shape == (0,)
    with pytest.raises(ValueError, match="must have the same length, got 2 and 1"):
        ours.score(TEXTS, torch.tensor([0, 1]), torch.tensor([0]))


def test_texts_longer_than_the_model_reads_are_cut(simla):
    ours = reranker(simla, [])
    model, processor = simla
    found = ours.score(["red " * 100], torch.tensor([0]), torch.tensor([0]))
    cut = processor(images=[IMAGES[0]], text=["red " * 100], return_tensors="pt", truncation=True)
    with torch.no_grad():
        expected = model.match(cut["input_ids"], cut["attention_mask"], cut["pixel_values"])[:, 1]
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_bytes_of_one_image(simla):
    model, _ = simla
    cache = model.cache_image(torch.zeros(1, 3, 32, 32))
    assert image_bytes(model) == sum(layer.nbytes for layer in (*cache.keys, *cache.values))
