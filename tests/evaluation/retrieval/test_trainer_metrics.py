"""`compute_metrics` in a plain Trainer: the metrics of the whole set, whatever the batches."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPOutput

from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.evaluation.retrieval.trainer_metrics import RetrievalMetrics
from hf_cots.models import COTSForPreTrainingOutput, COTSOutput
from tests.support.table_model import LookupOutput, expected, pairs, trainer_evaluation


@pytest.mark.parametrize("batch_size", [1, 4, 13])
@pytest.mark.parametrize("settings", [{}, {"batch_eval_metrics": True}, {"eval_accumulation_steps": 1}])
def test_trainer_reports_the_metrics_of_the_whole_set(tmp_path, batch_size, settings):
    results = trainer_evaluation(tmp_path, batch_size, **settings)
    for name, value in expected().items():
        assert results[f"eval_{name}"] == pytest.approx(value, abs=1e-9), name


def test_a_second_evaluation_starts_afresh():
    metrics, (images, texts, ids) = RetrievalMetrics(COTSOutput), pairs()
    for _ in range(2):
        halves = [slice(0, 6), slice(6, 13)]
        for half in halves:
            prediction = EvalPrediction(predictions=(images[half], texts[half]), label_ids=ids[half])
            results = metrics(prediction, compute_result=half is halves[1])
            assert bool(results) == (half is halves[1])
        assert results == pytest.approx(expected())


def test_each_pair_can_have_an_image_of_its_own():
    """Then a text has several correct answers, here all equal: nothing is lost by the best of them."""
    images, texts, ids = (each.numpy() for each in pairs())
    results = RetrievalMetrics(COTSOutput, one_image_per_id=False)(EvalPrediction((images, texts), ids))
    assert results["text_to_image_gallery"] == results["image_to_text_queries"] == 13
    task = [torch.from_numpy(each) for each in (texts, images, ids, ids)]
    wanted = rank_direction(*task).metrics()
    assert {name: results[f"text_to_image_{name}"] for name in wanted} == wanted


@pytest.mark.parametrize("output_class", [COTSOutput, COTSForPreTrainingOutput, CLIPOutput, LookupOutput])
def test_all_outputs_but_the_embeddings_are_ignored(output_class):
    metrics = RetrievalMetrics(output_class)
    rest = [name for name in output_class.__dataclass_fields__ if name not in (*metrics.ignore_keys, "loss")]
    assert rest == metrics.order
    assert set(rest) == {"image_embeds", "text_embeds"}


def test_the_order_is_that_of_the_output_class():
    images, texts, ids = pairs()
    straight = RetrievalMetrics(COTSOutput)(EvalPrediction((images, texts), ids))
    assert RetrievalMetrics(CLIPOutput)(EvalPrediction((texts, images), ids)) == straight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t, ids: ((i @ t.T, i, t), ids), "keys_to_ignore_at_inference"),
        (lambda i, t, ids: (i, ids), "keys_to_ignore_at_inference"),
        (lambda i, t, ids: ((i, t), (ids, ids)), "label_names"),
        (lambda i, t, ids: ((i, t), np.zeros((13, 2))), "label_names"),
    ],
)
def test_wrong_predictions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RetrievalMetrics(COTSOutput)(EvalPrediction(*change(*pairs())))


def test_an_output_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="BaseModelOutput has no field 'image_embeds'"):
        RetrievalMetrics(BaseModelOutput)
