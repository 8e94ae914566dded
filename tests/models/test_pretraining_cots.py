"""COTSForPreTraining: its loss against the formulas, exact accumulation, the filter, and what stays frozen."""

import copy
import dataclasses
import math

import pytest
import torch

from hf_cots.models import pretraining_cots
from hf_cots.models.instance_level import compare_with_queue
from hf_cots.models.losses import l2_normalize
from tests.support import reference
from tests.support.reference_simla import gelu, normal
from tests.support.steps import assert_close, data, descend, gradients, make, run_step


def head(module, hidden, feature):
    """`layer_norm(gelu(dense(h + A g)))`."""
    mixed = hidden + module.inject.weight @ feature
    dense, norm = gelu(module.dense.weight @ mixed + module.dense.bias), module.layer_norm
    return normal(dense, norm.weight, norm.bias, norm.eps)


def reference_loss(model, batch, queue_before):
    """The total of the paper's terms for a whole step in one batch, pair by pair."""
    config, tau, n = model.config, model.config.temperature, len(batch["input_ids"])
    online, momentum = model.cots, model.momentum_encoder

    def features(net, **masks):
        image = net.vision_model(pixel_values=batch["pixel_values"], **masks).last_hidden_state[:, 0]
        ids = batch["masked_input_ids" if masks else "input_ids"]
        text = net.text_model(input_ids=ids, attention_mask=batch["attention_mask"])
        return image, text.last_hidden_state[:, 0]

    def embeds(net, image, text):
        image = image @ net.visual_projection.weight.T + net.visual_projection.bias
        text = text @ net.text_projection.weight.T + net.text_projection.bias
        return image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)

    g_image, g_text = features(online, **({"bool_masked_pos": batch["bool_masked_pos"]} if config.single_pass else {}))
    images, texts = embeds(online, g_image, g_text)
    with torch.no_grad():
        image_keys, text_keys = embeds(momentum, *features(momentum))
        if config.center_keys:
            image_keys, text_keys = reference.centered(image_keys), reference.centered(text_keys)
    # (image key, text key, image id) of what is in the queue, oldest first
    slots = list(queue_before)
    if config.enqueue_before_loss:
        slots += [(image_keys[i], text_keys[i], int(batch["image_ids"][i])) for i in range(n)]
    slots = slots[-config.queue_size :]
    image_queue, text_queue = torch.stack([s[0] for s in slots]), torch.stack([s[1] for s in slots])
    ignored = [[s[2] == int(batch["image_ids"][i]) for s in slots] for i in range(n)]
    i2t = reference.instance(images, text_keys, text_queue, ignored, tau)
    t2i = reference.instance(texts, image_keys, image_queue, ignored, tau)
    kl = reference.task(images, texts, image_keys, text_keys, image_queue, text_queue, ignored, tau)

    codes = model.image_tokenizer.get_codebook_indices(
        (batch["pixel_values"] * 0.5 + 0.5).clamp(0, 1).double()
    ).flatten(1)
    patches = online.vision_model(
        pixel_values=batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"]
    ).last_hidden_state[:, 1:]
    words = online.text_model(
        input_ids=batch["masked_input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    embeddings = online.text_model.embeddings.word_embeddings.weight

    def token_loss(module, states, features, weight, bias, targets, masked):
        rows = []
        for i in range(n):
            own = [j for j in range(states.shape[1]) if masked[i, j]]
            logits = [weight @ head(module, states[i, j], features[i]) + bias for j in own]
            rows.append(sum(-row.log_softmax(0)[targets[i, j]] for row, j in zip(logits, own)) / len(own))
        return sum(rows) / n

    classes, of_words = model.mvm_classifier, (embeddings, model.mlm_bias, batch["input_ids"])
    of_patches = (classes.weight, classes.bias, codes)
    return {
        "loss_instance": sum(i2t + t2i) / n,
        "loss_task": sum(a + b for a, b in kl) / 2 / n,
        "loss_mvm": token_loss(model.mvm_head, patches, g_text, *of_patches, batch["bool_masked_pos"]),
        "loss_mlm": token_loss(model.mlm_head, words, g_image, *of_words, batch["bool_masked_words"]),
    }


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"center_keys": center, "enqueue_before_loss": fresh}
            for center in (True, False)
            for fresh in (True, False)
        ),
        {"single_pass": True},
    ],
    ids=str,
)
def test_loss_and_gradient_equal_the_formulas(fields):
    """The second of two steps, with a wrapped queue: every term and the gradient of every parameter."""
    weights = {"instance_weight": 0.9, "mvm_weight": 0.5, "mlm_weight": 0.7, "task_weight": 0.3}
    model = make(queue_size=12, filter_lambda=None, **fields, **weights)
    first, second = data(model, seed=0), data(model, seed=1)
    run_step(model, first, [8])
    model.end_step()
    model.zero_grad()
    assert int(model.key_queue.filled) == 8
    again = copy.deepcopy(model)
    queue = copy.deepcopy(model.key_queue)
    before = list(zip(queue.image_keys[:8], queue.text_keys[:8], queue.image_ids[:8].tolist()))

    (step,) = model.begin_step([second])
    output = model(**second, step=step)
    expected = reference_loss(again, second, before)
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value.detach(), rtol=1e-9, atol=1e-10, msg=lambda m, n=name: n + m)
    total = sum(weights[f"{name[5:]}_weight"] * value for name, value in expected.items())
    torch.testing.assert_close(output.loss, total, rtol=1e-9, atol=1e-10)
    output.loss.backward()
    total.backward()
    assert_close(gradients(model), gradients(again), rtol=1e-7, atol=1e-9)
    assert sum(bool(gradient.abs().max() > 1e-8) for gradient in gradients(again).values()) > 60


