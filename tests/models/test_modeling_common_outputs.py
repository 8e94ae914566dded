"""What every transformers model is expected to return, asked of all six model classes."""

import io
import pickle
import subprocess
import sys

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from hf_cots import COTSForPreTraining, SimlaForPreTraining, SimlaModel
from hf_cots.models.losses_simla import hard_negatives
from hf_cots.models.towers import tower_class
from tests.support.model_classes import (
    ALL,
    ALL_ENCODERS,
    ALL_PRETRAINING,
    PRETRAINING,
    assert_equal,
    batch_of,
    encoder_of,
    flat,
    make,
    make_loud,
)
from tests.support.paths import ROOT
from tests.support.steps import recompute_activations
from tests.support.tiny import tiny_batch


# ---------------------------------------------------------------------- forms of the output


@ALL
def test_a_tuple_holds_what_the_dictionary_holds(cls):
    """return_dict, as an argument and in the config, with and without states and attentions."""
    model = make_loud(cls)
    model.set_attn_implementation("eager")
    for asked in ({}, {"output_hidden_states": True}, {"output_hidden_states": True, "output_attentions": True}):
        with torch.no_grad():
            named = model(**batch_of(cls), **asked)
            plain = model(**batch_of(cls), **asked, return_dict=False)
        assert isinstance(plain, tuple)
        ours, theirs = list(flat(named).values()), list(flat(plain).values())
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    model.config.return_dict = False
    assert isinstance(model(**batch_of(cls)), tuple)


@ALL
def test_hidden_states_and_attentions_of_both_streams(cls):
    """On request, without which nothing changes; they carry gradients."""
    model = make_loud(cls)
    model.set_attn_implementation("eager")
    plain = model(**batch_of(cls))
    output = model(**batch_of(cls), output_hidden_states=True, output_attentions=True)
    for stream, tokens in ((output.vision_model_output, 17), (output.text_model_output, 10)):
        assert len(stream.hidden_states) == 3
        assert {states.shape[:2] for states in stream.hidden_states} == {(8, tokens)}
        assert [attention.shape for attention in stream.attentions] == [(8, 2, tokens, tokens)] * 2
        torch.testing.assert_close(stream.attentions[0].sum(dim=-1), torch.ones(8, 2, tokens))
        stream.hidden_states[0].retain_grad()
    shared = flat(plain).keys() - {"vision_model_output", "text_model_output"}
    assert all(torch.equal(flat(output)[name], flat(plain)[name]) for name in shared)
    if cls in PRETRAINING:
        assert plain.vision_model_output is None
        assert plain.text_model_output is None
        assert model(**batch_of(cls)).vision_model_output is None, "asked for once, given once"
        output.loss.backward()
        assert output.vision_model_output.hidden_states[0].grad.abs().sum() > 0
        assert output.text_model_output.hidden_states[0].grad.abs().sum() > 0


@ALL_PRETRAINING
def test_an_unknown_argument_is_refused(cls):
    with pytest.raises(TypeError, match="image_id"):
        make(cls)(**batch_of(cls), image_id=torch.arange(8))


def test_hidden_states_of_frozen_towers():
    """A step of its own knows their features beforehand; what is asked for is there all the same."""
    model = make(COTSForPreTraining, mvm_weight=0.0, mlm_weight=0.0).train()
    model.cots.vision_model.requires_grad_(False)
    model.cots.text_model.requires_grad_(False)
    model.train()
    output = model(**tiny_batch(), output_hidden_states=True)
    assert len(output.vision_model_output.hidden_states) == len(output.text_model_output.hidden_states) == 3


@ALL_ENCODERS
@pytest.mark.parametrize("asked_by", ["argument", "config"])
def test_features_of_one_stream_with_hidden_states_and_attentions(cls, asked_by):
    model = make_loud(cls)
    model.set_attn_implementation("eager")
    names = ("output_hidden_states", "output_attentions")
    asked = dict.fromkeys(names, True) if asked_by == "argument" else {}
    if asked_by == "config":
        for config in (model.config.vision_config, model.config.text_config):
            for name in names:
                setattr(config, name, True)
    batch = batch_of(cls)
    images = model.get_image_features(batch["pixel_values"], **asked)
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"], **asked)
    for output in (images, texts):
        assert len(output.hidden_states) == 3
        assert len(output.attentions) == 2
        assert output.pooler_output.shape == (8, 16)
    assert torch.equal(texts.hidden_states[-1], texts.last_hidden_state)


def test_the_text_stacks_attentions_are_those_it_computes_with():
    """Values mixed by the returned attention give the layer's output."""
    model = make_loud(SimlaModel)
    batch = tiny_batch()
    batch["attention_mask"][:, 7:] = 0
    output = model.get_text_features(
        batch["input_ids"], batch["attention_mask"], output_hidden_states=True, output_attentions=True
    )
    for index, layer in enumerate(model.text_model.layers):
        hidden, attention = output.hidden_states[index], output.attentions[index]
        assert (attention[..., 7:] == 0).all()
        _, values = layer.attention.keys_values(hidden)
        mixed = layer.attention.output((attention @ values).transpose(1, 2).flatten(2), hidden)
        expected = layer.output(layer.intermediate(mixed), mixed)
        torch.testing.assert_close(output.hidden_states[index + 1], expected, rtol=1e-4, atol=1e-5)


@ALL_ENCODERS
def test_the_only_modality_is_the_pooled_output(cls):
    """Under the name that `pipeline("image-feature-extraction", pool=True)` asks for."""
    model, batch = make(cls), batch_of(cls)
    alone = model(pixel_values=batch["pixel_values"])
    assert torch.equal(alone["pooler_output"], alone.image_embeds)
    alone = model(input_ids=batch["input_ids"])
    assert torch.equal(alone["pooler_output"], alone.text_embeds)
    assert "pooler_output" not in model(**batch)


