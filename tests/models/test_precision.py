"""Under autocast to bfloat16 or float16 the similarities, softmaxes, divergences and filter statistics are float32."""

import copy

import pytest
import torch

from hf_cots import COTSForPreTraining
from hf_cots.models import instance_level, task_level, token_level
from tests.support import reference
from tests.support.runs import assert_same_weights
from tests.support.steps import assert_close, gradients, split
from tests.support.tiny import tiny_batch, tiny_config


DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALVES = ["bfloat16", "float16"]


def autocast(dtype):
    return torch.autocast("cpu", dtype=DTYPES[dtype], enabled=DTYPES[dtype] is not None)


def make(**fields):
    """A tiny model whose momentum encoder differs from it."""
    torch.manual_seed(0)
    model = COTSForPreTraining(tiny_config(**fields))
    with torch.no_grad():
        for parameter in model.cots.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def run_finite(dtype, model, batch, **settings):
    """Forward under autocast and backward; loss, gradients and buffers must be finite."""
    with autocast(dtype):
        output = model(**batch, **settings)
    output.loss.backward()
    assert_finite(model, output)
    return output


def assert_finite(model, output):
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values() if gradient is not None)
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


@pytest.mark.parametrize("dtype", HALVES)
def test_the_contrast_is_that_of_float64_on_the_same_embeddings(dtype):
    """Whatever the towers rounded: from the embeddings on, nothing is lost to half precision."""
    model, batch = make(queue_size=8), tiny_batch() | {"image_ids": torch.arange(8)}
    with autocast(dtype):
        (step,) = model.begin_step([batch])
        output = model(**batch, step=step)
    assert all(output[name].dtype == torch.float32 for name in output if name.startswith("loss") or "embeds" in name)
    images, texts = output.image_embeds.double(), output.text_embeds.double()
    keys = [step.image_keys.double(), step.text_keys.double()]
    queues = [model.key_queue.image_keys.double(), model.key_queue.text_keys.double()]
    ignored = [[i == j for j in range(8)] for i in range(8)]
    tau = model.config.temperature
    i2t = reference.instance(images, keys[1], queues[1], ignored, tau)
    t2i = reference.instance(texts, keys[0], queues[0], ignored, tau)
    kl = reference.task(images, texts, *keys, *queues, ignored, tau)
    assert output.loss_instance.item() == pytest.approx(float(sum(i2t + t2i)) / 8, rel=2e-6)
    assert output.loss_task.item() == pytest.approx(float(sum(a + b for a, b in kl)) / 16, rel=2e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (instance_level, "instance_loss"),
        (instance_level, "contrast_logits"),
        (task_level, "task_loss"),
        (token_level, "masked_token_loss"),
    ],
)
def test_what_the_losses_compute_with_is_float32(monkeypatch, dtype, module, name):
    """Also inside: no intermediate result of a softmax or a divergence has fewer digits."""
    seen = []
    original = getattr(module, name)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                seen.append((str(function), result.dtype))
            return result

    def watched(*args, **kwargs):
        with Watch():
            return original(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)
    with autocast(dtype):
        make()(**tiny_batch())
    assert len(seen) > 2
    # A cast of an input that is half is a copy of it, and no computation.
    computed = [(function, kind) for function, kind in seen if "copy" not in function and "view" not in function]
    assert {kind for _, kind in computed} == {torch.float32}, [each for each in computed if each[1] != torch.float32]


@pytest.mark.parametrize("dtype", HALVES)
def test_filter_statistics_are_float32(dtype):
    model = make(similarity_queue_size=8)
    with autocast(dtype):
        (step,) = model.begin_step([tiny_batch()])
        threshold = model.filter_threshold()
    scores = model.score_queue.scores
    assert scores.dtype == threshold.dtype == step.image_keys.dtype == torch.float32
    exact = scores.double().mean() - model.config.filter_lambda * scores.double().std(correction=0)
    assert threshold.item() == pytest.approx(exact.item(), rel=1e-6)


# ---------------------------------------------------------------------- the edges


EDGES = [
    {"contrast": contrast, "center_keys": center} for contrast in ("momentum", "in_batch") for center in (True, False)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", EDGES, ids=str)
@pytest.mark.parametrize("bound", ["min_temperature", "max_temperature"])
@pytest.mark.parametrize("learned", [True, False])
def test_temperature_at_its_bounds(dtype, fields, bound, learned):
    temperature = getattr(tiny_config(), bound)
    model = make(temperature=temperature, learn_temperature=learned, **fields)
    if learned:
        model.cots.log_temperature.data.fill_(temperature).log_()
    run_finite(dtype, model, tiny_batch())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", EDGES, ids=str)
def test_equal_embeddings(dtype, fields):
    model = make(**fields)
    batch = {name: rows[:1].expand_as(rows).clone() for name, rows in tiny_batch().items()}
    for _ in range(2):
        run_finite(dtype, model, batch)
    if model.key_queue is not None and fields["center_keys"]:
        assert model.key_queue.image_keys.norm(dim=1).max() < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", [*EDGES, {"enqueue_before_loss": False}], ids=str)
def test_one_pair(dtype, fields):
    """As a step of its own, and as a batch of a larger step."""
    model, batch = make(**fields), tiny_batch()
    run_finite(dtype, model, {name: rows[:1] for name, rows in batch.items()})
    if model.key_queue is not None:
        assert model.key_queue.image_keys[0].norm() > 0.99, "a lone key must not vanish"
    pieces = split(batch, [1, 7])
    with autocast(dtype):
        steps = model.begin_step(pieces)
    for piece, step in zip(pieces, steps):
        run_finite(dtype, model, piece, step=step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", EDGES, ids=str)
def test_every_pair_dropped(dtype, fields):
    model = make(similarity_queue_size=4, filter_lambda=0.5, **fields)
    model.score_queue.scores.fill_(0.999)
    model.score_queue.filled.fill_(4)
    output = run_finite(dtype, model, tiny_batch())
    assert not output.kept.any()
    assert output.loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_queue_smaller_than_the_batch(dtype, size, fresh):
    model = make(queue_size=size, similarity_queue_size=size, enqueue_before_loss=fresh)
    for seed in range(3):
        run_finite(dtype, model, tiny_batch(seed=seed))
    assert int(model.key_queue.filled) == size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contrast", ["momentum", "in_batch"])
def test_a_batch_without_pairs(dtype, contrast):
    """A rank's share of a ragged last batch may be empty: it adds nothing, and every parameter gets its gradient."""
    model, batch = make(contrast=contrast, learn_temperature=True), tiny_batch()
    alone = copy.deepcopy(model)
    pieces = split(batch, [8, 0])
    with autocast(dtype):
        for piece, step in zip(pieces, model.begin_step(pieces)):
            output = model(**piece, step=step)
            (output.loss / 2).backward()
            assert all(gradient is not None for gradient in gradients(model).values())
        (step,) = alone.begin_step([batch])
        alone(**batch, step=step).loss.backward()
    assert output.loss.item() == 0
    assert_finite(model, output)
    assert int(model.pairs_seen) == int(alone.pairs_seen) == 8
    assert_close(gradients(model), gradients(alone), rtol=1e-3, atol=1e-4)
    assert_same_weights(dict(model.named_buffers()), dict(alone.named_buffers()))