def count_rows(model):
    """How many images and texts the online towers encode from now on, in lists that grow."""
    images, texts = [], []
    encode_image, encode_text = model.cots.encode_image, model.cots.encode_text
    model.cots.encode_image = lambda pixels, *a, **k: images.append(len(pixels)) or encode_image(pixels, *a, **k)
    model.cots.encode_text = lambda ids, *a, **k: texts.append(len(ids)) or encode_text(ids, *a, **k)
    return images, texts


@pytest.mark.parametrize(("single_pass", "rows"), [(False, [8, 3]), (True, [8])])
def test_a_single_pass_encodes_each_pair_once(single_pass, rows):
    """Three of eight pairs are masked; the others' losses and the tower's output for them are as without masks."""
    model = make(single_pass=single_pass, masked_fraction=0.4, filter_lambda=None)
    batch = data(model)
    some = torch.arange(8) < 3
    batch["bool_masked_pos"] = torch.rand(8, model.config.num_patches).argsort(dim=1) < 2
    batch["bool_masked_pos"] &= some[:, None]
    batch["bool_masked_words"][:, 1] = True
    batch["bool_masked_words"] &= some[:, None]
    batch["masked_input_ids"] = batch["input_ids"].masked_fill(batch["bool_masked_words"], 103)
    plain = make(masked_fraction=0.4, filter_lambda=None, mvm_weight=0, mlm_weight=0)
    plain.load_state_dict(model.state_dict(), strict=False)
    images, texts = count_rows(model)
    output = model(**batch)
    assert (images, texts) == (rows, rows)
    embeds = plain(**batch).image_embeds
    same = (output.image_embeds - embeds).abs().amax(dim=1) < 1e-9
    assert same.tolist() == [not single_pass] * 3 + [True] * 5


