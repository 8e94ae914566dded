"""`compute_metrics` in a plain Trainer: the metrics of the whole set, whatever the batches."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPOutput

from hf_cots.evaluation.retrieval.directions import retrieval_metrics
from hf_cots.evaluation.retrieval.metrics import rsum
from hf_cots.evaluation.retrieval.trainer_metrics import RetrievalMetrics
from hf_cots.models import COTSForPreTrainingOutput, COTSOutput
from tests.support.table_model import PICTURES, LookupOutput, pairs, trainer_evaluation


def expected():
    """By [`retrieval_metrics`] on 13 texts and 5 pictures."""
    images, texts, ids = pairs()
    first = torch.tensor([ids.tolist().index(i) for i in ids.unique()])
    both = {
        "text_to_image": retrieval_metrics(texts, images[first], ids, ids[first]),
        "image_to_text": retrieval_metrics(images[first], texts, ids[first], ids),
    }
    assert both["text_to_image"]["gallery"] == PICTURES
    return {f"{name}_{m}": v for name, values in both.items() for m, v in values.items()} | {"rsum": rsum(both)}


@pytest.mark.parametrize("batch_size", [1, 4, 13])
@pytest.mark.parametrize("settings", [{}, {"batch_eval_metrics": True}, {"eval_accumulation_steps": 1}])
def test_trainer_reports_the_metrics_of_the_whole_set(tmp_path, batch_size, settings):
    results = trainer_evaluation(tmp_path, batch_size, **settings)
    for name, value in expected().items():
        assert results[f"eval_{name}"] == pytest.approx(value, abs=1e-9), name


def test_a_second_evaluation_starts_anew():
    metrics, (images, texts, ids) = RetrievalMetrics(COTSOutput), pairs()
    for _ in range(2):
        halves = [slice(0, 6), slice(6, 13)]
        for half in halves:
            prediction = EvalPrediction(predictions=(images[half], texts[half]), label_ids=ids[half])
            results = metrics(prediction, compute_result=half is halves[1])
            assert bool(results) == (half is halves[1])
        assert results == pytest.approx(expected())


def test_each_pair_can_have_a_picture_of_its_own():
    """Then a text has several correct answers, here all equal: nothing is lost by the best of them."""
    images, texts, ids = (each.numpy() for each in pairs())
    results = RetrievalMetrics(COTSOutput, one_image_per_id=False)(EvalPrediction((images, texts), ids))
    assert results["text_to_image_gallery"] == results["image_to_text_queries"] == 13
    task = [torch.from_numpy(each) for each in (texts, images, ids, ids)]
    wanted = retrieval_metrics(*task)
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


def test_what_is_wrong_is_said():
    images, texts, ids = pairs()
    metrics = RetrievalMetrics(COTSOutput)
    with pytest.raises(ValueError, match="keys_to_ignore_at_inference"):
        metrics(EvalPrediction((images @ texts.T, images, texts), ids))
    with pytest.raises(ValueError, match="keys_to_ignore_at_inference"):
        metrics(EvalPrediction(images, ids))
    with pytest.raises(ValueError, match="label_names"):
        metrics(EvalPrediction((images, texts), (ids, ids)))
    with pytest.raises(ValueError, match="label_names"):
        metrics(EvalPrediction((images, texts), np.zeros((13, 2))))
    with pytest.raises(ValueError, match="BaseModelOutput has no field 'image_embeds'"):
        RetrievalMetrics(BaseModelOutput)
