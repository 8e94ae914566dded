"""The losses of SIMLA against a slow reference in float64, and batches that could break them."""

import copy
import math

import pytest
import torch

from hf_cots import SimlaForPreTraining
from hf_cots.conversion.simla import to_simla
from hf_cots.models import terms_simla
from tests.support import reference_simla as slow
from tests.support.runs import assert_same_weights
from tests.support.steps import assert_close, gradients, split
from tests.support.tiny_simla import simla_batch, tiny_simla, tiny_simla_config


TERMS = ("itc", "itm", "mlm", "mim", "psl")


def fixed_negatives(similarities, allowed):
    """The first allowed entry of each row, so that fast and slow sides score the same pairs."""
    return allowed.int().argmax(dim=1), allowed.any(dim=1)


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(terms_simla, "hard_negatives", fixed_negatives)


def slow_losses(model, batch, a, queue):
    """Each term by loops over pairs, words, patches and codes; `queue` (image keys, text keys, ids) as of before."""
    reference = slow.Reference(to_simla(model)["model"], heads=2)
    as_authors, config = model.config.match_original_code, model.config
    n, tau = len(batch["input_ids"]), float(reference["temp"])
    ids, there, image_ids = batch["input_ids"], batch["attention_mask"] != 0, batch["image_ids"].tolist()
    f_i = [reference.image_feature(p) for p in batch["pixel_values"]]
    f_t = [reference.text_feature(t, m) for t, m in zip(ids, there)]
    k_i = [reference.image_feature(p, "_m") for p in batch["pixel_values"]]
    k_t = [reference.text_feature(t, m, "_m") for t, m in zip(ids, there)]
    images = [reference.image(p) for p in batch["pixel_values"]]
    images_m = [reference.image(p, m="_m") for p in batch["pixel_values"]]
    queued = list(zip(*queue))
    losses = dict.fromkeys(TERMS, torch.zeros((), dtype=torch.float64))

    for i in range(n):
        counted = [j for j in range(n) if j == i or as_authors or image_ids[j] != image_ids[i]]
        behind = [q for q in queued if as_authors or int(q[2]) != image_ids[i]]
        for query, teacher, keys, side in ((f_i[i], k_i[i], k_t, 1), (f_t[i], k_t[i], k_i, 0)):
            columns = torch.stack([keys[j] for j in counted] + [q[side] for q in behind])
            own = counted.index(i)
            one = slow.distilled(columns @ query / tau, own, columns @ teacher / tau, a)
            losses["itc"] = losses["itc"] + one / 2 / n

        others = [j for j in range(n) if j != i and (as_authors or image_ids[j] != image_ids[i])]
        scored = [(i, i, 1)] + [(i, others[0], 0), (others[0], i, 0)] * bool(others)
        for text, image, label in scored:
            logits = reference.itm_logits(ids[text], there[text], images[image])
            losses["itm"] = losses["itm"] - slow.log_softmax(logits)[label] / len(scored) / n

        if config.mlm_weight > 0:
            words = batch["bool_masked_words"][i].nonzero().flatten().tolist()
            logits = reference.word_logits(batch["masked_input_ids"][i], there[i], images[i])
            teacher = reference.word_logits(batch["masked_input_ids"][i], there[i], images_m[i], "_m")
            for p in words:
                axis = slow.log_softmax(logits, dim=0)[p] if as_authors else None
                one = slow.distilled(logits[p], ids[i, p], teacher[p], a, axis)
                losses["mlm"] = losses["mlm"] + one / len(words) / n

        if config.mim_weight > 0:
            masked = batch["bool_masked_pos"][i]
            logits = reference.code_logits(batch["pixel_values"][i], masked, ids[i], there[i])
            teacher = reference.code_logits(batch["pixel_values"][i], masked, ids[i], there[i], "_m")
            codes = model.image_codes(batch["pixel_values"][i : i + 1])[0]
            for p in masked.nonzero().flatten().tolist():
                one = slow.distilled(logits[p], codes[p], teacher[p], a)
                losses["mim"] = losses["mim"] + one / int(masked.sum()) / n

        if config.psl_weight > 0:
            _, rows = reference.together(ids[i], there[i], images_m[i], "_m")
            special = () if as_authors else config.special_token_ids
            may_vote = [int(w) not in special for w in ids[i]]
            y = torch.zeros(config.text_config.vocab_size, dtype=torch.float64)
            for p in slow.keywords(rows, may_vote):
                y[ids[i, p]] = 1
            logits = reference.concept_logits(f_i[i])
            q = 1 / (1 + torch.exp(-reference.concept_logits(k_i[i], "_m")))
            one = (1 - a) * slow.binary(logits, y) + a * slow.binary(logits, q)
            losses["psl"] = losses["psl"] + one / n
    return losses


