"""What every transformers model is expected to do, asked of all six model classes: COTSModel, CookieModel, SimlaModel,
COTSForPreTraining, CookieForPreTraining and SimlaForPreTraining.

These are tests of our own for what the common tests of transformers ask (`tests/test_modeling_common.py` of its source
distribution, 5.24); THEIRS says for each of those where it is answered here, or why it does not apply.
"""

import copy
import importlib
import inspect

import pytest
import torch
from safetensors.torch import load_file

from hf_cots import COTSForPreTraining, COTSModel, SimlaForPreTraining, SimlaModel
from tests.support.model_classes import (
    ALL,
    ALL_PRETRAINING,
    ENCODERS,
    PRETRAINING,
    assert_equal,
    batch_of,
    config_of,
    encoder_of,
    flat,
    make,
    make_loud,
    prefix_of,
)
from tests.support.steps import recompute_activations
from tests.support.tiny import tiny_batch


ATTENTION = "of one attention kernel on a GPU; test_attention_implementations_agree compares those of a CPU"
TEXT_ONLY = "of models that generate or classify text"
HERE, OUTPUTS, EXPORT = "test_modeling_common", "test_modeling_common_outputs", "test_modeling_common_export"
# Each test of transformers' ModelTesterMixin: the test of ours that asks the same, or why it does not apply.
THEIRS = {
    "test_num_layers_is_small": "of their test set-up",
    "test_save_load": (HERE, "test_save_and_load_give_equal_outputs"),
    "test_from_pretrained_no_checkpoint": (HERE, "test_state_dict_resumes_exactly"),
    "test_keep_in_fp32_modules*": "no module is kept in float32: the losses compute in it whatever the weights are",
    "test_save_load_keys_to_ignore_on_save": "no key is left out of a save",
    "test_load_contiguous_weights": (HERE, "test_saving_twice_gives_the_same_files"),
    "test_gradient_checkpointing_*": (HERE, "test_gradient_checkpointing_changes_nothing"),
    "test_peft_gradient_checkpointing_enable_disable": (
        OUTPUTS,
        "test_recomputed_layers_pass_the_gradient_of_adapters",
    ),
    "test_enable_input_require_grads*": (OUTPUTS, "test_recomputed_layers_pass_the_gradient_of_adapters"),
    "test_can_init_all_missing_weights": (HERE, "test_a_load_leaves_no_garbage_in_missing_weights_and_buffers"),
    "test_init_weights_can_init_buffers": (HERE, "test_a_load_leaves_no_garbage_in_missing_weights_and_buffers"),
    "test_all_tensors_are_parameter_or_buffer": (OUTPUTS, "test_no_tensor_is_a_plain_attribute"),
    "test_torch_save_load": (OUTPUTS, "test_pickle_and_torch_save"),
    "test_determinism": (HERE, "test_determinism_in_evaluation"),
    "test_batching_equivalence": (OUTPUTS, "test_a_row_does_not_depend_on_its_batch"),
    "test_model_forward_default_config_values": (OUTPUTS, "test_a_tuple_holds_what_the_dictionary_holds"),
    "test_encoder_decoder_loss_no_double_shift": TEXT_ONLY,
    "test_causal_lm_loss_honors_shift_labels": TEXT_ONLY,
    "test_training*": (HERE, "test_gradient_checkpointing_changes_nothing"),
    "test_attention_outputs": (OUTPUTS, "test_hidden_states_and_attentions_of_both_streams"),
    "test_hidden_states_output": (OUTPUTS, "test_hidden_states_and_attentions_of_both_streams"),
    "test_multimodal_outputs_are_returned": "of models that feed images into a language model",
    "test_retain_grad_hidden_states_attentions": (OUTPUTS, "test_hidden_states_and_attentions_of_both_streams"),
    "test_feed_forward_chunking": "no feed-forward layer of ours is chunked",
    "test_resize_position_vector_embeddings": "positions are not resized",
    "test_resize_tokens_embeddings*": (HERE, "test_resize_token_embeddings"),
    "test_resize_embeddings_untied*": (HERE, "test_pretraining_goes_on_after_resizing_the_words"),
    "test_model_get_set_embeddings": (HERE, "test_embeddings_can_be_swapped"),
    "test_model_main_input_name": (HERE, "test_forward_takes_the_usual_arguments_and_nothing_called_label"),
    "test_model_base_model_prefix": (HERE, "test_encoders_and_pretraining_models_load_each_others_files"),
    "test_correct_missing_keys": (HERE, "test_unknown_keys_are_reported"),
    "test_base_model_prefix_loads_base_weights": (
        HERE,
        "test_encoders_and_pretraining_models_load_each_others_files",
    ),
    "test_can_use_safetensors": (HERE, "test_saving_twice_gives_the_same_files"),
    "test_load_save_without_tied_weights": "the word classifier uses the embedding itself, no weight is tied",
    "test_tied_weights_keys": "the word classifier uses the embedding itself, no weight is tied",
    "test_model_weights_reload_no_missing_tied_weights": (HERE, "test_save_and_load_give_equal_outputs"),
    "test_model_outputs_equivalence": (OUTPUTS, "test_a_tuple_holds_what_the_dictionary_holds"),
    "test_inputs_embeds*": "the towers take ids: an embedding would hide which words are padding or masked",
    "test_disk_offload_*": "of several devices; models of this size are not spread",
    "test_cpu_offload": "of several devices; models of this size are not spread",
    "test_model_parallelism": "of several devices; models of this size are not spread",
    "test_problem_types": TEXT_ONLY,
    "test_load_with_mismatched_shapes": (
        OUTPUTS,
        "test_weights_of_the_wrong_size_are_refused_or_made_anew_on_request",
    ),
    "test_can_load_ignoring_mismatched_shapes": (
        OUTPUTS,
        "test_weights_of_the_wrong_size_are_refused_or_made_anew_on_request",
    ),
    "test_model_is_small": "of their test set-up",
    "test_flash_attn_*": ATTENTION,
    "test_attn_implementation_composite_models": (HERE, "test_attention_implementations_agree"),
    "test_sdpa_can_dispatch_*": (HERE, "test_attention_implementations_agree"),
    "test_eager_matches_*": (HERE, "test_attention_implementations_agree"),
    "test_sdpa_can_compile_dynamic": (HERE, "test_compiled_forward_equals_eager"),
    "test_sliding_window_mask": TEXT_ONLY,
    "test_torch_compile_for_training": "of a GPU; test_compiled_forward_equals_eager compiles the forward",
    "test_flex_attention_with_grads": ATTENTION,
    "test_generation_tester_mixin_inheritance": TEXT_ONLY,
    "test_can_be_initialized_on_meta": (OUTPUTS, "test_made_without_memory_and_on_a_device_by_default"),
    "test_can_load_with_*": (OUTPUTS, "test_made_without_memory_and_on_a_device_by_default"),
    "test_cannot_load_with_meta_device_context_manager": "the refusal is transformers' own",
    "test_config_attn_implementation_setter": "of the config's base class",
    "test_internal_model_config_and_subconfig_are_same": (HERE, "test_attention_implementations_agree"),
    "test_can_set_attention_dynamically*": (HERE, "test_attention_implementation_can_be_switched_later"),
    "test_bc_torch_dtype": (HERE, "test_float32_file_loads_as_bf16"),
    "test_tp_plan_matches_params": "no tensor-parallel plan",
    "test_tied_weights_are_sharded_together": "no tensor-parallel plan",
    "test_reverse_loading_mapping": (HERE, "test_saving_twice_gives_the_same_files"),
    "test_can_load_from_already_mapped_keys": (HERE, "test_saving_twice_gives_the_same_files"),
    "test_get_text_features_*": (OUTPUTS, "test_features_of_one_stream_with_hidden_states_and_attentions"),
    "test_get_image_features_*": (OUTPUTS, "test_features_of_one_stream_with_hidden_states_and_attentions"),
    "test_get_audio_features_*": "no audio",
    "test_get_video_features_*": "no video",
    "test_capture_outputs_decorator": "the towers' own, whose states test_modeling_common_outputs.py asks for",
    "test_format_of_can_record_outputs": "the towers' own",
    "test_can_capture_specific_layers_hidden_states": "the towers' own",
    "test_moe_models_record_router_logits": "no experts",
    "test_output_router_logits_from_config": "no experts",
    "test_kernels_can_load_without_crashing": ATTENTION,
    "test_model_rope_*": "no rotary positions of ours",
    "test_vision_axial_rope": "no rotary positions of ours",
    "test_bc_cache_name_forward": TEXT_ONLY,
    "export (ExportTesterMixin)": (EXPORT, "test_the_exporters_of_transformers"),
}


