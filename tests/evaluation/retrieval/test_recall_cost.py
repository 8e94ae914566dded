"""`hf-cots evaluate --rerank` and two-stage search in a folder: against both stages done by hand."""

import json

import pytest
import torch

from hf_cots.data.sources import load_pairs
from hf_cots.evaluation.retrieval.recall_cost import RerankEvaluation
from hf_cots.evaluation.retrieval.report import evaluate_encoder
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.fusion import CandidateBudget, Fusion
from hf_cots.search.index import ImageIndex
from hf_cots.search.loading import load_encoder, load_reranker
from hf_cots.search.reranked import RerankedIndex
from tests.support.cli import call, error_of, succeed
from tests.support.simla_world import simla_folder


@pytest.fixture(scope="module")
def simla(world):
    return str(simla_folder(world))


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.parquet))


@pytest.fixture(scope="module")
def encoder(world):
    return load_encoder(str(world.model), "cpu")


@pytest.fixture(scope="module")
def logits(simla, pairs):
    """(texts, images) of the full forward."""
    model, processor = load_reranker(simla, "cpu")
    images = [pairs.read_row(row) for row in range(40)]
    inputs = processor(images=images, text=[pairs.caption(i) for i in range(40)], return_tensors="pt", padding=True)
    rows = []
    with torch.no_grad():
        for i in range(40):
            one = inputs["input_ids"][i : i + 1], inputs["attention_mask"][i : i + 1]
            rows.append(model.match(*one, pixel_values=inputs["pixel_values"])[:, 1])
    return torch.stack(rows).numpy()


def slow_recall(similarities, second, k, fusion):
    """Hits at 1 in percent, when the k best by similarity are sorted by the fused score."""
    hits = 0
    for i in range(len(similarities)):
        order = sorted(range(40), key=lambda j: -similarities[i, j])
        fused = blend(fusion, similarities[i], second[i])
        first = sorted(order[:k], key=lambda j: -fused[j]) if k else order
        hits += first[0] == i
    return 100 * hits / len(similarities)


def test_rows_equal_both_stages_by_hand(simla, encoder, pairs, logits):
    """The re-ranker alone, and a fusion that was fitted; k beyond the gallery means all of it."""
    result, encoded = evaluate_encoder(encoder, pairs), encode_pairs(encoder, pairs)
    similarities = encoded.text_embeds.astype(float) @ encoded.image_embeds.astype(float).T
    for validation in (None, pairs):
        report = RerankEvaluation(simla, 5, validation, resamples=20).run(encoder, result, pairs)
        assert [row["k"] for row in report["rows"]] == [0, 5, 16, 64, 256]
        for name, first, second in (
            ("text_to_image", similarities, logits),
            ("image_to_text", similarities.T, logits.T),
        ):
            fusion = Fusion(**report["fusion"][name])
            for row in report["rows"]:
                values = row[name]
                expected = slow_recall(first, second, min(row["k"], 40), fusion)
                assert values["R@1"] == pytest.approx(expected)
                assert values["pairs_per_query"] == min(row["k"], 40)
                low, high = values["intervals"]["R@1"]
                assert low <= values["R@1"] <= high
            spent = [row[name]["milliseconds_per_query"] for row in report["rows"]]
            assert spent == sorted(spent)
            assert spent[-2] == spent[-1], "all of the gallery was scored before"
            gain = report["comparison"][name]["R@1"]["difference"]
            assert gain == pytest.approx(report["rows"][1][name]["R@1"] - report["rows"][0][name]["R@1"])
            if validation is not None:  # here it was fitted on the test itself, and cannot lose
                assert report["rows"][1][name]["MRR"] >= report["rows"][0][name]["MRR"] - 1e-9
        assert report["images"]["encoded"] == 40
        assert json.loads(json.dumps(report)) == report


def blend(fusion, similarity, logit):
    return (
        fusion.weight * similarity.astype("float64") / fusion.similarity_scale
        + (1 - fusion.weight) * logit.astype("float64") / fusion.logit_scale
    )


def test_a_row_with_a_k_of_its_own_for_each_query(simla, encoder, pairs):
    result = evaluate_encoder(encoder, pairs)
    within_budget, within_latency = (
        RerankEvaluation(simla, resamples=5, **options).run(encoder, result, pairs)["rows"]
        for options in ({"budget": 6}, {"latency": 1e-6})
    )
    assert [row["k"] for row in within_budget] == [0, 16, 64, 256, "varying"]
    for name in ("text_to_image", "image_to_text"):
        *_, largest, varying = within_budget
        assert varying[name]["pairs_per_query"] <= 6
        assert varying[name]["milliseconds_per_query"] < largest[name]["milliseconds_per_query"]
    assert within_latency[-1]["text_to_image"]["pairs_per_query"] == 0
    assert within_latency[-1]["text_to_image"]["R@1"] == within_latency[0]["text_to_image"]["R@1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "--k must be at least 2 for re-ranking"),
        ({"budget": -1.0}, "--budget must not be negative"),
        ({"latency": 0.0}, "--latency must be positive"),
    ],
)
def test_numbers_out_of_range(simla, options, message):
    with pytest.raises(ValueError, match=message):
        RerankEvaluation(simla, **options)


def test_the_command_prints_a_table_and_draws_a_curve(world, simla, tmp_path):
    output = tmp_path / "results.json"
    flags = ["--rerank", simla, "--k", 8, "--validation", world.parquet, "--budget", 4, "--resamples", 20]
    result = succeed("evaluate", world.model, world.parquet, *flags, "--output", output)
    report = json.loads(output.read_text())
    assert [row["k"] for row in report["reranking"]["rows"]] == [0, 8, 16, 64, 256, "varying"]
    assert report["reranking"]["fitted_on"]
    assert report["text_to_image"]["R@1"] == pytest.approx(report["reranking"]["rows"][0]["text_to_image"]["R@1"])
    assert "text to image, re-ranked by" in result.output
    assert "with k=8 less without" in " ".join(result.output.split())
    assert (tmp_path / "results.reranking.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_another_kind_of_model(world):
    result = call("evaluate", world.model, world.parquet, "--rerank", world.model)
    assert "cannot re-rank: use a SIMLA model" in error_of(result)


def test_search_in_two_stages(world, simla, logits, pairs):
    index = ImageIndex.from_folder(str(world.model), world.imagefolder)
    both = RerankedIndex.from_index(index, simla, budget=CandidateBudget(6))
    text = pairs.caption(17)
    first = index.search(text, 10)
    found = both.search(text, 10)
    number = {path.name: int(path.stem[1:]) for path in index.paths}
    expected = sorted(first[:6], key=lambda match: -float(logits[17, number[match.path.name]])) + first[6:]
    assert [match.path for match in found] == [match.path for match in expected]
    scores = [float(logits[17, number[match.path.name]]) for match in expected[:6]]
    assert [match.score for match in found[:6]] == pytest.approx(scores, abs=1e-5)
    assert len(both.reranker.cached) == 6
    assert [match.path for match in both.search(text, 3)] == [match.path for match in expected[:3]]
    sure = RerankedIndex.from_index(index, simla, budget=CandidateBudget(6, margin=-1.0))
    assert sure.search(text, 10) == first
    result = succeed("search", world.model, world.imagefolder, text, "-k", 2, "--rerank", simla)
    assert len(result.stdout.strip().splitlines()) == 2
