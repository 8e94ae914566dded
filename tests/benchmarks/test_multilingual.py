"""Searches in several languages: galleries, queries, and recalls by hand."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from benchmarks.multilingual import FURTHER, LANGUAGES, measure, read_gallery, read_queries, recalls
from tests.support.known_encoder import KnownEncoder
from tests.support.paths import ROOT


def test_gallery_and_queries(tmp_path):
    rows = [
        {"text": text, "style": style, "concept": text, "image": {"bytes": b"", "path": text}}
        for text, style in (("dog", "twemoji"), ("cat", "openmoji"), ("cat", "twemoji"), ("cat", "twemoji"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    gallery = read_gallery(tmp_path)
    assert [row["text"] for row in gallery] == ["dog", "cat"]
    (tmp_path / "t").mkdir()
    pairs = [
        {"english": "cat", "translation": "gato", "language": "es", "kind": "name"},
        {"english": "dog", "translation": "Hund", "language": "de", "kind": "keywords"},
    ]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "t" / "test.parquet")
    queries = read_queries(tmp_path / "t", gallery)
    assert queries["en"] == [(1, "cat")]  # a name that has translations
    assert queries["es"] == [(1, "gato")]
    assert queries["de"] == []
    assert queries["ko"] == []


def test_recalls_are_means_over_towers():
    found = recalls(np.array([[1, 2, 11], [2, 2, 1]]), ["a", "a", "b"])
    assert (found["R@1"], found["R@5"], found["R@10"]) == pytest.approx((100 / 3, 250 / 3, 250 / 3))
    low, high = found["intervals"]["R@1"]
    assert low <= found["R@1"] <= high
    assert low == pytest.approx(25)  # concept a alone, drawn twice
    assert high == pytest.approx(50)  # b alone


def test_a_model_may_be_measured_with_its_own_tower_alone(tmp_path):
    gallery = []
    for name, color in (("dog", (255, 0, 0)), ("cat", (0, 255, 0))):
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2), color).save(buffer, "png")
        gallery.append({"text": name, "concept": name, "image": {"bytes": buffer.getvalue()}})
    pairs = [
        {"english": english, "translation": f"{english} in {language}", "language": language, "kind": "name"}
        for english in ("dog", "cat")
        for language in (*LANGUAGES[1:], *FURTHER)
    ]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "test.parquet")
    vectors = {(255, 0, 0): [1, 0], (0, 255, 0): [0, 1], "dog": [1, 0], "cat": [0, 1]}
    vectors |= {pair["translation"]: [1, 0] for pair in pairs}  # all are a dog
    report = measure("known", KnownEncoder(vectors), [], gallery, read_queries(tmp_path, gallery))
    assert "distilled" not in report
    assert [report["own"][language]["R@1"] for language in ("en", "es", "hi")] == [100, 50, 50]


def test_the_two_emoji_models_differ_in_their_text_tower_alone():
    cards = ROOT / "model_cards"
    first, second = (
        yaml.safe_load((cards / name / "emoji.yaml").read_text(encoding="utf-8"))
        for name in ("minilm-multilingual", "e5-multilingual")
    )
    assert {key for key in first | second if first.get(key) != second.get(key)} == {"output_dir"}


def test_the_recipe_leaves_out_what_is_tested_as_not_trained():
    recipe = yaml.safe_load((ROOT / "model_cards/minilm-multilingual/recipe.yaml").read_text(encoding="utf-8"))
    assert set(LANGUAGES) - set(recipe["languages"]) == {"en", "it", "ko"}
    assert set(FURTHER).isdisjoint(recipe["languages"])
