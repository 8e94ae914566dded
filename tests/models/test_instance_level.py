"""Each contrast against slow float64 loops over its paper's formula: values and gradients, alone and in the model."""

import copy
import math

import pytest
import torch

from hf_cots.models.instance_level import ContrastRows, compare_in_batch, compare_with_queue, instance_losses
from hf_cots.models.losses import l2_normalize, soft_targets
from hf_cots.models.queues import KeyCenter, KeyQueue
from hf_cots.models.step import Step
from tests.models.test_losses import assert_same, leaves, unit
from tests.support import reference
from tests.support.runs import load_exactly
from tests.support.steps import assert_close, compare_on_last_rank, data, descend, gradients, make, run_step
from tests.support.tiny import tiny_config


TAU = 0.1
IDS = torch.tensor([4, 9, 5, 9, 8, 9])  # pairs 1, 3 and 5 show one image
LEVELS_OFF = {"mvm_weight": 0.0, "mlm_weight": 0.0, "task_weight": 0.0, "filter_lambda": None}


def siglip(images, texts, tau, bias, same_image):
    """`-1/2 sum_j [ log sigmoid(z_ij (t x_i.y_j + b)) + log sigmoid(z_ji ...) ]` of each pair i."""
    losses = []
    for i in range(len(images)):
        total = 0
        for j in range(len(images)):
            if i != j and IDS[i] == IDS[j] and same_image == "excluded":
                continue
            sign = 1 if IDS[i] == IDS[j] else -1
            for a, b in ((images[i], texts[j]), (texts[i], images[j])):
                total = total - torch.log(1 / (1 + torch.exp(-sign * (reference.dot(a, b) / tau + bias[0])))) / 2
        losses.append(total)
    return losses


@pytest.mark.parametrize("same_image", ["excluded", "positive"])
@pytest.mark.parametrize("first", [0, 2])
def test_sigmoid_equals_the_loop(same_image, first):
    """With gradient to images, texts, temperature and bias; on all pairs, and on a rank that holds the last four."""
    start = [unit(6, 5, seed=1), unit(6, 5, seed=2)]
    start += [torch.tensor(TAU, dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)]
    a, b = leaves(*start), leaves(*start)
    rows = compare_on_last_rank(a[0], a[1], IDS, first, a[2], same_image)
    ours = instance_losses(rows, tiny_config(contrast="sigmoid"), logit_bias=a[3])
    assert_same(ours, siglip(*b, same_image)[first:], a, b)


def test_sigmoid_of_different_images_is_the_pseudocode_of_its_paper():
    images, texts, ids, bias = unit(5, 4, seed=1), unit(5, 4, seed=2), torch.arange(5), torch.tensor([-10.0])
    rows = compare_in_batch(images, texts, ids, TAU)
    ours = instance_losses(rows, tiny_config(contrast="sigmoid"), logit_bias=bias).mean()
    logits = images @ texts.T / TAU + bias
    labels = 2 * torch.eye(5, dtype=torch.float64) - 1
    torch.testing.assert_close(ours, -torch.nn.functional.logsigmoid(labels * logits).sum() / 5)


def supervised(queries, keys, tau):
    """`-1/|P(i)| sum_{p in P(i)} log( exp(q_i.k_p / tau) / sum_j exp(q_i.k_j / tau) )`."""
    losses = []
    for i in range(len(queries)):
        p = reference.probabilities([reference.dot(queries[i], keys[j]) / tau for j in range(len(keys))])
        positives = [j for j in range(len(keys)) if IDS[j] == IDS[i]]
        losses.append(-sum(torch.log(p[j]) for j in positives) / len(positives))
    return losses


def test_several_positives_equal_the_loop():
    a, b = (leaves(unit(6, 5, seed=1), unit(6, 5, seed=2)) for _ in range(2))
    ours = instance_losses(compare_in_batch(*a, IDS, TAU, "positive"), tiny_config(contrast="in_batch"))
    theirs = [(x + y) / 2 for x, y in zip(supervised(*b, TAU), supervised(b[1], b[0], TAU))]
    assert_same(ours, theirs, a, b)


def step_with(image_keys, text_keys):
    """A step of the pairs 100 to 105 of the run."""
    return Step(IDS, 100 + torch.arange(6), torch.ones(6), image_keys=image_keys, text_keys=text_keys)