def test_every_answer_is_a_test():
    for answer in THEIRS.values():
        if isinstance(answer, tuple):
            module, name = answer
            assert callable(getattr(importlib.import_module(f"tests.models.{module}"), name))


@pytest.mark.parametrize(("encoder", "cls"), list(zip(ENCODERS, PRETRAINING)))
def test_encoders_and_pretraining_models_load_each_others_files(encoder, cls, tmp_path):
    """The prefix is found and dropped; momentum encoders are equal to what they follow."""
    model = make_loud(cls)
    assert model.encoder is getattr(model, cls.base_model_prefix) is model.base_model
    model.save_pretrained(tmp_path / "whole")
    deployed = encoder.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert_equal(deployed(**tiny_batch()), model.encoder(**tiny_batch()))
    deployed.save_pretrained(tmp_path / "encoder")
    again = cls.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        assert_equal(again.encoder(**tiny_batch()), model.encoder(**tiny_batch()))
    if again.ema_pairs:
        momentum_encoder, online = again.ema_pairs[0]
        assert all(torch.equal(p, online.get_parameter(name)) for name, p in momentum_encoder.named_parameters())


@ALL
def test_determinism_in_evaluation(cls):
    config = config_of(cls)
    config.vision_config.hidden_dropout_prob = config.text_config.hidden_dropout_prob = 0.5
    model = cls(config).eval()
    with torch.no_grad():
        assert_equal(model(**batch_of(cls)), model(**batch_of(cls)))