def test_the_token_level_in_every_third_step():
    """There it weighs three times as much; in other steps nothing is masked, and what it alone trains has a gradient
    of 0. In evaluation it is always there, at its own weight."""
    model, always = make(token_every=3, filter_lambda=None), make(filter_lambda=None)
    batch = data(model)
    images, texts = count_rows(model)
    for number in (1, 2, 3):
        output, expected = model(**batch), always(**batch)
        output.loss.backward()
        due = number == 3
        assert (images, texts) == ([8] * (1 + due), [8] * (1 + due))
        for name in ("loss_mvm", "loss_mlm"):
            torch.testing.assert_close(output[name], 3 * due * expected[name])
        torch.testing.assert_close(output.loss_instance, expected.loss_instance)
        only_tokens = {
            n: g for n, g in gradients(model).items() if n.startswith(("mvm_", "mlm_")) or "mask_token" in n
        }
        assert len(only_tokens) >= 12
        assert all(bool(gradient.any()) == due for gradient in only_tokens.values())
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        images.clear(), texts.clear(), model.zero_grad()
    model.eval(), always.eval()
    torch.testing.assert_close(model(**batch).loss_mvm, always(**batch).loss_mvm)


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({"momentum": 0.0}, [True, True, True]),
        ({"momentum": 0.0, "token_every": 2, "single_pass": True}, [True, False, True]),
        ({"momentum": 0.5}, [False, False, False]),
        ({"momentum": 0.0, "contrast": "in_batch"}, [False, False, False]),  # neither keys nor scores
    ],
    ids=str,
)
def test_with_a_momentum_of_0_one_pass_serves_keys_and_losses(fields, shared, monkeypatch):
    """Losses, gradients, weights and queues are those of two passes."""
    model = make(filter_lambda=None, **fields)
    twice = copy.deepcopy(model)
    monkeypatch.setattr(twice, "_keys_are_online", lambda: False)
    begin, found = model.begin_step, []
    monkeypatch.setattr(model, "begin_step", lambda batches: found.extend(begin(batches)) or found[-1:])
    for number in range(3):
        batch, losses = data(model, seed=number), []
        for one in (model, twice):
            one.zero_grad()
            losses.append(run_step(one, batch, [8])[0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
        assert (found[-1].embeds is not None) == shared[number]
        assert_close(gradients(model), gradients(twice), rtol=1e-9, atol=1e-10)
        descend(model), descend(twice)
        assert_close(model.state_dict(), twice.state_dict())


@pytest.mark.parametrize("fields", [{}, {"contrast": "in_batch", "filter_lambda": 0.5}, {"token_every": 2}], ids=str)
def test_a_momentum_of_0_is_a_momentum_encoder_that_is_copied_in_every_step(fields):
    """There is no second encoder; what it would compute is compared, in training and in evaluation."""
    model = make(momentum=0.0, **fields)
    assert model.momentum_encoder is None
    copied = make(momentum=0.5, **fields)
    assert copied.load_state_dict(model.state_dict(), strict=False).unexpected_keys == []
    for number in range(3):
        batch = data(model, seed=number)
        copied.reset_momentum()
        losses = []
        for one in (model, copied):
            one.zero_grad()
            losses.append(run_step(one, batch, [8])[0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
        assert_close(gradients(model), gradients(copied), rtol=1e-9, atol=1e-10)
        descend(model), descend(copied)
    copied.reset_momentum()
    model.eval(), copied.eval()
    torch.testing.assert_close(model(**batch).loss, copied(**batch).loss)


def test_keys_without_gradient_leave_the_weights_of_autocast_alone():
    """Autocast keeps converted weights; in PyTorch 2.8, those that made keys without a graph passed on no gradient."""
    trained = []
    for momentum in (0.0, 0.5):
        fields = {"momentum": momentum, "filter_lambda": None, "mvm_weight": 0.0, "mlm_weight": 0.0}
        model = make(**fields).float()
        for tower in (model.cots.vision_model, model.cots.text_model):
            tower.config.hidden_dropout_prob = 0.1  # the keys have a pass of their own
        batch = {name: rows.float() if rows.is_floating_point() else rows for name, rows in data(model).items()}
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch).loss.backward()
        trained.append({name for name, p in model.cots.named_parameters() if p.grad is not None})
    assert trained[0] == trained[1]
    assert len(trained[0]) > 20


def test_a_tower_with_dropout_makes_its_keys_in_a_pass_of_its_own():
    """Keys are free of dropout."""
    model = make(momentum=0.0, filter_lambda=None)
    model.cots.text_model.config.hidden_dropout_prob = 0.1
    (step,) = model.begin_step([data(model)])
    assert step.text_features is None
    assert step.image_features.requires_grad
    assert not step.image_keys.requires_grad


@pytest.mark.parametrize("fields", [{"momentum": 0.0}, {"contrast": "in_batch", "filter_lambda": None}], ids=str)
def test_a_momentum_encoder_that_a_file_lacks_is_a_copy(fields, tmp_path):
    """Of a pre-training file, which has the counters of the whole; it was left at random values."""
    saved = make(**fields)
    saved.save_pretrained(tmp_path)
    config = copy.deepcopy(saved.config)
    config.momentum, config.contrast = 0.9, "momentum"
    model = type(saved).from_pretrained(tmp_path, config=config)
    trained = dict(model.cots.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in model.momentum_encoder.named_parameters())


def test_keys_of_the_online_encoder_are_free_of_dropout():
    model = make(momentum=0.0, filter_lambda=None, center_keys=False)
    model.cots.text_model.config.hidden_dropout_prob = 0.5  # the keys have a pass of their own
    dropouts = [module for module in model.cots.text_model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    batch = data(model)
    (step,) = model.begin_step([batch])
    assert all(module.training for module in dropouts)
    features = model.cots.eval().encode_text(batch["input_ids"], batch["attention_mask"]).pooler_output
    expected = l2_normalize(model.cots.text_projection(features))
    torch.testing.assert_close(step.text_keys, expected, rtol=1e-9, atol=1e-10)


def test_a_single_pass_of_a_frozen_tower_compares_unmasked_texts():
    model = make(single_pass=True, filter_lambda=None)
    model.cots.text_model.requires_grad_(False)
    model.train()
    batch = data(model)
    images, texts = count_rows(model)
    output = model(**batch)
    assert (images, texts) == ([8], [8, 8])
    clean = model.cots.encode_text(batch["input_ids"], batch["attention_mask"]).pooler_output
    expected = l2_normalize(model.cots.text_projection(clean))
    torch.testing.assert_close(output.text_embeds, expected, rtol=1e-9, atol=1e-10)
    assert float(output.loss_mlm) > 0


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [5, 5, 6], [1, 15], [1] * 16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"enqueue_before_loss": True},
        {"enqueue_before_loss": False},
        {"token_every": 2, "single_pass": True, "momentum": 0.0},
    ],
    ids=str,
)
def test_accumulation_is_exact(sizes, options):
    """Three steps of 1 x 16 and of micro-batches: gradients, queues, counters and all weights agree to 1e-10."""
    whole = make(queue_size=24, similarity_queue_size=16, filter_lambda=0.5, **options)
    if whole.config.momentum == 0:
        whole.reset_momentum()  # as it is after each step
    parts = copy.deepcopy(whole)
    for step in range(3):
        batch, losses = data(whole, 16, seed=step), []
        for model, micro in ((whole, [16]), (parts, sizes)):
            model.zero_grad()
            losses.append(run_step(model, batch, micro))
        (loss, dropped), (other_loss, other_dropped) = losses
        assert loss == pytest.approx(other_loss, rel=1e-10)
        assert dropped == other_dropped
        assert (dropped > 0) == (step > 0), "the filter must take part once its queue is full"
        assert_close(gradients(parts), gradients(whole), rtol=1e-10, atol=1e-10)
        for model in (whole, parts):
            descend(model)
        assert_close(parts.state_dict(), whole.state_dict())
    assert int(whole.pairs_seen) == 16 * 3
    assert int(whole.steps_seen) == 3


def test_forward_alone_is_a_step_of_its_own():
    """Under a plain Trainer forward equals begin_step, forward; the update of the step before comes first."""
    auto, manual = make(), make()
    for seed in range(3):
        batch = data(auto, seed=seed)
        loss = auto(**batch).loss
        manual.update_momentum()
        (step,) = manual.begin_step([batch])
        expected = manual(**batch, step=step).loss
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(auto.key_queue.image_keys, manual.key_queue.image_keys)
        assert torch.equal(
            auto.momentum_encoder.text_projection.weight, manual.momentum_encoder.text_projection.weight
        )
    assert int(auto.key_queue.filled) == 24


def test_forward_alone_with_a_queue_of_the_past():
    """The own keys enter the queue after the loss, not before."""
    model = make(enqueue_before_loss=False, task_weight=0.0)
    assert float(model(**data(model, seed=0)).loss_instance) == pytest.approx(0, abs=1e-12), "nothing to compare with"
    assert int(model.key_queue.filled) == 8
    assert float(model(**data(model, seed=1)).loss_instance) > 0.1


def contrast_of(model, batch):
    """What a step that has begun compares."""
    (step,) = model.begin_step([batch])
    seen = {}

    def spy(*args):
        seen["rows"] = compare_with_queue(*args)
        return seen["rows"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining_cots, "compare_with_queue", spy)
        model(**batch, step=step)
    return seen["rows"]


def test_own_keys_same_images_and_empty_slots_are_no_negatives():
    model = make(queue_size=20)
    batch = data(model)  # pairs 2i and 2i + 1 share an image
    rows = contrast_of(model, batch)
    for logits in (rows.image_to_text, rows.text_to_image):
        probabilities = logits.softmax(dim=1)
        assert probabilities.shape == (8, 21)
        for i in range(8):
            negatives = set(torch.nonzero(probabilities[i, 1:]).flatten().tolist())
            assert negatives == {j for j in range(8) if j // 2 != i // 2}


def test_pairs_without_ids_exclude_only_themselves_across_steps():
    model = make(queue_size=20)
    for seed, expected in ((0, 7), (1, 15)):
        batch = data(model, seed=seed)
        del batch["image_ids"]
        logits = contrast_of(model, batch).image_to_text
        assert ((logits.softmax(dim=1)[:, 1:] > 0).sum(dim=1) == expected).all()


@pytest.mark.parametrize("contrast", ["momentum", "in_batch"])
def test_equal_embeddings_are_finite(contrast):
    """Eight copies of one pair under different ids: the loss is the log of the number of entries."""
    model = make(contrast=contrast, center_keys=False, filter_lambda=None)
    batch = {name: tensor[:1].expand(8, *tensor.shape[1:]) for name, tensor in data(model).items()}
    batch["image_ids"] = torch.arange(8)
    output = model(**batch)
    output.loss.backward()
    halves = 1 if contrast == "in_batch" else 2
    assert float(output.loss_instance) == pytest.approx(halves * math.log(8), rel=1e-9)
    assert float(output.loss_task) == pytest.approx(0, abs=1e-9)
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


def prepared_filter(model, batch, lam):
    """Fill the score queue so that `mu - lambda sigma` is the batch's median score, from mu and sigma both not 0."""
    keys = model.momentum_features(batch)
    scores = (keys["image_keys"] * keys["text_keys"]).sum(dim=1)
    ordered = scores.sort().values
    cut = (ordered[3] + ordered[4]) / 2
    sigma = 0.01
    queue = cut + lam * sigma + sigma * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)
    model.score_queue.scores.copy_(queue)
    model.score_queue.filled.fill_(16)
    assert queue.mean() - lam * queue.std(correction=0) == pytest.approx(float(cut))
    return scores, scores >= cut


def test_filter_drops_exactly_the_pairs_below_the_threshold():
    model = make(filter_lambda=1.5, center_keys=True)
    batch = data(model)
    scores, expected = prepared_filter(model, batch, 1.5)
    assert expected.sum() == 4
    (step,) = model.begin_step([batch])
    assert torch.equal(step.kept, expected)
    assert torch.equal(step.weights * 8, expected.float())
    batch["pixel_values"].requires_grad_()
    embedded = []
    hook = model.cots.text_model.embeddings.register_forward_hook(
        lambda module, args, out: (out.retain_grad(), embedded.append(out))[0]
    )
    output = model(**batch, step=step)
    hook.remove()
    output.loss.backward()
    assert torch.equal(output.kept, expected)
    assert (batch["pixel_values"].grad[~expected] == 0).all(), "a dropped image must have no influence"
    assert (batch["pixel_values"].grad[expected].abs().amax(dim=(1, 2, 3)) > 0).all()
    for hidden in embedded[:1]:
        assert (hidden.grad[~expected] == 0).all()
    # Keys and scores of dropped pairs are queued all the same.
    assert int(model.key_queue.filled) == 8
    torch.testing.assert_close(model.score_queue.scores[:8], scores)


def test_filter_divides_by_all_pairs_not_by_the_kept():
    """The loss with dropped pairs equals the sum over the kept ones divided by the batch size."""
    model = make(filter_lambda=1.5)
    batch = data(model)
    _, kept = prepared_filter(model, batch, 1.5)
    (step,) = model.begin_step([batch])
    one_by_one = []
    for i in range(8):
        weights = torch.zeros(8, dtype=torch.float64)
        weights[i] = 1
        one_by_one.append(model(**batch, step=dataclasses.replace(step, weights=weights)).loss.item())
    expected = sum(value for value, keep in zip(one_by_one, kept) if keep) / 8
    assert model(**batch, step=step).loss.item() == pytest.approx(expected, rel=1e-9)


def test_filter_waits_for_a_full_queue_and_its_warmup():
    model = make(filter_lambda=0.0, filter_warmup_steps=3, similarity_queue_size=16)
    thresholds = []
    for seed in range(4):
        thresholds.append(float(model.filter_threshold()))
        run_step(model, data(model, seed=seed), [8])
    assert thresholds[:3] == [-math.inf] * 3
    assert thresholds[3] > -math.inf
    early = make(filter_lambda=0.0, filter_warmup_steps=0, similarity_queue_size=16)
    run_step(early, data(early), [8])
    assert early.filter_threshold() == -math.inf, "half a queue"
    run_step(early, data(early), [8])
    assert early.filter_threshold() > -math.inf


@pytest.mark.parametrize("level", ["mvm", "mlm", "task", "instance"])
def test_a_level_of_weight_zero_is_absent(level):
    fields = {f"{level}_weight": 0.0}
    if level == "instance":
        fields["task_weight"] = 0.0
    model = make(**fields)
    names = {name.split(".")[0].split("_")[0] for name, _ in model.named_parameters()}
    assert ("mvm" in names) == (level != "mvm")
    assert ("mlm" in names) == (level != "mlm")
    assert (model.image_tokenizer is None) == (level == "mvm")
    calls = {"image": 0, "text": 0}
    model.cots.vision_model.register_forward_hook(lambda *_: calls.__setitem__("image", calls["image"] + 1))
    model.cots.text_model.register_forward_hook(lambda *_: calls.__setitem__("text", calls["text"] + 1))
    output = model(**data(model))
    assert output[f"loss_{level}"] == 0
    assert calls == {"image": 1 + (level != "mvm"), "text": 1 + (level != "mlm")}
    output.loss.backward()
    assert all(g is not None for n, g in gradients(model).items() if level != "instance" or "_projection" not in n)


@pytest.mark.parametrize("contrast", ["momentum", "in_batch"])
@pytest.mark.parametrize("learn", [True, False])
def test_every_trainable_parameter_gets_a_gradient(contrast, learn):
    model = make(contrast=contrast, learn_temperature=learn)
    for seed in range(2):
        model.zero_grad()
        model(**data(model, seed=seed)).loss.backward()
    missing = [n for n, g in gradients(model).items() if g is None or not g.abs().sum() > 0]
    # A key's bias shifts all attention scores of a query alike: its gradient is zero by construction.
    assert [n for n in missing if "key.bias" not in n and "k_proj.bias" not in n] == []
    assert ("cots.log_temperature" in gradients(model)) == learn


def test_masked_fraction_scales_the_sum_and_skips_the_other_rows():
    model = make(masked_fraction=0.5, filter_lambda=None)
    batch = data(model, pairs=16)
    rows = batch["bool_masked_pos"].any(dim=1)
    assert 0 < rows.sum() < 16
    sizes = []
    model.cots.vision_model.register_forward_hook(lambda m, a, out: sizes.append(len(out.last_hidden_state)))
    (step,) = model.begin_step([batch])
    output = model(**batch, step=step)
    assert sizes == [16, int(rows.sum())], "clean, masked"
    full = make(masked_fraction=1.0, filter_lambda=None)
    only = {name: tensor[rows] for name, tensor in batch.items()}
    (step,) = full.begin_step([only])
    alone = full(**only, step=step)  # the mean over the masked rows
    for name in ("loss_mvm", "loss_mlm"):
        torch.testing.assert_close(output[name], alone[name] * int(rows.sum()) / 16 / 0.5, rtol=1e-6, atol=1e-9)


def test_a_batch_whose_pairs_all_skip_the_masked_passes_still_reaches_every_parameter():
    model = make(masked_fraction=0.5)
    batch = data(model)
    batch["bool_masked_pos"] = torch.zeros_like(batch["bool_masked_pos"])
    batch["bool_masked_words"] = torch.zeros_like(batch["bool_masked_words"])
    batch["masked_input_ids"] = batch["input_ids"]
    output = model(**batch)
    output.loss.backward()
    assert output.loss_mvm == output.loss_mlm == 0
    assert torch.isfinite(output.loss)
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())


def test_token_level_reads_the_other_stream():
    """With the other stream's features swapped between pairs both token losses change."""
    model = make().eval()
    batch = data(model)
    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    step = dataclasses.replace(model.begin_step([batch])[0], weights=weights)
    plain = model(**batch, step=step)
    original_text, original_image = model.cots.encode_text, model.cots.encode_image

    def shuffled(original):
        def encode(*args, **kwargs):
            output = original(*args, **kwargs)
            output.pooler_output = output.pooler_output.roll(1, 0)
            return output

        return encode

    model.cots.encode_text, model.cots.encode_image = shuffled(original_text), shuffled(original_image)
    other = model(**batch, step=step)
    for name in ("loss_mvm", "loss_mlm"):
        assert abs(float(other[name] - plain[name])) > 1e-6
