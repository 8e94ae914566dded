"""What every transformers model is expected to do, asked of COTSModel and COTSForPreTraining."""

import copy
import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cots import COTSForPreTraining, COTSModel, SimlaForPreTraining
from tests.support.runs import assert_same_weights
from tests.support.steps import gradients
from tests.support.tiny import tiny_batch, tiny_config
from tests.support.tiny_simla import simla_batch, tiny_simla


BOTH = pytest.mark.parametrize("cls", [COTSModel, COTSForPreTraining])


def make(cls, **fields):
    torch.manual_seed(0)
    return cls(tiny_config(**fields)).eval()


def flat(output):
    """All tensors of an output, by name."""
    tensors = {}
    for name, value in output.items():
        for inner, tensor in value.items() if hasattr(value, "items") else [("", value)]:
            if isinstance(tensor, torch.Tensor):
                tensors[f"{name}.{inner}"] = tensor
    return tensors


def assert_equal(ours, theirs):
    assert_same_weights(flat(ours), flat(theirs))


@BOTH
def test_determinism_in_evaluation(cls):
    config = tiny_config()
    config.vision_config.hidden_dropout_prob = config.text_config.hidden_dropout_prob = 0.5
    model = cls(config).eval()
    with torch.no_grad():
        assert_equal(model(**tiny_batch()), model(**tiny_batch()))


@BOTH
def test_save_and_load_give_equal_outputs(cls, tmp_path):
    model = make(cls)
    with torch.no_grad():
        expected = model(**tiny_batch())
        model.save_pretrained(tmp_path)
        assert_equal(cls.from_pretrained(tmp_path)(**tiny_batch()), expected)
        # In several files, too.
        model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
        assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
        assert_equal(cls.from_pretrained(tmp_path / "sharded")(**tiny_batch()), expected)


@BOTH
def test_saving_twice_gives_the_same_files(cls, tmp_path):
    make(cls).save_pretrained(tmp_path / "a")
    cls.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert_same_weights(*(load_file(tmp_path / name / "model.safetensors") for name in "ab"))
    names = [{f.name for f in (tmp_path / name).iterdir()} for name in "ab"]
    assert names[0] == names[1]
    assert not any(name.endswith(".bin") for name in names[0]), "safetensors only"


@BOTH
def test_initialisation_is_sane(cls):
    model = make(cls, initializer_range=0.02)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if "image_tokenizer" in name:
            continue
        mean, std = parameter.mean().item(), parameter.std().item() if parameter.numel() > 1 else 0
        if name.endswith("norm.weight") or "LayerNorm.weight" in name or ("layernorm" in name and "weight" in name):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert abs(mean) < 0.01, name
            assert std < 0.03, name
    weight = model.base_model.visual_projection.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.15)


@BOTH
def test_two_models_differ_and_a_seed_repeats(cls):
    a, b, c = (one.base_model.visual_projection.weight for one in (make(cls), make(cls), cls(tiny_config())))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@BOTH
def test_a_load_leaves_no_garbage_in_missing_weights_and_buffers(cls, tmp_path):
    """A file that lacks some keys: these come out initialised, not as whatever memory held, and everything is real."""
    model = make(cls, learn_temperature=True)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for key in [k for k in state if "projection" in k or "queue" in k or "seen" in k or "temperature" in k]:
        del state[key]
    assert len(state) < len(model.state_dict())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = cls.from_pretrained(tmp_path)
    for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert tensor.device.type == "cpu", name
        assert torch.isfinite(tensor.float()).all(), name
        if "queue" in name or "seen" in name:
            assert (tensor == 0).all(), name
        if "temperature" in name:
            assert tensor.exp().item() == pytest.approx(0.05)
        if "projection.weight" in name:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.2), name
        if "position_ids" in name:
            assert tensor.flatten().tolist() == list(range(tensor.numel())), name
        if "token_type_ids" in name:
            assert (tensor == 0).all(), name


