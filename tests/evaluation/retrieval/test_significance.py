"""Intervals and tests against loops, closed forms and the enumeration of all exchanges."""

import itertools
import math

import numpy as np
import pytest

from hf_cots.evaluation.retrieval import significance
from hf_cots.evaluation.retrieval.directions import DirectionResult
from hf_cots.evaluation.retrieval.metrics import MEANS
from hf_cots.evaluation.retrieval.significance import bootstrap_samples, compare, intervals


def random_direction(query_ids, gallery_ids, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    columns = {name: 100 * (generator.random(len(query_ids)) < 0.5 + shift) for name in MEANS}
    columns["rank"] = 1 + generator.integers(20, size=len(query_ids)).astype(float)
    columns = {name: column.astype(np.float64) for name, column in columns.items()}
    return DirectionResult.from_single_gallery(columns, np.asarray(query_ids), np.asarray(gallery_ids))


def both(count=30, captions=3, seed=0, shift=0.0):
    images = np.arange(count) * 7 - 50  # ids are any integers
    texts = images.repeat(captions)
    return {
        "text_to_image": random_direction(texts, images, seed, shift),
        "image_to_text": random_direction(images, texts, seed + 1, shift),
    }


def test_samples_are_the_metrics_of_resampled_queries():
    """Each resample, computed again from the concatenated queries of the drawn images."""
    directions = both()
    samples = bootstrap_samples(directions, resamples=25, seed=4)
    images = np.unique(directions["image_to_text"].query_ids)
    for draw, drawn in enumerate(images[np.random.default_rng(4).integers(len(images), size=(25, len(images)))]):
        for name, direction in directions.items():
            rows = np.concatenate([np.flatnonzero(direction.query_ids == image) for image in drawn])
            columns = {column: values[rows] for column, values in direction.columns.items()}
            expected = DirectionResult.from_single_gallery(
                columns, direction.query_ids[rows], direction.gallery_ids
            ).metrics()
            for metric, values in samples[name].items():
                assert values[draw] == pytest.approx(expected[metric], abs=1e-9), (name, metric)
    total = sum(samples[name][f"R@{k}"] for name in directions for k in (1, 5, 10))
    np.testing.assert_allclose(samples["total"]["rsum"], total)


def test_the_seed_alone_decides():
    directions = both()
    one, same, other = (intervals(bootstrap_samples(directions, 50, seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    directions = both()
    whole = bootstrap_samples(directions, 40)
    monkeypatch.setattr(significance, "CHUNK", 7 * 90)
    pieces = bootstrap_samples(directions, 40)
    for name, metrics in whole.items():
        for metric, values in metrics.items():
            np.testing.assert_allclose(pieces[name][metric], values, rtol=1e-12)


def test_an_interval_of_a_proportion_is_the_binomial_one():
    """One caption an image: 1.96 standard errors either way."""
    ids = np.arange(2000)
    direction = random_direction(ids, ids, seed=3)
    low, high = intervals(bootstrap_samples({"text_to_image": direction}, 4000))["text_to_image"]["R@1"]
    proportion = direction.metrics()["R@1"] / 100
    error = 100 * math.sqrt(proportion * (1 - proportion) / 2000)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert (high + low) / 2 == pytest.approx(100 * proportion, abs=0.3 * error)


def test_captions_that_succeed_together_widen_the_interval():
    """Five equal outcomes an image are no more evidence than one: the interval is that of the images."""
    images = np.arange(400)
    one = random_direction(images, images, seed=3)
    columns = {name: column.repeat(5) for name, column in one.columns.items()}
    five = DirectionResult.from_single_gallery(columns, images.repeat(5), images)
    width = [
        np.diff(intervals(bootstrap_samples({"text_to_image": d}, 2000))["text_to_image"]["R@1"]) for d in (one, five)
    ]
    assert width[1] == pytest.approx(width[0], rel=1e-9)


def test_folds_are_averaged_in_every_draw():
    parts = [random_direction(np.arange(30) + 100 * f, np.arange(30) + 100 * f, seed=f) for f in range(3)]
    direction = DirectionResult.from_folds(parts)
    expected = np.mean([part.metrics()["median_rank"] for part in parts])
    assert direction.metrics()["median_rank"] == pytest.approx(expected)
    assert (direction.metrics()["queries"], direction.metrics()["gallery"]) == (90, 30)
    samples = bootstrap_samples({"text_to_image": direction}, 500)["text_to_image"]
    low, high = np.quantile(samples["median_rank"], (0.025, 0.975))
    assert low < expected < high
    for one, other in zip(direction.folds(), parts):
        np.testing.assert_array_equal(one.columns["rank"], other.columns["rank"])


# ---------------------------------------------------------------------- two models


def test_p_values_equal_the_enumeration_of_all_exchanges():
    mine, theirs = both(count=9, seed=0), both(count=9, seed=50, shift=0.2)
    result = compare(mine, theirs, resamples=10, permutations=20_000)
    images = np.unique(mine["image_to_text"].query_ids)
    for name in mine:
        gap = mine[name].columns["R@5"] - theirs[name].columns["R@5"]
        per_image = np.array([gap[mine[name].query_ids == image].sum() for image in images]) / len(gap)
        exchanged = [abs(np.dot(signs, per_image)) for signs in itertools.product((-1, 1), repeat=9)]
        exact = np.mean(np.array(exchanged) >= abs(per_image.sum()) - 1e-9)
        found = result[name]["R@5"]
        assert found["difference"] == pytest.approx(gap.mean())
        assert found["p_value"] == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_equal_models_are_not_told_apart():
    mine = both()
    for metrics in compare(mine, mine, 20, 100).values():
        for values in metrics.values():
            assert values["difference"] == 0
            assert values["interval"] == [0, 0]
            assert values.get("p_value", 1) == 1


def test_a_clear_difference_is_found_and_its_sign_is_that_of_the_first_model():
    better, worse = both(count=200, seed=1, shift=0.3), both(count=200, seed=2)
    found = compare(better, worse, 200, 999)
    values = found["text_to_image"]["R@1"]
    assert values["difference"] > 0
    assert values["interval"][0] > 0
    assert values["p_value"] == 1 / 1000
    assert found["total"]["rsum"]["p_value"] == 1 / 1000
    assert "p_value" not in found["text_to_image"]["median_rank"]


def test_p_values_of_equal_models_are_uniform():
    """Of 60 comparisons of models that differ by chance only, few are significant and many are not."""
    values = []
    for seed in range(60):
        mine, theirs = both(40, 2, seed=1000 + 10 * seed), both(40, 2, seed=5000 + 10 * seed)
        values.append(compare(mine, theirs, 2, 400)["text_to_image"]["mAP"]["p_value"])
    assert np.mean(np.array(values) < 0.1) < 0.25
    assert 0.35 < np.mean(values) < 0.65


def test_paired_intervals_are_narrower_than_unpaired_ones():
    """Two models that fail on the same images."""
    mine = both(count=300, seed=1)
    theirs = {}
    for name, direction in mine.items():
        columns = {column: values.copy() for column, values in direction.columns.items()}
        columns["R@1"][::20] = 0.0
        theirs[name] = DirectionResult.from_single_gallery(columns, direction.query_ids, direction.gallery_ids)
    paired = np.diff(compare(mine, theirs, 300, 10)["text_to_image"]["R@1"]["interval"])
    alone = np.diff(intervals(bootstrap_samples(mine, 300))["text_to_image"]["R@1"])
    assert paired < alone / 2


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="text_to_image: the two models have different queries"):
        compare(both(count=5), both(count=6))