@pytest.mark.parametrize("as_authors", [False, True])
def test_each_term_equals_the_slow_reference(fixed, as_authors):
    """In the third step, with a half-risen distillation weight, a part-filled queue and an image that recurs."""
    # a is exact in float32, in which it lies
    model = tiny_simla(match_original_code=as_authors, distillation_weight=0.5)
    queued = []
    for seed in (1, 2):
        batch = simla_batch(model, seed=seed)
        (step,) = model.begin_step([batch])
        queued.append((step.image_keys, step.text_keys, step.image_ids))
        model.end_step()
    batch = simla_batch(model, seed=3)
    batch["image_ids"][0] = queued[0][2][1]  # an image that the queue holds
    (step,) = model.begin_step([batch])
    with torch.no_grad():
        ours = model(**batch, step=step)
    a = float(model.distillation_weight())
    assert a == 0.25
    expected = slow_losses(model, batch, a, [torch.cat(parts) for parts in zip(*queued)])
    assert_close({name: ours[f"loss_{name}"] for name in TERMS}, expected, atol=1e-9)
    torch.testing.assert_close(ours.loss, sum(expected.values()), rtol=1e-9, atol=1e-9)


def test_as_authors_change_what_they_name_and_nothing_else(fixed):
    ours, theirs = tiny_simla(), tiny_simla(match_original_code=True)
    batch = simla_batch(ours)
    batch["image_ids"] = torch.tensor([7, 7, 8, 9])
    results = []
    for model in (ours, theirs):
        for _ in range(3):  # until the distillation counts
            (step,) = model.begin_step([batch])
            model.end_step()
        results.append(model(**batch, step=step))
    same = [name for name in TERMS if torch.equal(results[0][f"loss_{name}"], results[1][f"loss_{name}"])]
    assert same == ["mim"], "codes differ only where another crop is given"


def test_codes_come_from_the_same_crop_unless_another_is_given():
    model = tiny_simla().eval()
    batch = simla_batch(model)
    own = model(**batch).loss_mim
    codes = model.image_codes(batch["pixel_values"])
    assert torch.equal(model(**batch, codebook_indices=codes).loss_mim, own)
    other = model(**batch, codebook_pixel_values=batch["pixel_values"].flip(-1)).loss_mim
    flipped = model.image_codes(batch["pixel_values"].flip(-1))
    assert torch.equal(other, model(**batch, codebook_indices=flipped).loss_mim)
    assert other != own


def test_the_distillation_weight_rises_over_the_warm_up():
    model = tiny_simla()
    seen = []
    for _ in range(7):
        model.begin_step([simla_batch(model)])
        seen.append(float(model.distillation_weight()))
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    model = tiny_simla(distillation_warmup_steps=0)
    model.begin_step([simla_batch(model)])
    assert float(model.distillation_weight()) == pytest.approx(0.4)