@BOTH
def test_forward_takes_the_usual_arguments_and_nothing_called_label(cls):
    names = list(inspect.signature(cls.forward).parameters)[1:]
    assert set(names[:2]) == {"input_ids", "pixel_values"}
    assert "attention_mask" in names
    assert ("token_type_ids" in names) == (cls is COTSModel)
    assert cls is COTSModel or len(names) <= 10
    assert not [name for name in names if "label" in name]
    assert not cls.accepts_loss_kwargs


@pytest.mark.parametrize("cls", [COTSModel, COTSForPreTraining, SimlaForPreTraining])
def test_gradient_checkpointing_changes_nothing(cls):
    of_both = []
    for checkpointing in (False, True):
        model = tiny_simla() if cls is SimlaForPreTraining else make(cls).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        batch = simla_batch(model) if cls is SimlaForPreTraining else tiny_batch()
        torch.manual_seed(1)
        output = model(**batch)
        loss = output.logits_per_image.logsumexp(dim=1).sum() if cls is COTSModel else output.loss
        loss.backward()
        of_both.append(gradients(model))
    for name, gradient in of_both[0].items():
        torch.testing.assert_close(of_both[1][name], gradient, msg=lambda m, n=name: n + m)


@BOTH
def test_attention_implementations_agree(cls, tmp_path):
    make(cls).save_pretrained(tmp_path)
    outputs = {}
    batch = tiny_batch()
    batch["attention_mask"][0, 5:] = 0
    for implementation in ("eager", "sdpa"):
        model = cls.from_pretrained(tmp_path, attn_implementation=implementation)
        streams = model.base_model
        assert streams.vision_model.config._attn_implementation == implementation
        assert streams.text_model.config._attn_implementation == implementation
        with torch.no_grad():
            outputs[implementation] = flat(model(**batch))
    for name, tensor in outputs["eager"].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(outputs["sdpa"][name], tensor, rtol=1e-4, atol=1e-4)


def test_hidden_states_and_attentions_on_request(tmp_path):
    make(COTSModel).save_pretrained(tmp_path)
    model = COTSModel.from_pretrained(tmp_path, attn_implementation="eager")
    output = model(**tiny_batch(), output_hidden_states=True, output_attentions=True)
    for stream, tokens, width in ((output.vision_model_output, 17, 32), (output.text_model_output, 10, 24)):
        assert [h.shape for h in stream.hidden_states] == [(8, tokens, width)] * 3
        assert [a.shape for a in stream.attentions] == [(8, 2, tokens, tokens)] * 2
        torch.testing.assert_close(stream.attentions[0].sum(dim=-1), torch.ones(8, 2, tokens))
    plain = model(**tiny_batch())
    assert plain.vision_model_output.hidden_states is None
    assert plain.text_model_output.attentions is None
    assert torch.equal(plain.logits_per_image, output.logits_per_image)
    features = model.get_text_features(tiny_batch()["input_ids"], output_hidden_states=True)
    assert len(features.hidden_states) == 3


def test_attention_implementation_can_be_switched_later():
    model = make(COTSModel)
    expected = model(**tiny_batch()).logits_per_image
    model.set_attn_implementation("eager")
    assert len(model(**tiny_batch(), output_attentions=True).vision_model_output.attentions) == 2
    torch.testing.assert_close(model(**tiny_batch()).logits_per_image, expected, rtol=1e-4, atol=1e-5)


@BOTH
def test_resize_token_embeddings(cls):
    """More words: old texts keep their embeddings, new ids can be used, the config knows."""
    model = make(cls)
    streams = model.base_model
    batch = tiny_batch()
    with torch.no_grad():
        before = streams(**batch).text_embeds
    model.resize_token_embeddings(210)
    assert model.get_input_embeddings().weight.shape == (210, 24)
    assert model.config.text_config.vocab_size == 210
    with torch.no_grad():
        torch.testing.assert_close(streams(**batch).text_embeds, before)
        batch["input_ids"][:, 2] = 209
        assert torch.isfinite(streams(**batch).text_embeds).all()