@ALL
def test_save_and_load_give_equal_outputs(cls, tmp_path):
    model = make(cls)
    with torch.no_grad():
        expected = model(**batch_of(cls))
        model.save_pretrained(tmp_path)
        assert_equal(cls.from_pretrained(tmp_path)(**batch_of(cls)), expected)
        # In several files, too.
        model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
        assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
        assert_equal(cls.from_pretrained(tmp_path / "sharded")(**batch_of(cls)), expected)


@ALL
def test_saving_twice_gives_the_same_files(cls, tmp_path):
    make(cls).save_pretrained(tmp_path / "a")
    cls.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    names = [{f.name for f in (tmp_path / name).iterdir()} for name in "ab"]
    assert names[0] == names[1]
    assert not any(name.endswith(".bin") for name in names[0]), "safetensors only"


@ALL
def test_initialisation_is_sane(cls):
    model = make(cls, initializer_range=0.02)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if "image_tokenizer" in name or name.endswith("temperature"):
            continue
        mean, std = parameter.mean().item(), parameter.std().item() if parameter.numel() > 1 else 0
        if "norm.weight" in name or "LayerNorm.weight" in name or ("layernorm" in name and "weight" in name):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert abs(mean) < 0.01, name
            assert std < 0.03, name
    torch.testing.assert_close(
        model.state_dict()[next(k for k in model.state_dict() if "projection.weight" in k)].std(),
        torch.tensor(0.02),
        rtol=0.15,
        atol=0,
    )


@ALL
def test_two_models_differ_and_a_seed_repeats(cls):
    a, b, c = make(cls), make(cls), cls(config_of(cls))
    weight = f"{prefix_of(cls)}visual_projection.weight"
    assert torch.equal(a.get_parameter(weight), b.get_parameter(weight))
    assert not torch.equal(a.get_parameter(weight), c.get_parameter(weight))


@ALL
def test_a_load_leaves_no_garbage_in_missing_weights_and_buffers(cls, tmp_path):
    """A file that lacks some keys: these come out initialised, not as whatever memory held, and everything is real."""
    from safetensors.torch import save_file

    learned = {} if cls in (SimlaModel, SimlaForPreTraining) else {"learn_temperature": True}
    model = make(cls, **learned)
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
            assert (tensor.exp() if learned else tensor).item() == pytest.approx(model.config.temperature)
        if "projection.weight" in name:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.2), name
        if "position_ids" in name:
            assert tensor.flatten().tolist() == list(range(tensor.numel())), name
        if "token_type_ids" in name:
            assert (tensor == 0).all(), name


@ALL
def test_forward_takes_the_usual_arguments_and_nothing_called_label(cls):
    names = list(inspect.signature(cls.forward).parameters)[1:]
    assert set(names[:2]) == {"input_ids", "pixel_values"}
    assert names[0] == cls.main_input_name
    assert "attention_mask" in names
    assert ("token_type_ids" in names) == (cls in ENCODERS)
    assert cls in ENCODERS or len(names) <= 13  # seven of images and texts, four of masks, two of clips
    assert not [name for name in names if "label" in name]
    assert not cls.accepts_loss_kwargs


@ALL
def test_gradient_checkpointing_changes_nothing(cls):
    gradients = []
    for checkpointing in (False, True):
        model = make(cls).train()
        if checkpointing:
            recompute_activations(model, use_reentrant=False)
        torch.manual_seed(0)  # SIMLA's negatives
        output = model(**batch_of(cls))
        loss = output.loss if cls in PRETRAINING else output.logits_per_image.logsumexp(dim=1).sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, n=name: n + m)


@ALL
def test_attention_implementations_agree(cls, tmp_path):
    make(cls).save_pretrained(tmp_path)
    outputs = {}
    batch = batch_of(cls)
    batch["attention_mask"][0, 5:] = 0
    for implementation in ("eager", "sdpa"):
        model = cls.from_pretrained(tmp_path, attn_implementation=implementation)
        streams = encoder_of(model)
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


