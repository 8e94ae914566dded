"""Image retrieval by label against a loop: leave-one-out, across a column, and against another gallery."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_cots.data.images import BrokenImage
from hf_cots.evaluation.tasks import image_retrieval
from hf_cots.evaluation.tasks.image_retrieval import LabelledEmbeddings, encode_labelled, evaluate_image_retrieval
from hf_cots.evaluation.tasks.labelled_images import load_labelled_images
from tests.support.known_encoder import KnownEncoder


def random_set(n=30, classes=6, styles=2, seed=0, name="x"):
    """Labels with some signal in the embeddings."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centers = torch.randn(classes, 5, generator=torch.Generator().manual_seed(99))
    embeds = F.normalize(centers[labels] + torch.randn(n, 5, generator=generator), dim=1).numpy()
    groups = [f"style {i % styles}" for i in range(n)] if styles else [(name, i) for i in range(n)]
    return LabelledEmbeddings(embeds, [f"class {label}" for label in labels.tolist()], groups, [])


def loop(queries, gallery):
    """Average precision, hit@K and reciprocal rank by sorting; there are no ties in random data."""
    rows, without = [], 0
    for embed, label, group in zip(queries.embeds, queries.labels, queries.groups):
        allowed = [j for j in range(len(gallery.labels)) if gallery.groups[j] != group]
        ranking = sorted(allowed, key=lambda j: -float(embed.astype(float) @ gallery.embeds[j].astype(float)))
        found = [rank for rank, j in enumerate(ranking, start=1) if gallery.labels[j] == label]
        if not found:
            without += 1
            continue
        precision = np.mean([hits / rank for hits, rank in enumerate(found, start=1)])
        rows.append([precision, found[0] <= 1, found[0] <= 5, found[0] <= 10, 1 / found[0]])
    return dict(zip(image_retrieval.METRICS, (100 * np.mean(rows, axis=0)).tolist())), without


@pytest.mark.parametrize("styles", [0, 2, 3])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 22])
def test_retrieval_equals_a_loop(styles, at_once, monkeypatch):
    monkeypatch.setattr(image_retrieval, "SCORES_AT_ONCE", at_once)
    queries = random_set(styles=styles)
    result = evaluate_image_retrieval(queries)
    expected, without = loop(queries, queries)
    assert result.metrics() == pytest.approx(expected, abs=1e-9)
    assert 20 < expected["mAP"] < 80
    assert result.without_answer == without


def test_another_gallery_equals_a_loop_and_loses_no_entry():
    """Equal rows of the two sets are not the same image."""
    queries, gallery = random_set(12, styles=0, seed=1, name="q"), random_set(40, styles=0, seed=2, name="g")
    result = evaluate_image_retrieval(queries, gallery)
    assert result.metrics() == pytest.approx(loop(queries, gallery)[0], abs=1e-9)
    assert result.gallery.tolist() == [40] * len(result.queries)


def test_a_constant_model_gets_exactly_the_chance_level():
    plain = random_set(styles=2)
    constant = LabelledEmbeddings(np.ones((30, 5)), plain.labels, plain.groups, [])
    result = evaluate_image_retrieval(constant)
    assert result.metrics() == pytest.approx(result.chance(), abs=1e-9)
    random = np.random.default_rng(0)
    precisions = []
    for _ in range(4000):  # the expectation over random orders, by drawing them
        own = random.integers(len(result.queries))
        relevant = np.arange(result.gallery[own]) < result.positives[own]
        ranks = 1 + np.flatnonzero(random.permutation(relevant))
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    assert result.metrics()["mAP"] == pytest.approx(100 * np.mean(precisions), abs=1.2)


def test_images_without_another_of_their_label_are_no_queries():
    lonely = LabelledEmbeddings(np.eye(4), ["a", "a", "b", "c"], [0, 1, 2, 3], [BrokenImage("x.png", "gone")])
    result = evaluate_image_retrieval(lonely)
    assert result.queries.tolist() == [0, 1]
    report = result.to_dict()
    # The gallery of a query are the three others, with those that are no queries.
    assert report["image_to_image"].items() >= {"queries": 2, "queries_without_answer": 2, "gallery": 3}.items()
    assert [broken.name for broken in result.broken] == ["x.png"]
    with pytest.raises(ValueError, match="none of 3 images has another image with its label in its gallery"):
        evaluate_image_retrieval(LabelledEmbeddings(np.eye(3), ["a", "b", "c"], [0, 1, 2], []))


def test_ties_between_right_and_wrong_count_half():
    """The query's only answer ties with one wrong image: rank 1 or 2."""
    embeds = F.normalize(torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0], [-1.0, 0]]), dim=1).numpy()
    gallery = LabelledEmbeddings(embeds[1:], ["a", "b", "b"], ["g"] * 3, [])
    result = evaluate_image_retrieval(LabelledEmbeddings(embeds[:1], ["a"], ["q"], []), gallery)
    assert result.metrics()["R@1"] == 50
    assert result.metrics()["mAP"] == pytest.approx(75)


def test_embeddings_that_are_not_finite_are_refused():
    queries = random_set()
    queries.embeds[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 query embeddings are not finite, the first is number 3"):
        evaluate_image_retrieval(queries)


# ---------------------------------------------------------------------- from files


RED, LIME = (255, 0, 0), (0, 255, 0)


def test_a_table_of_styles_is_searched_across_them(tmp_path):
    vectors, rows = {}, []
    for number, (label, style) in enumerate((("cat", "x"), ("cat", "y"), ("dog", "x"), ("dog", "y"))):
        color = (50 * number, 0, 0)
        vectors[color] = [1.0, float(style == "y") + 0.1 * (label == "dog"), 0.3 * (label == "dog")]
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "concept": label, "style": style})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_labelled_images(str(tmp_path), label_column="concept", columns=("style",))
    alone = evaluate_image_retrieval(encode_labelled(KnownEncoder(vectors), data))
    across = evaluate_image_retrieval(encode_labelled(KnownEncoder(vectors), data, across="style"))
    assert alone.metrics()["R@1"] == 0  # the other concept in the same style is nearer
    assert across.metrics()["R@1"] > 0
    assert across.gallery.tolist() == [2, 2, 2, 2]
    assert alone.gallery.tolist() == [3, 3, 3, 3]


def test_a_file_named_twice_does_not_find_itself(tmp_path):
    for name, color in (("red", RED), ("lime", LIME)):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "label": "a"} for name in ("red", "red", "lime")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_labelled_images(str(tmp_path / "x.jsonl"))
    embeddings = encode_labelled(KnownEncoder({RED: [1, 0], LIME: [0, 1]}), data)
    assert len(embeddings.labels) == 2
    assert evaluate_image_retrieval(embeddings).gallery.tolist() == [1, 1]


def test_broken_images_are_skipped_and_named(tmp_path):
    for label, color in (("a", RED), ("b", LIME)):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), color).save(tmp_path / label / f"{number}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"nothing")
    data = load_labelled_images(str(tmp_path))
    result = evaluate_image_retrieval(encode_labelled(KnownEncoder({RED: [1, 0], LIME: [0, 1]}), data))
    assert len(result.queries) == 5
    assert result.metrics()["mAP"] == 100
    assert [broken.name for broken in result.broken] == [str(tmp_path / "a" / "1.png")]