def filled_queue(slots=9, held=7, dim=5):
    """Seven of nine slots: two of the images of the batch, and the batch's own pairs 0 and 1 (index 100, 101)."""
    queue = KeyQueue(slots, dim).double()
    ids, numbers = torch.tensor([9, 77, 78, 5, 79, 4, 9])[:held], torch.tensor([50, 51, 52, 53, 54, 100, 101])[:held]
    queue.enqueue(unit(held, dim, seed=20), unit(held, dim, seed=21), ids, numbers)
    return queue, ids.tolist(), numbers.tolist()


def albef(queries, keys, query_keys, queued, ids, numbers, alpha, tau, same_image):
    """`-sum_j ((1 - alpha) y_ij + alpha softmax(k_i.q_j / tau)_j) log softmax(f_i.q_j / tau)_j`, entry by entry."""
    losses = []
    for i in range(len(queries)):
        entries, positive = [keys[i]], [True]
        for j in range(len(ids)):
            same = ids[j] == int(IDS[i])
            if numbers[j] == 100 + i or (same and same_image == "excluded"):
                continue
            entries.append(queued[j])
            positive.append(same)
        p = reference.probabilities([reference.dot(queries[i], k) / tau for k in entries])
        q = reference.probabilities([(reference.dot(query_keys[i], k) / tau).detach() for k in entries])
        y = [1 / sum(positive) if is_positive else 0 for is_positive in positive]
        losses.append(-sum(((1 - alpha) * y[j] + alpha * q[j]) * torch.log(p[j]) for j in range(len(p))))
    return losses


@pytest.mark.parametrize("same_image", ["excluded", "positive"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_soft_targets_over_the_queue_equal_the_loop(alpha, same_image):
    queue, ids, numbers = filled_queue()
    image_keys, text_keys = unit(6, 5, seed=3), unit(6, 5, seed=4)
    config = tiny_config(soft_target_alpha=0.4, same_image=same_image)
    start = (unit(6, 5, seed=1), unit(6, 5, seed=2), torch.tensor(TAU, dtype=torch.float64))
    a, b = leaves(*start), leaves(*start)
    rows = compare_with_queue(a[0], a[1], step_with(image_keys, text_keys), queue, a[2], config)
    assert (rows.positives is not None and bool(rows.positives[:, 1:].any())) == (same_image == "positive")
    ours = instance_losses(rows, config, alpha)
    shared = (ids, numbers, alpha, b[2], same_image)
    i2t = albef(b[0], text_keys, image_keys, queue.text_keys, *shared)
    t2i = albef(b[1], image_keys, text_keys, queue.image_keys, *shared)
    assert_same(ours, [x + y for x, y in zip(i2t, t2i)], a, b)


@pytest.mark.parametrize("same_image", ["excluded", "positive"])
def test_empty_slots_and_the_own_key_count_for_nothing(same_image):
    """Whatever an empty slot holds: the loss is that of a queue without it."""
    config = tiny_config(soft_target_alpha=0.4, same_image=same_image)
    results = []
    for slots in (7, 9):
        queue, *_ = filled_queue(slots)
        queue.image_keys[7:], queue.text_keys[7:] = 1e3, 1e3
        queue.image_ids[7:], queue.pair_index[7:] = 9, 105
        images, texts, *keys = (unit(6, 5, seed=s) for s in range(4))
        rows = compare_with_queue(images, texts, step_with(*keys), queue, TAU, config)
        results.append(instance_losses(rows, config, 0.4))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert rows.positives is None or not rows.positives[0, 6], "the own key is in column 0 and nowhere else"


def test_without_options_the_rows_loss_is_infonce():
    logits = torch.randn(4, 6, dtype=torch.float64)
    first = torch.zeros(4, 6, dtype=torch.bool)
    first[:, 0] = True
    ours = instance_losses(ContrastRows(logits, logits.flip(0), first), tiny_config())
    assert torch.equal(ours, instance_losses(ContrastRows(logits, logits.flip(0)), tiny_config()))
    expected = -(logits.log_softmax(1)[:, 0] + logits.flip(0).log_softmax(1)[:, 0])
    torch.testing.assert_close(ours, expected)
    assert torch.equal(soft_targets(first.double(), None, 0.4), first.double())


# ---------------------------------------------------------------------- in the model


def embeds_of(model, batch, momentum=False):
    net = model.momentum_encoder if momentum else model.cots
    image = net.encode_image(batch["pixel_values"]).pooler_output
    text = net.encode_text(batch["input_ids"], batch["attention_mask"]).pooler_output
    return l2_normalize(net.visual_projection(image)), l2_normalize(net.text_projection(text))


def assert_same_gradients(model, expected_model):
    assert_close(gradients(model), gradients(expected_model), rtol=1e-8)
    assert sum(g is not None and bool(g.abs().max() > 1e-8) for g in gradients(expected_model).values()) > 40


def test_the_model_with_the_sigmoid_loss():
    model = make(contrast="sigmoid", temperature=TAU, learn_temperature=True, **LEVELS_OFF)
    assert model.momentum_encoder is None
    assert model.logit_bias.tolist() == [-10.0]
    again, batch = copy.deepcopy(model), data(model)
    batch["image_ids"] = torch.arange(8)
    output = model(**batch)
    images, texts = embeds_of(again, batch)
    logits = images @ texts.T / again.cots.log_temperature.exp() + again.logit_bias
    expected = -torch.nn.functional.logsigmoid((2 * torch.eye(8) - 1) * logits).sum() / 8
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=1e-12)
    output.loss.backward()
    expected.backward()
    assert model.logit_bias.grad.abs() > 1e-6
    assert_same_gradients(model, again)


def test_the_model_with_albefs_contrast():
    """The second of two steps; alpha is half way up its ramp of two steps."""
    fields = {"soft_target_alpha": 0.4, "soft_target_warmup_steps": 2, "center_keys": False, "queue_size": 20}
    model = make(**fields, **LEVELS_OFF)
    batches = [data(model, seed=seed) for seed in range(2)]
    run_step(model, batches[0], [8])
    model.end_step()
    model.zero_grad()
    again = copy.deepcopy(model)
    (step,) = model.begin_step([batches[1]])
    output = model(**batches[1], step=step)
    images, texts = embeds_of(again, batches[1])
    with torch.no_grad():
        image_keys, text_keys = embeds_of(again, batches[1], momentum=True)
    queued = [
        torch.cat([q[:8], k])
        for q, k in zip((again.key_queue.image_keys, again.key_queue.text_keys), (image_keys, text_keys))
    ]
    ids = torch.cat([batches[0]["image_ids"], batches[1]["image_ids"]])
    expected = 0
    for queries, query_keys, keys, entries in (
        (images, image_keys, text_keys, queued[1]),
        (texts, text_keys, image_keys, queued[0]),
    ):
        for i in range(8):
            free = ids != batches[1]["image_ids"][i]
            candidates = torch.cat([keys[i : i + 1], entries[free]])
            y = torch.eye(len(candidates), dtype=torch.float64)[0]
            target = 0.8 * y + 0.2 * (query_keys[i] @ candidates.T / 0.05).softmax(0)
            expected = expected - (target * (queries[i] @ candidates.T / 0.05).log_softmax(0)).sum() / 8
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=1e-11)
    output.loss.backward()
    expected.backward()
    assert_same_gradients(model, again)


