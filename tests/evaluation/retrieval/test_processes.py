"""Two processes divide the queries, and agree with one bit for bit."""

import json

import pytest

from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.run import EvaluationRun
from tests.support.embeddings import many_to_many
from tests.support.paths import SCRIPTS
from tests.support.processes import torchrun
from tests.support.table_model import trainer_evaluation


@pytest.fixture(scope="module")
def ranks(world, tmp_path_factory):
    """The output folder of two processes and what each of them computed."""
    output = tmp_path_factory.mktemp("ranks")
    script = SCRIPTS / "evaluation_ranks.py"
    errors = torchrun(2, script, output, world.model, world.parquet, world.model)
    assert (output / "ranks.json").is_file(), errors[-4000:]
    return output, json.loads((output / "ranks.json").read_text())


def metric_names(run):
    """All that Trainer reports but loss and times."""
    names = [name for name in run if name.startswith(("eval_text", "eval_image", "eval_rsum"))]
    assert len(names) == 27
    return names


def test_both_processes_have_the_whole_result(ranks):
    _, (first, second) = ranks
    for results in (first, second):
        results["trainer"] = [{name: run[name] for name in metric_names(run)} for run in results["trainer"]]
    assert first == second


def test_ranks_are_bit_for_bit_those_of_one_process(ranks):
    """Also with more processes than queries."""
    _, (results, _) = ranks
    few = [each[:1] for each in many_to_many(classes=1)]
    for name, task in {"columns": many_to_many(queries=51), "few": few}.items():
        alone = rank_direction(*task).columns
        assert results[name] == {column: values.tolist() for column, values in alone.items()}


@pytest.mark.parametrize("batch_eval", [False, True])
def test_trainer_under_ddp_with_a_ragged_last_batch(ranks, tmp_path, batch_eval):
    """13 pairs in batches of 3 for each of two processes: the last round has one pair, and five that fill it up."""
    _, (results, _) = ranks
    alone = trainer_evaluation(tmp_path, 5)
    names = metric_names(alone)
    assert {name: results["trainer"][batch_eval][name] for name in names} == {name: alone[name] for name in names}


def test_a_whole_evaluation_writes_the_report_of_one_process(ranks, world, tmp_path):
    output, (results, _) = ranks
    report = json.loads((output / "results.json").read_text())
    alone = tmp_path / "results.json"
    settings = {"compare": str(world.model), "dual_softmax": True, "resamples": 30, "output": alone}
    EvaluationRun(str(world.model), str(world.parquet), **settings).run(lambda report: None)
    expected = json.loads(alone.read_text())
    assert report["environment"]["processes"] == 2
    del report["environment"], expected["environment"]
    assert report == expected
    assert results["rescored"] == expected["transductive"]
    assert (output / "results.failures.html").read_text() == alone.with_suffix(".failures.html").read_text()
