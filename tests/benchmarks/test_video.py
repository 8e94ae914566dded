"""The figures of cots-video, against slow loops over made ranks."""

import numpy as np
import pytest

from benchmarks import video
from benchmarks.ablation.results import Results
from hf_cots.demo.clips import ZERO_SHOT, Setting


FOLD_SIZES = (4, 3, 5)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Two settings, the second with two seeds of which one lacks a fold."""
    random, results = np.random.default_rng(0), Results(tmp_path / "video.jsonl")
    for setting, seeds in ((Setting(1, ZERO_SHOT), 1), (Setting(8, "mean"), 2), (Setting(1, "mean"), 1)):
        for seed in range(seeds):
            for fold, size in enumerate(FOLD_SIZES):
                if (setting.num_frames, seed, fold) != (8, 1, 2):
                    ranks = {way: random.integers(1, 13, size).tolist() for way in video.DIRECTIONS}
                    line = {
                        "run": video.name_run(setting, seed, fold),
                        "ranks": ranks,
                        "machine": {"processor": "one"},
                    }
                    results.append(line | {"chance": {f"R@{k}": 8.0 * k for k in video.KS}})
    total = sum(FOLD_SIZES)
    queries = {
        "fold": np.repeat(range(3), FOLD_SIZES),
        "concept": np.array([f"c{i // 2}" for i in range(total)]),
        "motion": np.arange(total) % 3 == 0,
        "unseen": np.arange(total) % 4 == 0,
        "change": np.arange(total, dtype=float),
    }
    monkeypatch.setattr(video, "read_queries", lambda folder: queries)
    return results, queries


def test_figures_are_means_over_queries_and_finished_seeds(recorded, tmp_path):
    results, queries = recorded
    report = video.collect(results, tmp_path)
    lines = {line["run"]: line["ranks"]["text_to_image"] for line in results.lines()}
    for part, chosen in (("All clips", np.ones(12, bool)), ("Captions that need motion", queries["motion"])):
        found = report["parts"][part]
        assert found["clips"] == chosen.sum()
        for setting in (Setting(1, ZERO_SHOT), Setting(8, "mean")):
            ranks = [rank for fold in range(3) for rank in lines[video.name_run(setting, 0, fold)]]
            kept = [rank for rank, is_chosen in zip(ranks, chosen) if is_chosen]
            values = found["settings"][str(setting)]
            assert values["R@5"] == pytest.approx(100 * sum(rank <= 5 for rank in kept) / len(kept))
            assert values["MRR"] == pytest.approx(100 * sum(1 / rank for rank in kept) / len(kept))
            assert values["intervals"]["MRR"][0] <= values["MRR"] <= values["intervals"]["MRR"][1]
            assert values["seeds"] == 1
        more = found["differences"][f"{Setting(8, 'mean')} less {Setting(1, 'mean')}"]
        both = [found["settings"][str(Setting(frames, "mean"))]["R@1"] for frames in (8, 1)]
        assert more["R@1"] == pytest.approx(both[0] - both[1])
    assert "| 8 frames, projections, mean |" in video.write_markdown(report)


def test_concepts_are_drawn_whole():
    resampling = video.Resampling(np.array(["a", "a", "b", "c"]))
    assert (resampling.weights[:, 0] == resampling.weights[:, 1]).all()
    assert set(resampling.weights[:, [0, 2, 3]].sum(axis=1)) == {3}
    found = resampling.measure({"R@1": np.array([100.0, 100.0, 0.0, 0.0])})
    assert found["R@1"] == 50
    assert found["intervals"]["R@1"] == [0.0, 100.0]


def test_each_clip_is_tested_once():
    runs = list(video.list_runs(3))
    assert len(runs) == len(set(runs))
    assert [fold for setting, seed, fold in runs if (setting, seed) == (Setting(8, "mean"), 2)] == [0, 1, 2]
    assert not [run for run in runs if run[1] > 0 and (run[0].pooling == ZERO_SHOT or run[0].image_tower)]
