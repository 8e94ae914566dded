"""Each loss against slow float64 loops over the paper's formulas: values and gradients."""

import math

import pytest
import torch

from hf_cots.models import losses
from hf_cots.models.instance_level import compare_in_batch
from tests.support import reference
from tests.support.steps import compare_on_last_rank


TAU = 0.07


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def material(n=4, slots=7, dim=5):
    """Embeddings, keys and queues of both modalities and a mask that leaves every query something else."""
    names = ("images", "texts", "image_keys", "text_keys")
    data = {name: unit(n, dim, seed=i) for i, name in enumerate(names)}
    data |= {"image_queue": unit(slots, dim, seed=10), "text_queue": unit(slots, dim, seed=11)}
    data["ignored"] = torch.rand(n, slots, generator=torch.Generator().manual_seed(3)) < 0.3
    assert 0 < data["ignored"].sum() < n * slots
    return data


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def assert_same(ours, theirs, our_leaves, their_leaves):
    """Values and, for a random weighting of the rows, the gradients of all leaves."""
    theirs = torch.stack(list(theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    weights = torch.linspace(0.5, 2, len(ours), dtype=torch.float64)
    ours_g = torch.autograd.grad((ours * weights).sum(), our_leaves, allow_unused=True)
    theirs_g = torch.autograd.grad((theirs * weights).sum(), their_leaves, allow_unused=True)
    for a, b in zip(ours_g, theirs_g):
        assert (a is None) == (b is None)
        if a is not None:
            assert b.abs().max() > 1e-6, "the comparison would be empty"
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_instance_loss_equals_the_loop():
    m = material()
    a = leaves(m["images"], torch.tensor(TAU, dtype=torch.float64))
    b = leaves(m["images"], torch.tensor(TAU, dtype=torch.float64))
    ours = losses.instance_loss(losses.contrast_logits(a[0], m["text_keys"], m["text_queue"], m["ignored"], a[1]))
    theirs = reference.instance(b[0], m["text_keys"], m["text_queue"], m["ignored"], b[1])
    assert_same(ours, theirs, a, b)


def test_logits_have_the_positive_first_and_one_column_per_slot():
    m = material()
    logits = losses.contrast_logits(m["images"], m["text_keys"], m["text_queue"], m["ignored"], TAU)
    assert logits.shape == (4, 8)
    torch.testing.assert_close(logits[:, 0], torch.stack([a @ b for a, b in zip(m["images"], m["text_keys"])]) / TAU)
    free = ~m["ignored"]
    torch.testing.assert_close(logits[:, 1:][free], (m["images"] @ m["text_queue"].T / TAU)[free])
    assert (logits.softmax(dim=1)[:, 1:][m["ignored"]] == 0).all()


def test_task_loss_equals_the_loop():
    m = material()
    a, b = leaves(m["images"], m["texts"]), leaves(m["images"], m["texts"])
    i2t = losses.contrast_logits(a[0], m["text_keys"], m["text_queue"], m["ignored"], TAU)
    t2i = losses.contrast_logits(a[1], m["image_keys"], m["image_queue"], m["ignored"], TAU)
    keys = [m[k] for k in ("image_keys", "text_keys", "image_queue", "text_queue", "ignored")]
    assert_same(losses.task_loss(i2t, t2i), [(x + y) / 2 for x, y in reference.task(*b, *keys, TAU)], a, b)


def test_task_loss_is_zero_for_equal_distributions_and_positive_otherwise():
    logits = torch.randn(3, 6, dtype=torch.float64)
    assert losses.task_loss(logits, logits + 4.0).abs().max() < 1e-12
    assert (losses.task_loss(logits, logits.flip(1)) > 0).all()


def test_masked_token_loss_equals_the_loop():
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 9, (4, 6), generator=generator)
    masked = torch.rand(4, 6, generator=generator) < 0.5
    masked[2] = False
    assert len(set(masked.sum(dim=1).tolist())) > 2, "rows must differ in their number of masked positions"
    (a,), (b,) = leaves(full), leaves(full)
    ours = losses.masked_token_loss(a[masked], targets[masked], masked)
    assert ours[2] == 0
    assert_same(ours, reference.token(b, targets, masked), [a], [b])


def test_masked_token_loss_of_a_batch_without_masks_is_zero_and_differentiable():
    logits = torch.zeros(0, 9, requires_grad=True)
    loss = losses.masked_token_loss(logits, torch.zeros(0, dtype=torch.long), torch.zeros(3, 6, dtype=torch.bool))
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()


def test_mean_of_masked():
    masked = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert losses.mean_of_masked(torch.tensor([1.0, 3.0, 5.0]), masked).tolist() == [2, 0, 5]


def test_in_batch_equals_the_loop_with_gradient_to_both_sides():
    """Two ranks' worth of keys; pairs 1 and 3 show the same image."""
    queries, keys = unit(3, 5, seed=1), unit(6, 5, seed=2)
    all_ids = torch.tensor([4, 9, 5, 9, 8, 7])
    a, b = leaves(queries, keys), leaves(queries, keys)
    all_queries = torch.cat([unit(3, 5, seed=3), a[0]])
    rows = compare_on_last_rank(all_queries, a[1], all_ids, 3, TAU)
    ours = losses.instance_loss(rows.image_to_text)
    theirs = []
    for i in range(3):
        denominator = sum(
            torch.exp(reference.dot(b[0][i], b[1][j]) / TAU)
            for j in range(6)
            if j == 3 + i or all_ids[j] != all_ids[3 + i]
        )
        theirs.append(-torch.log(torch.exp(reference.dot(b[0][i], b[1][3 + i]) / TAU) / denominator))
    assert_same(ours, theirs, a, b)


def test_in_batch_without_repeated_images_is_plain_infonce():
    images, texts, ids = unit(5, 4, seed=1), unit(5, 4, seed=2), torch.arange(5)
    ours = losses.instance_loss(compare_in_batch(images, texts, ids, TAU).image_to_text).mean()
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(images @ texts.T / TAU, ids))