@pytest.mark.parametrize("size", [210, 190])
def test_pretraining_goes_on_after_resizing_the_words(size, tmp_path):
    """The momentum encoder and the word classifier follow, stay frozen or trained as they were, and are saved."""
    model = make(COTSForPreTraining).train()
    with torch.no_grad():
        model.mlm_bias.copy_(torch.arange(200.0) / 100)
    model.resize_token_embeddings(size)
    kept = min(size, 200)
    assert torch.equal(model.mlm_bias[:kept], torch.arange(float(kept)) / 100)
    assert (model.mlm_bias[kept:] == 0).all()
    assert model.mlm_bias.shape == (size,)
    follower = model.momentum_encoder.get_input_embeddings().weight
    assert torch.equal(follower, model.get_input_embeddings().weight)
    assert not follower.requires_grad
    batch = tiny_batch()
    batch["input_ids"] = batch["input_ids"].clamp(max=size - 1)
    output = model(**batch)
    output.loss.backward()
    model.update_momentum()
    assert torch.isfinite(output.loss)
    assert model.mlm_bias.grad.shape == (size,)
    model.save_pretrained(tmp_path)
    assert_same_weights(COTSForPreTraining.from_pretrained(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@BOTH
def test_half_precision_save_and_load(cls, dtype, tmp_path):
    """Saved in half precision it loads as such, gives float32 embeddings and is near the original."""
    model = make(cls)
    batch = tiny_batch()
    streams = model.base_model
    with torch.no_grad():
        expected = streams(**batch).image_embeds
    model.to(dtype).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if "visual_projection" in name} == {dtype}
    loaded = cls.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    streams = loaded.base_model
    with torch.no_grad():
        output = streams(**(batch | {"pixel_values": batch["pixel_values"].to(dtype)}))
    assert output.image_embeds.dtype == output.logits_per_image.dtype == torch.float32
    torch.testing.assert_close(output.image_embeds, expected, rtol=0, atol=0.03)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(8))
    wide = cls.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_float32_file_loads_as_bf16(tmp_path):
    make(COTSModel).save_pretrained(tmp_path)
    model = COTSModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(
        model(**(tiny_batch() | {"pixel_values": torch.randn(8, 3, 32, 32).bfloat16()})).image_embeds
    ).all()


def test_compiled_forward_equals_eager():
    model = make(COTSModel)
    batch = tiny_batch(pairs=2)
    with torch.no_grad():
        expected = model(**batch)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(**batch)
    torch.testing.assert_close(compiled.logits_per_image, expected.logits_per_image, rtol=1e-4, atol=1e-5)


@BOTH
def test_deep_copy_is_equal_and_independent(cls):
    model = make(cls)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        assert_equal(clone(**tiny_batch()), model(**tiny_batch()))
        name, parameter = next(iter(clone.named_parameters()))
        parameter.add_(1)
        assert not torch.equal(parameter, model.get_parameter(name))


@BOTH
def test_embeddings_can_be_swapped(cls):
    model = make(cls)
    fresh = torch.nn.Embedding(200, 24)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh


@BOTH
def test_state_dict_resumes_exactly(cls):
    """Plain load_state_dict, strictly: what Trainer does with a checkpoint."""
    model, other = make(cls), cls(tiny_config()).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert_equal(other(**tiny_batch()), model(**tiny_batch()))


@BOTH
def test_unknown_keys_are_reported(cls, tmp_path):
    """Ignoring what pre-training adds must not hide a truly foreign key."""
    model = make(cls)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"stranger.weight": torch.zeros(2)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"stranger.weight"}


def test_learned_words_reach_the_tied_classifier():
    """The word classifier of the token level is the word embedding itself."""
    model = make(COTSForPreTraining, instance_weight=0.0, task_weight=0.0, mvm_weight=0.0).train()
    batch = tiny_batch()
    model(**batch).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    unseen = [i for i in range(104, 200) if i not in set(batch["input_ids"].flatten().tolist())]
    assert (gradient[unseen].abs().sum(dim=1) > 0).all(), "the softmax reaches words that no text holds"