# ---------------------------------------------------------------------- batches, randomness


@ALL_ENCODERS
def test_a_row_does_not_depend_on_its_batch(cls):
    model, batch = make_loud(cls), batch_of(cls)
    with torch.no_grad():
        together = model(**batch)
        for row in (0, 5):
            alone = model(**{name: rows[row : row + 1] for name, rows in batch.items()})
            torch.testing.assert_close(alone.image_embeds[0], together.image_embeds[row], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone.text_embeds[0], together.text_embeds[row], rtol=1e-5, atol=1e-5)


@ALL_PRETRAINING
def test_evaluation_gives_one_loss_whatever_the_random_state(cls):
    model = make_loud(cls)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs.append(model(**batch_of(cls)))
        assert torch.initial_seed() == seed
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed))), "untouched"
    assert_equal(*outputs)


def test_negatives_of_evaluation_follow_the_softmax_too():
    """By their own numbers: as often as by torch's generator, never one that is not allowed, whatever is drawn."""
    similarities = torch.tensor([[9.0, 0.0, 1.0, 2.0]]).repeat(4000, 1)
    allowed = torch.tensor([[False, True, True, True]]).repeat(4000, 1)
    draws = (torch.arange(4000) + 0.5) / 4000
    rows, exists = hard_negatives(similarities, allowed, draws)
    assert exists.all()
    shares = torch.bincount(rows, minlength=4) / 4000
    torch.testing.assert_close(shares[1:], similarities[0, 1:].softmax(dim=0), rtol=0, atol=1e-3)
    assert shares[0] == 0
    edges = torch.tensor([0.0, 1 - 2**-24])
    last_is_not_allowed = torch.tensor([[False, True, True, False]] * 2)
    rows, _ = hard_negatives(torch.zeros(2, 4), last_is_not_allowed, edges)
    assert rows.tolist() == [1, 2]
    rows, exists = hard_negatives(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool), edges[:1])
    assert rows.tolist() == [0]
    assert not exists.any()


def test_two_pairs_of_one_evaluation_draw_apart():
    model = make_loud(SimlaForPreTraining, mlm_weight=0.0, mim_weight=0.0, psl_weight=0.0)
    batch = tiny_batch(pairs=8)
    batch = {name: rows[:1].expand_as(rows).clone() for name, rows in batch.items()}
    seen = []

    def spy(similarities, allowed, *draws):
        seen.append(hard_negatives(similarities, allowed, *draws)[0].tolist())
        return hard_negatives(similarities, allowed, *draws)

    from hf_cots.models import terms_simla

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms_simla, "hard_negatives", spy)
        model(**batch)
    assert len(seen) == 2
    assert seen[0] != seen[1]
    assert all(len(set(rows)) > 2 for rows in seen), "equally likely entries are all drawn"


# ---------------------------------------------------------------------- in other people's tools


@ALL
def test_pickle_and_torch_save(cls):
    model = make(cls)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert type(other) is cls
        assert type(encoder_of(other).vision_model) is type(encoder_of(model).vision_model)
        with torch.no_grad():
            assert_equal(other(**batch_of(cls)), model(**batch_of(cls)))


READ = """
import pickle, sys
model, inputs, expected = pickle.load(open(sys.argv[1], "rb"))
output = model(**inputs).image_embeds
assert output.equal(expected), (output - expected).abs().max()
print(type(model.vision_model).__name__)
"""


def test_a_pickle_is_read_where_no_tower_was_made_yet(tmp_path):
    model, batch = make(SimlaModel), tiny_batch(pairs=2)
    with torch.no_grad():
        expected = model(**batch).image_embeds
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, batch, expected)))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "model.pkl")],
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "COTSViTModel"


class OwnTower(tower_class(type(make(SimlaModel).config.vision_config))):
    """A user's own subclass of a tower's class."""


def test_classes_of_towers_pickle_too():
    vision = make(SimlaModel).vision_model
    assert pickle.loads(pickle.dumps(type(vision))) is type(vision)
    assert pickle.loads(pickle.dumps(OwnTower)) is OwnTower
    assert isinstance(vision, MODEL_MAPPING[type(vision.config)])


@ALL
def test_no_tensor_is_a_plain_attribute(cls):
    """It would stay behind when the model moves, and be lost by a save."""
    for name, module in make(cls).named_modules():
        plain = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not plain, (name, plain)


@ALL
def test_made_without_memory_and_on_a_device_by_default(cls):
    config = make(cls).config
    with torch.device("meta"):
        model = cls(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with torch.device("cpu"):
        assert {p.device.type for p in cls(config).parameters()} == {"cpu"}


@ALL
def test_weights_of_the_wrong_size_are_refused_or_made_anew_on_request(cls, tmp_path):
    make(cls).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        cls.from_pretrained(tmp_path, projection_dim=32)
    model = cls.from_pretrained(tmp_path, projection_dim=32, ignore_mismatched_sizes=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@ALL_PRETRAINING
def test_recomputed_layers_pass_the_gradient_of_adapters(cls):
    """Everything is frozen but the last text layer's bias, as with adapters; recomputation must not cut it off."""
    model = make_loud(cls).train()
    model.requires_grad_(False)
    text = encoder_of(model).text_model
    layers = text.layers if hasattr(text, "layers") else text.encoder.layer
    bias = layers[0].output.dense.bias.requires_grad_(True)
    recompute_activations(model, use_reentrant=True)
    model(**batch_of(cls)).loss.backward()
    assert bias.grad is not None
    assert bias.grad.abs().sum() > 0
