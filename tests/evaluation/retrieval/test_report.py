"""A complete evaluation: the JSON file, the query table, the page of failures, and what survives an error."""

import json
import re

import numpy as np
import pytest
import torch

from hf_cots import COTSModel
from hf_cots.data.fingerprint import data_fingerprint
from hf_cots.data.sources import load_pairs
from hf_cots.evaluation.rendering.tables import report_tables
from hf_cots.evaluation.retrieval import run
from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.failures import worst_failures
from hf_cots.evaluation.retrieval.metrics import rsum
from hf_cots.evaluation.retrieval.per_query_table import query_table_path, read_query_table
from hf_cots.evaluation.retrieval.report import build_report, evaluate_encoder
from hf_cots.evaluation.retrieval.run import EvaluationRun
from hf_cots.search.loading import load_encoder
from tests.support.embeddings import unit
from tests.support.worlds import all_pairs, tiny_processor


@pytest.fixture(scope="module")
def other_model(world):
    """Another COTS with spread-out embeddings."""
    torch.manual_seed(5)
    model = COTSModel.from_pretrained(world.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = world.root / "other"
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def evaluate(world, output, model=None, **settings):
    settings = {"data": str(world.parquet), "resamples": 50, "output": output} | settings
    shown = []
    report = EvaluationRun(model=str(model or world.model), **settings).run(shown.append)
    assert shown == [report]
    return report


def everything(world, other_model):
    folder = str(world.imagefolder)
    options = {"compare": str(other_model), "dual_softmax": True, "querybank": folder, "check_overlap": folder}
    return options | {"seed": 3}


@pytest.fixture(scope="module")
def whole(world, other_model, tmp_path_factory):
    """A run with everything on, and its file."""
    output = tmp_path_factory.mktemp("run") / "results.json"
    return evaluate(world, output, **everything(world, other_model)), output


def test_the_file_is_the_report(whole):
    report, output = whole
    assert json.loads(output.read_text()) == json.loads(json.dumps(report))


def test_everything_to_reproduce_it_is_there(whole, world, other_model):
    report, _ = whole
    assert report["model"] == {"name": str(world.model), "fingerprint": load_encoder(str(world.model)).fingerprint()}
    assert report["comparison"]["model"]["fingerprint"] == load_encoder(str(other_model)).fingerprint()
    assert report["data"]["name"] == str(world.parquet)
    assert report["data"]["fingerprint"] == data_fingerprint(load_pairs(str(world.parquet)))
    assert (report["data"]["rows"], report["data"]["captions"], report["data"]["left_out"]) == (40, 40, [])
    assert report["statistics"]["seed"] == 3
    assert report["statistics"]["resamples"] == 50
    torch_version = report["environment"]["packages"]["torch"]
    assert torch_version in (torch.__version__, torch.__version__.split("+")[0])  # PyPI's names no CUDA version
    assert report["environment"]["command"]


def test_the_same_run_gives_the_same_file_but_for_the_date(whole, world, other_model, tmp_path):
    report, _ = whole
    again = evaluate(world, tmp_path / "again.json", **everything(world, other_model))
    assert again.keys() == report.keys()
    for name in report.keys() - {"environment"}:
        assert again[name] == report[name], name


def test_rsum_and_chance(whole):
    report, _ = whole
    assert report["rsum"] == pytest.approx(rsum({name: report[name] for name in ("text_to_image", "image_to_text")}))
    assert report["rsum_interval"][0] <= report["rsum"] <= report["rsum_interval"][1]
    assert report["chance"]["text_to_image"]["R@10"] == pytest.approx(25)


def test_rescored_rows_carry_their_label_and_leave_the_plain_ones_alone(whole, world, tmp_path):
    report, _ = whole
    plain = evaluate(world, tmp_path / "plain.json", seed=3)
    assert plain["text_to_image"] == report["text_to_image"]
    labels = [[row["rescoring"] for row in result.values()] for result in report["transductive"]]
    assert labels[0] == ["transductive: dual softmax, beta 20"] * 2
    assert all(label.startswith("transductive: querybank normalisation with 40 queries") for label in labels[1])
    titles = [str(table.title) for table in report_tables(report)]
    assert sum("not comparable with plain metrics" in title for title in titles) == 2
    assert len(report_tables(plain)) == 1


def test_the_query_table_gives_the_same_figures_again(whole, world):
    report, output = whole
    directions, about = read_query_table(query_table_path(output))
    assert about == {
        "model": report["model"]["name"],
        "fingerprint": report["model"]["fingerprint"],
        "data_fingerprint": report["data"]["fingerprint"],
    }
    for name, direction in directions.items():
        values = direction.metrics()
        assert values == {metric: report[name][metric] for metric in values}
        assert direction.chance() == report["chance"][name]


def test_comparing_with_a_file_is_comparing_with_its_model(whole, world, other_model, tmp_path):
    report, _ = whole
    evaluate(world, tmp_path / "other.json", other_model, failures=0)
    assert not (tmp_path / "other.failures.html").exists()
    for earlier in ("other.json", "other.queries.parquet"):
        again = evaluate(world, None, compare=str(tmp_path / earlier), seed=3)
        assert again["comparison"] == report["comparison"]
    with pytest.raises(ValueError, match="other data"):
        evaluate(world, None, data=str(world.imagefolder), split="train", compare=str(tmp_path / "other.json"))


def test_another_models_failure_costs_no_figure(world, tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    inner, calls = run.evaluate_encoder, []

    def second_fails(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 2:
            raise ValueError("out of luck")
        return inner(*arguments, **settings)

    monkeypatch.setattr(run, "evaluate_encoder", second_fails)
    with pytest.raises(ValueError, match="out of luck"):
        evaluate(world, output, compare=str(world.model))
    assert json.loads(output.read_text())["text_to_image"]["queries"] == 40
    assert query_table_path(output).is_file()


def test_a_failing_page_costs_no_figure(world, tmp_path, monkeypatch, caplog):
    def fails(*arguments):
        raise RuntimeError("no ink")

    monkeypatch.setattr(run, "write_failures", fails)
    report = evaluate(world, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(report))
    assert "the failure page was not written: RuntimeError: no ink" in caplog.text


def test_a_foreign_parquet_is_no_query_table(world):
    with pytest.raises(ValueError, match="not a per-query table"):
        read_query_table(world.parquet)


def test_fingerprints_are_of_the_content(world, tmp_path):
    """Captions, images and ids count; the name of the file does not."""
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(world.parquet.read_bytes())
    one = data_fingerprint(load_pairs(str(world.parquet)))
    assert data_fingerprint(load_pairs(str(copy))) == one
    pairs = load_pairs(str(copy))
    pairs.table = pairs.table.map(lambda row, i: {"caption": "other" if i == 7 else row["caption"]}, with_indices=True)
    assert data_fingerprint(pairs) != one
    folder = load_pairs(str(world.imagefolder))
    before = data_fingerprint(folder)
    name, image, _ = all_pairs()[3]
    image.rotate(90).save(world.imagefolder / name)
    try:
        assert data_fingerprint(folder) != before
    finally:
        image.save(world.imagefolder / name)


def test_folds_are_averaged(world):
    encoder, pairs = load_encoder(str(world.model)), load_pairs(str(world.parquet))
    folded = evaluate_encoder(encoder, pairs, folds=5)
    assert [len(part.rows) for part in folded.parts] == [8] * 5
    values = folded.metrics()["text_to_image"]
    assert (values["queries"], values["gallery"]) == (40, 8)
    singles = [rank_direction(*part.side("text_to_image")).metrics() for part in folded.parts]
    for metric in ("R@1", "median_rank", "mAP"):
        assert values[metric] == pytest.approx(np.mean([single[metric] for single in singles]))
    assert build_report(folded, resamples=20)["chance"]["text_to_image"]["R@1"] == pytest.approx(12.5)


# ---------------------------------------------------------------------- failures


def test_the_worst_failures_are_those_with_the_greatest_ranks():
    texts, images, ids = unit(30, 8), unit(12, 8, seed=1), torch.arange(30) % 12
    direction = rank_direction(texts, images, ids, torch.arange(12))
    found = worst_failures(direction, texts, images, count=6, shown=3)
    ranks = np.sort(direction.columns["rank"])[::-1][:6]
    assert [failure.rank for failure in found] == ranks.tolist()
    for failure in found:
        scores = (texts[failure.query].double() @ images.double().T).tolist()
        order = np.argsort(scores)[::-1]
        assert failure.truth == int(ids[failure.query])
        assert failure.score == pytest.approx(scores[failure.truth], abs=1e-7)
        assert [index for index, _ in failure.above] == order[: min(3, int(failure.rank) - 1)].tolist()


def test_right_answers_are_not_shown_as_wrong_ones():
    """Five captions an image: what stands above the best of them is wrong, what stands below is not shown."""
    images, texts = unit(6, 8), unit(30, 8, seed=1)
    text_ids = torch.arange(30) % 6
    direction = rank_direction(images, texts, torch.arange(6), text_ids)
    for failure in worst_failures(direction, images, texts, count=6, shown=4):
        assert int(text_ids[failure.truth]) == failure.query
        assert len(failure.above) == min(4, int(failure.rank) - 1)
        assert all(int(text_ids[index]) != failure.query and score > failure.score for index, score in failure.above)


def test_a_perfect_model_has_no_failures():
    embeds, ids = torch.eye(5), torch.arange(5)
    assert worst_failures(rank_direction(embeds, embeds, ids, ids), embeds, embeds) == []


def test_the_page_stands_alone_and_escapes_captions(world, tmp_path):
    rows = [
        {"image": str(world.imagefolder / name), "caption": f"<b>{text}</b> & more"} for name, _, text in all_pairs()
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = evaluate(world, tmp_path / "results.json", data=str(data), failures=7)
    page = (tmp_path / "results.failures.html").read_text()
    assert report["text_to_image"]["queries"] == 40
    assert page.count("<section>") == 14
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) > 14
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "href" not in page
