"""Gradient caching: micro-batches of a step are one batch to the contrast, dropout included, in the memory of one."""

import pytest
import torch

import hf_cots.train
from hf_cots import COTSForPreTraining
from hf_cots.models.step import Step
from hf_cots.train import main
from hf_cots.training.gradient_cache import RandomState, cache_gradients
from tests.support.recording import DoubleTrainer
from tests.support.runs import cookie_flags
from tests.support.steps import assert_close, recompute_activations, split, take_gradients
from tests.support.tiny import tiny_batch, tiny_config
from tests.support.tiny_cookie import cookie_batch, tiny_cookie
from tests.support.worlds import log_history


def cached_step(model, parts):
    """The gradients of a step, as Trainer makes them: each loss divided by the number of micro-batches."""
    losses = []
    for part, step in zip(parts, cache_gradients(model, parts, model.begin_step(parts))):
        with step.cached.random_state.replayed():
            output = model(**part, step=step)
        (output.loss / len(parts)).backward()
        losses.append(output.loss.item())
    return losses, take_gradients(model)


def tiny_cots(**fields):
    torch.manual_seed(0)
    levels = {"mvm_weight": 0, "mlm_weight": 0, "task_weight": 0.5, "filter_lambda": None}
    return COTSForPreTraining(tiny_config(**(levels | fields))).double().train()


def cots_batch(pairs):
    batch = tiny_batch(pairs) | {"image_ids": torch.arange(pairs).clamp(max=pairs - 2)}
    return batch | {"pixel_values": batch["pixel_values"].double()}


MODELS = {
    "cookie": (lambda: tiny_cookie(shared_dropout=0, learn_temperature=True, visual_weight=0.7), cookie_batch),
    "cookie, hinge": (lambda: tiny_cookie(shared_dropout=0, cross_modal_loss="hinge", margin=0.5), cookie_batch),
    "cots, in_batch": (lambda: tiny_cots(contrast="in_batch", learn_temperature=True), cots_batch),
    "cots, sigmoid": (lambda: tiny_cots(contrast="sigmoid", initial_logit_bias=-2), cots_batch),
    "cots, positives": (lambda: tiny_cots(contrast="in_batch", same_image="positive"), cots_batch),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [5, 5, 2], [6, 6, 0]], ids=str)
def test_micro_batches_give_the_gradient_of_one_batch(name, sizes):
    make, draw = MODELS[name]
    model, batch = make(), draw(12)
    wanted_loss = model(**batch).loss
    wanted_loss.backward()
    wanted = take_gradients(model)
    losses, given = cached_step(model, split(batch, sizes))
    assert losses == pytest.approx([wanted_loss.item()] * len(sizes), rel=1e-10)
    assert_close(given, wanted)
    assert max(gradient.abs().max() for gradient in wanted.values()) > 1e-3


def test_without_caching_micro_batches_are_not_one_batch():
    """So that the test above can fail."""
    model, batch = tiny_cookie(shared_dropout=0), cookie_batch(12)
    model(**batch).loss.backward()
    wanted = take_gradients(model)
    parts = split(batch, [4, 4, 4])
    for part, step in zip(parts, model.begin_step(parts)):
        (model(**part, step=step).loss / 3).backward()
    given = take_gradients(model)
    assert not torch.allclose(given["cookie.transformer.norm.weight"], wanted["cookie.transformer.norm.weight"])


def test_dropout_is_replayed():
    """The reference keeps all activations: it encodes the micro-batches in turn from the same random state, and takes
    the loss of all. Without the replay the second pass would draw other units than the first."""
    model, parts = tiny_cookie(shared_dropout=0.3), split(cookie_batch(12), [4, 4, 4])
    model.cookie.text_model.config.hidden_dropout_prob = 0.3
    for module in model.cookie.text_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    start = RandomState.now(torch.device("cpu"))
    steps = [model.evaluation_step(part) for part in parts]
    embeds = [model.contrast_embeds(part, step) for part, step in zip(parts, steps)]
    whole = {name: torch.cat([one[name] for one in embeds]) for name in embeds[0]}
    ids = torch.cat([part["image_ids"] for part in parts])
    terms = model.contrast_terms(whole, Step(ids, ids, torch.full((12,), 1 / 12, dtype=torch.float64)))
    torch.stack(list(terms.values())).sum().backward()
    wanted = take_gradients(model)
    start.restore()
    _, given = cached_step(model, parts)
    assert_close(given, wanted)
    after = torch.rand(3)
    start.restore()
    assert not torch.equal(torch.rand(3), after), "the step has used up randomness once, as a plain one does"