def test_negatives_become_hard_over_the_warm_up(monkeypatch):
    seen, draw = [], terms_simla.hard_negatives
    monkeypatch.setattr(terms_simla, "hard_negatives", lambda s, allowed: seen.append(s) or draw(s, allowed))

    def steps(count: int, **config) -> list[torch.Tensor]:
        model, batch = tiny_simla(**config), simla_batch(tiny_simla())
        seen.clear()
        for _ in range(count):
            (step,) = model.begin_step([batch])
            model(**batch, step=step)
        return list(seen)

    hard = steps(4)  # the authors' from the start; nothing is learned in between
    rising = steps(4, hard_negative_warmup_steps=2)
    for ours, theirs, scale in zip(rising, hard, [0, 0, 0.5, 0.5, 1, 1, 1, 1], strict=True):
        torch.testing.assert_close(ours, scale * theirs)


def cases():
    yield "one pair", lambda batch: {name: rows[:1] for name, rows in batch.items()}
    yield "all captions of one image", lambda batch: batch | {"image_ids": torch.zeros(4, dtype=torch.long)}
    yield "first tokens alone", lambda batch: short(batch, 1)
    yield "captions of one word", lambda batch: short(batch, 2)
    yield "captions of three words", lambda batch: short(batch, 4)
    yield "no pair", lambda batch: {name: rows[:0] for name, rows in batch.items()}


def short(batch, length):
    kept = {"pixel_values", "image_ids"}
    return {name: rows if name in kept else rows[:, :length] for name, rows in batch.items() if "mask" not in name}


@pytest.mark.parametrize("as_authors", [False, True])
@pytest.mark.parametrize(("name", "change"), list(cases()), ids=lambda case: case if isinstance(case, str) else "")
def test_no_batch_breaks_the_step(name, change, as_authors):
    """Loss and every gradient are finite, and every parameter has one."""
    model = tiny_simla(match_original_code=as_authors)
    for _ in range(2):
        output = model(**change(simla_batch(model)))
        output.loss.backward()
    assert all(torch.isfinite(value).all() for value in output.values())
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name


def test_without_masked_patches_their_number_need_not_fit_the_image():
    model = tiny_simla(mim_weight=0, num_masked_patches=75, min_block_patches=16)
    batch = simla_batch(model)
    assert not batch["bool_masked_pos"].any()
    assert batch["bool_masked_words"].any()
    output = model(**batch)
    assert output.loss_mlm > 0
    assert output.loss_mim == 0


def test_without_any_negative_itm_scores_the_pair_alone():
    model = tiny_simla()
    batch = {name: rows[:1] for name, rows in simla_batch(model).items()}
    logits = model.simla.match(batch["input_ids"], batch["attention_mask"], batch["pixel_values"])
    expected = -logits.log_softmax(dim=-1)[0, 1]
    torch.testing.assert_close(model(**batch).loss_itm, expected.detach())