@ALL
def test_resize_token_embeddings(cls):
    """More words: old texts keep their embeddings, new ids can be used, the config knows."""
    model = make(cls)
    streams, width = encoder_of(model), model.config.text_config.hidden_size
    batch = tiny_batch()
    with torch.no_grad():
        before = streams(**batch).text_embeds
    model.resize_token_embeddings(210)
    assert model.get_input_embeddings().weight.shape == (210, width)
    assert model.config.text_config.vocab_size == 210
    with torch.no_grad():
        torch.testing.assert_close(streams(**batch).text_embeds, before)
        batch["input_ids"][:, 2] = 209
        assert torch.isfinite(streams(**batch).text_embeds).all()


@ALL_PRETRAINING
@pytest.mark.parametrize("size", [210, 190])
def test_pretraining_goes_on_after_resizing_the_words(cls, size, tmp_path):
    """Momentum encoders and word classifiers follow, stay frozen or trained as they were, and are saved."""
    model = make(cls).train()
    biases = [name for name, _ in model.named_parameters() if name.endswith(("mlm_bias", "word_bias"))]
    assert len(biases) == {"cots": 1, "simla": 2, "cookie": 0}[model.config.model_type]
    with torch.no_grad():
        for name in biases:
            model.get_parameter(name).copy_(torch.arange(200.0) / 100)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.resize_token_embeddings(size)
    kept = min(size, 200)
    for name in biases:
        assert torch.equal(model.get_parameter(name)[:kept], torch.arange(float(kept)) / 100)
        assert (model.get_parameter(name)[kept:] == 0).all()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    for name, parameter in model.named_parameters():
        longer = 200 in before[name].shape
        assert parameter.shape == tuple(size if longer and n == 200 else n for n in before[name].shape), name
        assert torch.equal(parameter[:kept] if longer else parameter, before[name][:kept] if longer else before[name])
    for momentum_encoder, online in model.ema_pairs:
        for name, parameter in momentum_encoder.named_parameters():
            assert torch.equal(parameter, online.get_parameter(name)), name
    batch = {name: rows.clamp(max=size - 1) if "ids" in name else rows for name, rows in batch_of(cls).items()}
    output = model(**batch)
    output.loss.backward()
    model.update_momentum()
    assert torch.isfinite(output.loss)
    assert model.get_input_embeddings().weight.grad.shape == (size, model.config.text_config.hidden_size)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize("size", [210, 190])
def test_a_simla_model_to_deploy_resizes_its_keywords(size):
    """New words are as likely keywords as the mean of the old ones."""
    model = make_loud(SimlaModel)
    pixels = tiny_batch()["pixel_values"]
    before, head = model.predict_keywords(pixels), copy.deepcopy(model.concept_head)
    model.resize_token_embeddings(size)
    after = model.predict_keywords(pixels)
    assert after.shape == (8, size)
    torch.testing.assert_close(after[:, :200], before[:, :size])
    if size > 200:
        assert torch.equal(model.concept_head.weight[205], head.weight.mean(dim=0))
        assert torch.equal(model.concept_head.bias[205], head.bias.mean(dim=0))
    else:
        assert torch.equal(model.concept_head.weight, head.weight[:size])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@ALL
def test_half_precision_save_and_load(cls, dtype, tmp_path):
    """Saved in half precision it loads as such, gives float32 embeddings and is near the original."""
    model = make(cls)
    batch = tiny_batch()
    streams = encoder_of(model)
    with torch.no_grad():
        expected = streams(**batch).image_embeds
    model.to(dtype).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")[f"{prefix_of(cls)}visual_projection.weight"].dtype == dtype
    loaded = cls.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    streams = encoder_of(loaded)
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


@ALL
def test_deep_copy_is_equal_and_independent(cls):
    model = make(cls)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        assert_equal(clone(**batch_of(cls)), model(**batch_of(cls)))
        name, parameter = next(iter(clone.named_parameters()))
        parameter.add_(1)
        assert not torch.equal(parameter, model.get_parameter(name))


@ALL
def test_embeddings_can_be_swapped(cls):
    model = make(cls)
    fresh = torch.nn.Embedding(200, model.config.text_config.hidden_size)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh


@ALL
def test_state_dict_resumes_exactly(cls):
    """Plain load_state_dict, strictly: what Trainer does with a checkpoint."""
    model, other = make(cls), cls(config_of(cls)).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert_equal(other(**batch_of(cls)), model(**batch_of(cls)))


@ALL
def test_unknown_keys_are_reported(cls, tmp_path):
    """Ignoring what pre-training adds must not hide a truly foreign key."""
    from safetensors.torch import save_file

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