def test_activation_checkpointing_changes_nothing():
    """Recomputed activations are those of the second pass, which are those of the first."""
    parts = split(cookie_batch(8), [4, 4])
    gradients = []
    for checkpointing in (False, True):
        model = tiny_cookie(shared_dropout=0.3)
        if checkpointing:
            recompute_activations(model, use_reentrant=False)
        torch.manual_seed(5)
        gradients.append(cached_step(model, [dict(part) for part in parts])[1])
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("single_pass", [False, True])
def test_the_token_level_goes_along(single_pass):
    """COTS's masked passes stay within their micro-batch; the contrast, and the gradient it sends, are of the step."""
    fields = {"contrast": "in_batch", "mvm_weight": 0.5, "mlm_weight": 0.5, "single_pass": single_pass}
    batch = cots_batch(8)
    model = tiny_cots(**fields)
    model(**batch).loss.backward()
    wanted = take_gradients(model)
    model = tiny_cots(**fields)
    _, given = cached_step(model, split(batch, [4, 4]))
    assert_close(given, wanted, rtol=1e-7)


class Counter:
    """The most bytes that autograd keeps for the backward pass at one moment."""

    def __init__(self):
        self.now = self.peak = 0


class Kept:
    """A tensor kept for the backward pass, which counts as long as it lives."""

    def __init__(self, tensor, counter):
        self.tensor, self.counter, self.size = tensor, counter, tensor.numel() * tensor.element_size()
        counter.now += self.size
        counter.peak = max(counter.peak, counter.now)

    def __del__(self):
        self.counter.now -= self.size


def peak_of(step):
    counter = Counter()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Kept(tensor, counter), lambda kept: kept.tensor):
        step()
    return counter.peak


def test_a_batch_of_1024_takes_the_memory_of_64():
    """What is kept for the backward pass, beside the 1,024 x 1,024 similarities of each contrast."""
    model = tiny_cookie(shared_dropout=0.1).float()
    batch = {name: rows.float() if rows.is_floating_point() else rows for name, rows in cookie_batch(1024).items()}
    small = peak_of(lambda: model(**{name: rows[:64] for name, rows in batch.items()}).loss.backward())
    cached = peak_of(lambda: cached_step(model, split(batch, [64] * 16)))
    whole = peak_of(lambda: model(**batch).loss.backward())
    similarities = 3 * 2 * 4 * 1024 * 1024 * 4
    assert cached < small + similarities
    assert whole > 10 * small


# ---------------------------------------------------------------------- through the trainer


def run(world, monkeypatch, size, **settings):
    """Gradients of two steps of 8 pairs in float64, and what was logged."""
    monkeypatch.setattr(hf_cots.train, "COTSTrainer", DoubleTrainer)
    folder = world.root / f"run-{size}"
    settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 2}
    overrides = {"shared_dropout": 0}
    hf_cots.train.train(cookie_flags(world, folder, overrides, save_strategy="steps", save_steps=2, **settings))
    return DoubleTrainer.last.gradients, [line for line in log_history(folder, 2) if "loss" in line]


def test_the_trainer_contrasts_the_whole_step(world, monkeypatch):
    wanted, lines = run(world, monkeypatch, 8)
    given, cached_lines = run(world, monkeypatch, 2, gradient_cache=True)
    for step in range(2):
        assert_close(given[step], wanted[step], rtol=1e-8, atol=1e-11)
        for name in ("loss", "loss_cross_modal", "loss_visual", "loss_textual", "grad_norm"):
            assert cached_lines[step][name] == pytest.approx(lines[step][name], abs=2e-5)


def test_the_first_pass_runs_in_training_mode(world, monkeypatch):
    """A model comes from `from_pretrained` in evaluation mode: without dropout in the first pass, the second would not
    be the first one again."""
    modes, cache = [], hf_cots.training.trainer.cache_gradients

    def watch(model, *arguments):
        modes.append(model.training)
        return cache(model, *arguments)

    monkeypatch.setattr(hf_cots.training.trainer, "cache_gradients", watch)
    build = hf_cots.train.build_model
    monkeypatch.setattr(hf_cots.train, "build_model", lambda *arguments: build(*arguments).eval())
    run(world, monkeypatch, 4, gradient_cache=True)
    assert modes == [True, True]


def test_the_momentum_contrast_needs_no_cache(world):
    with pytest.raises(SystemExit, match="--gradient_cache is only for in-batch contrasts"):
        main(world.flags(world.root / "refused", gradient_cache=True))