def test_itm_never_takes_another_caption_of_the_same_image(monkeypatch):
    """Over many draws, in both directions."""
    model, drawn, draw = tiny_simla(), [], terms_simla.hard_negatives
    batch = simla_batch(model)
    monkeypatch.setattr(terms_simla, "hard_negatives", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    with torch.no_grad():
        for _ in range(50):
            model(**batch)
    ids = batch["image_ids"]
    assert len(drawn) == 100
    for rows, _ in drawn:
        assert (ids[rows] != ids).all()
    assert len({tuple(rows.tolist()) for rows, _ in drawn}) > 5, "negatives are drawn, not fixed"


@pytest.mark.parametrize("sizes", [[4, 4], [1, 7], [8, 0], [3, 3, 2]])
def test_a_step_in_pieces_gives_the_gradient_of_the_whole(monkeypatch, sizes):
    """All terms but ITM, whose negatives are the micro-batch's own: it is switched to positives only."""
    monkeypatch.setattr(
        terms_simla, "hard_negatives", lambda s, allowed: (allowed.int().argmax(1), allowed.new_zeros(len(s)))
    )
    whole = tiny_simla(distillation_warmup_steps=0)
    pieces = copy.deepcopy(whole)
    batch = simla_batch(whole, pairs=8)
    (step,) = whole.begin_step([batch])
    whole(**batch, step=step).loss.backward()
    micro = split(batch, sizes)
    for piece, step in zip(micro, pieces.begin_step(micro)):
        (pieces(**piece, step=step).loss / len(sizes)).backward()
    assert_close(gradients(pieces), gradients(whole), rtol=1e-8, atol=1e-10)
    whole.end_step()
    pieces.end_step()
    assert_close(dict(pieces.named_buffers()), dict(whole.named_buffers()))


def test_a_step_of_its_own_equals_begin_forward_end():
    """Under a plain Trainer forward keeps the order itself: the momentum update comes at the next step's beginning."""
    alone, led = tiny_simla(), tiny_simla()
    led.update_momentum()
    for seed in (1, 2):
        batch = simla_batch(alone, seed=seed)
        torch.manual_seed(seed)
        a = alone(**batch).loss
        (step,) = led.begin_step([batch])
        torch.manual_seed(seed)
        b = led(**batch, step=step).loss
        led.end_step()
        assert torch.equal(a, b)
    assert_same_weights(dict(alone.named_buffers()), dict(led.named_buffers()))


def test_evaluation_leaves_no_trace():
    model = tiny_simla()
    model(**simla_batch(model, seed=1))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    batch = simla_batch(model, seed=2)
    with torch.no_grad():
        output = model(**batch)
    assert math.isfinite(float(output.loss))
    assert_same_weights(model.state_dict(), before)


def test_momentum_update_and_frozen_momentum_encoders():
    model = tiny_simla()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.update_momentum()
    after = dict(model.named_parameters())
    for momentum, online in (("momentum_encoder", "simla"), ("momentum_heads", "heads")):
        names = [name for name in before if name.startswith(momentum)]
        assert names
        for name in names:
            expected = 0.995 * before[name] + 0.005 * before[name.replace(momentum, online, 1)]
            torch.testing.assert_close(after[name], expected)
            assert not after[name].requires_grad


def test_terms_of_weight_0_have_no_parameters():
    model = SimlaForPreTraining(tiny_simla_config(mlm_weight=0, mim_weight=0, psl_weight=0)).train()
    assert not list(model.heads.parameters())
    assert model.image_tokenizer is None
    assert not [name for name, _ in model.named_parameters() if "mask_token" in name]
    batch = {n: r.float() if r.is_floating_point() else r for n, r in simla_batch(model).items()}
    output = model(**batch)
    output.loss.backward()
    assert {name for name in TERMS if output[f"loss_{name}"] != 0} == {"itc", "itm"}


def test_the_authors_parameter_counts():
    """238.26M for pre-training, 223.74M for retrieval, as reported."""
    retrieval = {"mlm_weight": 0, "mim_weight": 0, "psl_weight": 0}
    large = {"vision_config": {"model_type": "vit", "image_size": 384, "layer_norm_eps": 1e-6}}
    for fields, expected in (({}, 238_264_183), (retrieval | large, 223_742_723)):
        with torch.device("meta"):
            model = SimlaForPreTraining(type(tiny_simla_config())(**fields))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in model.simla.parameters()) == expected


def test_predicted_keywords_are_the_concept_heads_probabilities():
    model = tiny_simla().eval()
    pixels = simla_batch(model)["pixel_values"]
    reference = slow.Reference(to_simla(model)["model"], heads=2)
    expected = torch.stack(
        [1 / (1 + torch.exp(-reference.concept_logits(reference.image_feature(p)))) for p in pixels]
    )
    with torch.no_grad():
        torch.testing.assert_close(model.simla.predict_keywords(pixels), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="psl_weight=0"):
        tiny_simla(psl_weight=0).simla.predict_keywords(pixels)


@pytest.mark.parametrize("as_authors", [False, True])
def test_nothing_in_the_step_waits_for_the_device(monkeypatch, as_authors):
    """With the masks of the collator, from begin_step to end_step no number is asked for."""
    model = tiny_simla(match_original_code=as_authors)
    batch = simla_batch(model)

    def asked(*arguments):
        raise AssertionError("a number was asked for")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    (step,) = model.begin_step([batch])
    model(**batch, step=step).loss.backward()
    model.end_step()
