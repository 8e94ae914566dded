"""Image retrieval by label against a loop: leave-one-out, across a column, and against another gallery."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_cots.data.images import BrokenImage
from hf_cots.evaluation.tasks import image_retrieval
from hf_cots.evaluation.tasks.image_retrieval import LabelledEmbeddings, encode_labelled, retrieve_images
from hf_cots.evaluation.tasks.labelled_images import load_labelled_images
from tests.support.known_encoder import KnownEncoder


def random_set(n=30, classes=6, styles=2, seed=0, name="x"):
    """Labels with some signal in the embeddings."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, 5, generator=torch.Generator().manual_seed(99))
    embeds = F.normalize(centres[labels] + torch.randn(n, 5, generator=generator), dim=1)
    groups = [f"style {i % styles}" for i in range(n)] if styles else [(name, i) for i in range(n)]
    return LabelledEmbeddings(embeds, [f"class {label}" for label in labels.tolist()], groups, [])


def loop(queries, gallery):
    """Average precision, hit@K and reciprocal rank by sorting; there are no ties in random data."""
    rows, without = [], 0
    for embed, label, group in zip(queries.embeds, queries.labels, queries.groups):
        allowed = [j for j in range(len(gallery.labels)) if gallery.groups[j] != group]
        ranking = sorted(allowed, key=lambda j: -float(embed.double() @ gallery.embeds[j].double()))
        places = [place for place, j in enumerate(ranking, start=1) if gallery.labels[j] == label]
        if not places:
            without += 1
            continue
        precision = np.mean([found / place for found, place in enumerate(places, start=1)])
        rows.append([precision, places[0] <= 1, places[0] <= 5, places[0] <= 10, 1 / places[0]])
    return dict(zip(image_retrieval.SHOWN, (100 * np.mean(rows, axis=0)).tolist())), without


@pytest.mark.parametrize("styles", [0, 2, 3])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 22])
def test_retrieval_equals_a_loop(styles, at_once, monkeypatch):
    monkeypatch.setattr(image_retrieval, "SCORES_AT_ONCE", at_once)
    queries = random_set(styles=styles)
    result = retrieve_images(queries)
    expected, without = loop(queries, queries)
    assert result.metrics() == pytest.approx(expected, abs=1e-9)
    assert 20 < expected["mAP"] < 80
    assert result.without_answer == without


def test_another_gallery_equals_a_loop_and_loses_no_entry():
    """Rows of the two sets with the same number are not the same picture."""
    queries, gallery = random_set(12, styles=0, seed=1, name="q"), random_set(40, styles=0, seed=2, name="g")
    result = retrieve_images(queries, gallery)
    assert result.metrics() == pytest.approx(loop(queries, gallery)[0], abs=1e-9)
    assert result.gallery.tolist() == [40] * len(result.queries)


def test_a_constant_model_gets_exactly_the_chance_level():
    plain = random_set(styles=2)
    constant = LabelledEmbeddings(torch.ones(30, 5), plain.labels, plain.groups, [])
    result = retrieve_images(constant)
    assert result.metrics() == pytest.approx(result.chance(), abs=1e-9)
    random = np.random.default_rng(0)
    precisions = []
    for _ in range(4000):  # the expectation over random orders, by drawing them
        own = random.integers(len(result.queries))
        relevant = np.arange(result.gallery[own]) < result.positives[own]
        places = 1 + np.flatnonzero(random.permutation(relevant))
        precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    assert result.metrics()["mAP"] == pytest.approx(100 * np.mean(precisions), abs=1.2)


def test_pictures_alone_with_their_label_ask_nothing():
    lonely = LabelledEmbeddings(torch.eye(4), ["a", "a", "b", "c"], [0, 1, 2, 3], [BrokenImage("x.png", "gone")])
    result = retrieve_images(lonely)
    assert result.queries.tolist() == [0, 1]
    report = result.to_dict()
    assert report["image_to_image"]["queries_without_answer"] == 2
    assert report["image_to_image"]["queries"] == 2
    assert report["image_to_image"]["gallery"] == 3  # the others, with those that ask nothing
    assert [broken.name for broken in result.broken] == ["x.png"]
    with pytest.raises(ValueError, match="none of 3 pictures has another of its label in its gallery"):
        retrieve_images(LabelledEmbeddings(torch.eye(3), ["a", "b", "c"], [0, 1, 2], []))


def test_ties_between_right_and_wrong_count_half():
    """The query's only answer ties with one wrong picture: rank 1 or 2."""
    embeds = F.normalize(torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0], [-1.0, 0]]), dim=1)
    gallery = LabelledEmbeddings(embeds[1:], ["a", "b", "b"], ["g"] * 3, [])
    result = retrieve_images(LabelledEmbeddings(embeds[:1], ["a"], ["q"], []), gallery)
    assert result.metrics()["R@1"] == 50
    assert result.metrics()["mAP"] == pytest.approx(75)


def test_embeddings_that_are_no_numbers_are_refused():
    queries = random_set()
    queries.embeds[3, 0] = torch.nan
    with pytest.raises(ValueError, match="1 query embeddings are not finite, the first is number 3"):
        retrieve_images(queries)


# ---------------------------------------------------------------------- from files


COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0)}


def test_a_table_of_styles_is_searched_across_them(tmp_path):
    vectors, rows = {}, []
    for number, (label, style) in enumerate((("cat", "x"), ("cat", "y"), ("dog", "x"), ("dog", "y"))):
        colour = (50 * number, 0, 0)
        vectors[colour] = [1.0, float(style == "y") + 0.1 * (label == "dog"), 0.3 * (label == "dog")]
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "concept": label, "style": style})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_labelled_images(str(tmp_path), label_column="concept", columns=("style",))
    alone = retrieve_images(encode_labelled(KnownEncoder(vectors), data))
    across = retrieve_images(encode_labelled(KnownEncoder(vectors), data, across="style"))
    assert alone.metrics()["R@1"] == 0  # the other concept in the same style is nearer
    assert across.metrics()["R@1"] > 0
    assert across.gallery.tolist() == [2, 2, 2, 2]
    assert alone.gallery.tolist() == [3, 3, 3, 3]


def test_a_file_named_twice_does_not_find_itself(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "label": "a"} for name in ("red", "red", "lime")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_labelled_images(str(tmp_path / "x.jsonl"))
    embeddings = encode_labelled(KnownEncoder({COLOURS["red"]: [1, 0], COLOURS["lime"]: [0, 1]}), data)
    assert len(embeddings.labels) == 2
    assert retrieve_images(embeddings).gallery.tolist() == [1, 1]


def test_broken_pictures_are_left_out_and_named(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), COLOURS["red" if label == "a" else "lime"]).save(
                tmp_path / label / f"{number}.png"
            )
    (tmp_path / "a" / "1.png").write_bytes(b"nothing")
    vectors = {COLOURS["red"]: [1, 0], COLOURS["lime"]: [0, 1]}
    result = retrieve_images(encode_labelled(KnownEncoder(vectors), load_labelled_images(str(tmp_path))))
    assert len(result.queries) == 5
    assert result.metrics()["mAP"] == 100
    assert [broken.name.endswith("a/1.png") for broken in result.broken] == [True]