OPTIONS = {
    "albef": {"soft_target_alpha": 0.4, "soft_target_warmup_steps": 3, "center_keys": False},
    "several positives": {"same_image": "positive"},
    "running center": {"center_momentum": 0.9, "momentum_warmup_steps": 4},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_queue_accumulate_exactly(option):
    """Three steps of 1 x 16 and of ragged micro-batches; the filter on."""
    whole = make(**OPTIONS[option], queue_size=24, similarity_queue_size=16, filter_lambda=0.5)
    plain = make(queue_size=24, similarity_queue_size=16, filter_lambda=0.5)
    parts = copy.deepcopy(whole)
    for step in range(3):
        batch, losses = data(whole, 16, seed=step), []
        for model, micro in ((whole, [16]), (parts, [5, 1, 10]), (plain, [16])):
            model.zero_grad()
            losses.append(run_step(model, batch, micro)[0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
        assert_close(gradients(parts), gradients(whole))
        for model in (whole, parts, plain):
            descend(model)
        assert_close(dict(parts.named_buffers()), dict(whole.named_buffers()))
    assert losses[0] != pytest.approx(losses[2], rel=1e-4), "the option must make a difference"


def test_momentum_warms_up_linearly():
    model, used = make(momentum=0.8, momentum_warmup_steps=4, **LEVELS_OFF), []
    weight = model.momentum_encoder.text_projection.weight
    for step in range(6):
        run_step(model, data(model, seed=step), [8])
        before = weight.clone()
        with torch.no_grad():
            model.cots.text_projection.weight.add_(1.0)
        online = model.cots.text_projection.weight.detach()
        model.end_step()
        used.append(float(((weight - online) / (before - online)).mean()))
    assert used == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_running_center_equals_a_loop_and_starts_at_the_first_mean():
    center, expected = KeyCenter(4, 0.7).double(), None
    for step in range(4):
        means = unit(2, 4, seed=step)
        center.update(*means)
        expected = means if expected is None else 0.7 * expected + 0.3 * means
        torch.testing.assert_close(center.means, expected)
    assert int(center.steps) == 4


def test_keys_are_centered_with_the_running_mean():
    model = make(center_momentum=0.9, **LEVELS_OFF)
    for seed in range(2):
        batch = data(model, seed=seed)
        raw = model.momentum_features(batch)["image_keys"]
        (step,) = model.begin_step([batch])
        centered = l2_normalize(raw - model.key_center.means[0], eps=1e-3)
        torch.testing.assert_close(step.image_keys, centered)
    assert (raw.mean(dim=0) - model.key_center.means[0]).abs().max() > 1e-4, "not this step's own mean"
    assert make(**LEVELS_OFF).key_center is None


@pytest.mark.parametrize("contrast", ["momentum", "in_batch", "sigmoid"])
@pytest.mark.parametrize("same_image", ["excluded", "positive"])
def test_every_level_goes_with_every_contrast(contrast, same_image, tmp_path):
    model = make(contrast=contrast, same_image=same_image).float()
    batch = data(model)
    batch["pixel_values"] = batch["pixel_values"].float()
    for _ in range(2):
        output = model(**batch)
        output.loss.backward()
    for term in ("instance", "mvm", "mlm", "task"):
        assert output[f"loss_{term}"] > 0
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
    model.save_pretrained(tmp_path)
    loaded = load_exactly(type(model), tmp_path)
    if contrast == "sigmoid":
        assert torch.equal(loaded.logit_bias, model.logit_bias)


def test_equal_embeddings_under_the_sigmoid_loss():
    """Eight copies of one pair under different ids: one yes and seven no at the same logit 1 / tau + b."""
    model = make(contrast="sigmoid", **LEVELS_OFF)
    batch = {name: tensor[:1].expand(8, *tensor.shape[1:]) for name, tensor in data(model).items()}
    batch["image_ids"] = torch.arange(8)
    with torch.no_grad():
        for own, other in ((model.cots.text_projection, model.cots.visual_projection),):
            own.weight.zero_(), other.weight.zero_()
            own.bias.fill_(1.0), other.bias.fill_(1.0)
    logit = 1 / model.config.temperature - 10
    expected = math.log1p(math.exp(-logit)) + 7 * math.log1p(math.exp(logit))
    assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------- nested dimensions


@pytest.mark.parametrize("contrast", ["in_batch", "sigmoid"])
def test_nested_dimensions_are_the_mean_of_smaller_models(contrast):
    """The loss and its gradient by the towers, against models whose embeddings are the first dimensions."""
    fields = LEVELS_OFF | {"contrast": contrast}
    nested, plain = make(nested_dims=[3, 8], **fields), make(**fields)
    losses, batch = [], data(nested)
    for model, dim in ((plain, None), (plain, 3), (plain, 8)):
        smaller = copy.deepcopy(model)
        smaller.cots = model.cots if dim is None else model.cots.truncated(dim)
        losses.append(run_step(smaller, batch, [8])[0])
    loss, _ = run_step(nested, batch, [8])
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert max(losses) - min(losses) > 1e-3, "the dimensions must differ for this to say anything"


def test_nested_dimensions_over_the_queue_equal_a_queue_of_them():
    queue, *_ = filled_queue()
    images, texts, *keys = (unit(6, 5, seed=s) for s in range(4))
    config = tiny_config(soft_target_alpha=0.4)
    ours = compare_with_queue(images, texts, step_with(*keys), queue, TAU, config, dim=3)
    short = copy.deepcopy(queue)
    short.image_keys, short.text_keys = (l2_normalize(rows[:, :3]) for rows in (queue.image_keys, queue.text_keys))
    images, texts, *keys = (l2_normalize(rows[:, :3]) for rows in (images, texts, *keys))
    expected = compare_with_queue(images, texts, step_with(*keys), short, TAU, config)
    for name in ("image_to_text", "text_to_image", "keys_image_to_text", "keys_text_to_image"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


def test_nested_dimensions_train_over_the_queue():
    model = make(nested_dims=[4], queue_size=32, **LEVELS_OFF)
    losses = [run_step(model, data(model, seed=seed), [4, 4])[0] for seed in range(2)]
    assert all(map(math.isfinite, losses))
    assert model.cots.visual_projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dims", [[0], [4, 4], [16]])
def test_nested_dimensions_are_fewer_than_all(dims):
    with pytest.raises(Exception, match="nested_dims must be distinct and below projection_dim=16"):
        tiny_config(nested_dims=dims)
