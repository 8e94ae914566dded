"""Both directions with a model, and what cannot be ranked."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.evaluation.retrieval.directions import evaluate_retrieval, rank_direction
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.loading import load_encoder
from hf_cots.search.torch_encoders import encode_images, encode_texts
from tests.support.embeddings import assert_close
from tests.support.worlds import all_pairs, draw, encoded, tiny_processor


NOT_FINITE = torch.eye(3).index_fill(0, torch.tensor([1]), math.nan)


@pytest.mark.parametrize(
    ("queries", "gallery", "query_ids", "message"),
    [
        (torch.ones(0, 3), torch.ones(3, 3), [], "0 queries, 3 gallery"),
        (torch.ones(2, 3), torch.ones(0, 3), [0, 1], "2 queries, 0 gallery"),
        (torch.ones(3, 3), torch.ones(3, 3), [0, 1, 9], "query 2 has no correct answer"),
        (NOT_FINITE, torch.eye(3), [0, 1, 2], "1 query embeddings are not"),
        (torch.eye(3), NOT_FINITE, [0, 1, 2], "finite, the first is number 1"),
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
        assert_close(np.linalg.norm(whole, axis=1), torch.ones(7))
        assert_close(whole, pieces, rtol=1e-4, atol=1e-5)  # float32 sums in another order
        assert encode(model, processor, []).shape == (0, 16)


def test_evaluation_equals_the_metrics_of_its_parts(world, model, processor):
    pairs = load_pairs(str(world.imagefolder))
    images = encode_images(model, processor, [image for _, image, _ in all_pairs()])
    texts = encode_texts(model, processor, [caption for _, _, caption in all_pairs()])
    results = evaluate_retrieval(model, processor, pairs, batch_size=64)
    ids = torch.arange(40)
    for direction, task in {"text_to_image": (texts, images), "image_to_text": (images, texts)}.items():
        assert results[direction] == pytest.approx(rank_direction(*task, ids, ids).metrics())


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
    encoded_pairs = encode_pairs(load_encoder(str(world.model), "cpu"), load_pairs(str(path)))
    assert encoded_pairs.rows == list(range(0, 30, 3))
    assert encoded_pairs.captions == list(range(30))
    assert encoded_pairs.text_ids.tolist() == np.repeat(encoded_pairs.image_ids, 3).tolist()
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