@pytest.mark.parametrize("dropped", [0, 3, 7])
def test_constant_embeddings_give_the_log_of_the_number_of_entries(dropped):
    same = unit(1, 5)
    ignored = torch.zeros(2, 7, dtype=torch.bool)
    ignored[:, :dropped] = True
    loss = losses.instance_loss(
        losses.contrast_logits(same.expand(2, 5), same.expand(2, 5), same.expand(7, 5), ignored, TAU)
    )
    torch.testing.assert_close(loss, torch.full((2,), math.log(1 + 7 - dropped), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_entries_contribute_nothing(dtype):
    """Whatever lies in a masked slot, value, gradient and task loss are those of the queue without it."""
    m = {k: v.to(dtype) if v.is_floating_point() else v for k, v in material().items()}
    ignored = torch.zeros(4, 7, dtype=torch.bool)
    ignored[:, [1, 4]] = True
    kept = [0, 2, 3, 5, 6]
    poisoned = {q: m[q].clone() for q in ("image_queue", "text_queue")}
    for queue in poisoned.values():
        queue[[1, 4]] = 1e3 * m["images"][:2]
    results = []
    none = torch.zeros(4, 5, dtype=torch.bool)
    for queues, mask in ((poisoned, ignored), ({q: m[q][kept] for q in poisoned}, none)):
        a = leaves(m["images"], m["texts"])
        i2t = losses.contrast_logits(a[0], m["text_keys"], queues["text_queue"], mask, TAU)
        t2i = losses.contrast_logits(a[1], m["image_keys"], queues["image_queue"], mask, TAU)
        loss = losses.instance_loss(i2t) + 2 * losses.instance_loss(t2i) + 3 * losses.task_loss(i2t, t2i)
        results.append((loss, *torch.autograd.grad(loss.sum(), a)))
    for with_masked, without in zip(*results):
        assert torch.isfinite(with_masked).all()
        torch.testing.assert_close(with_masked, without, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """Half inputs give what the same numbers give in float32, exactly; under autocast, too."""
    m = material()
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in m.items()}
    wide = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    order = ("images", "text_keys", "text_queue", "ignored")
    expected = losses.contrast_logits(*(wide[k] for k in order), TAU)
    assert expected.dtype == torch.float32
    plain = losses.contrast_logits(*(half[k] for k in order), TAU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = losses.contrast_logits(*(wide[k] for k in order), TAU)
        loss, normal = losses.instance_loss(autocast), losses.l2_normalize(half["images"])
    for logits in (plain, autocast):
        assert logits.dtype == torch.float32
        assert torch.equal(logits, expected)
    assert loss.dtype == normal.dtype == torch.float32
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(4))
    logits = torch.randn(5, 9).to(dtype)
    masked, targets = torch.ones(1, 5, dtype=torch.bool), torch.arange(5)
    ours = losses.masked_token_loss(logits, targets, masked)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, losses.masked_token_loss(logits.float(), targets, masked))
    assert losses.task_loss(logits, logits.flip(0)).dtype == torch.float32
    assert torch.equal(
        losses.task_loss(logits, logits.flip(0)), losses.task_loss(logits.float(), logits.float().flip(0))
    )


def test_center_keys_equals_the_loop():
    keys = unit(6, 4)
    ours = losses.center_keys(keys, losses.key_mean(keys))
    torch.testing.assert_close(ours, reference.centered(keys), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(6, dtype=torch.float64))
    drifted = torch.nn.functional.normalize(keys + 3.0, dim=-1)
    spread = losses.center_keys(drifted, losses.key_mean(drifted))
    assert (spread @ spread.T).mean() < 0.1 < (drifted @ drifted.T).mean(), "a common drift must be removed"


def test_center_keys_of_one_pair_leaves_the_key():
    key = unit(1, 4)
    torch.testing.assert_close(losses.center_keys(key, losses.key_mean(key)), key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_center_keys_of_equal_keys_does_not_amplify_rounding(dtype):
    keys = unit(1, 16).to(dtype).expand(7, 16)
    centered = losses.center_keys(keys, losses.key_mean(keys))
    assert torch.isfinite(centered).all()
    assert centered.norm(dim=-1).max() < 1e-2
