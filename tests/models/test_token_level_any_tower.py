"""Masked patches in towers without a mask token of their own: what is computed, saved, loaded and trained."""

import copy
import pickle

import pytest
import torch
import transformers as t
from torch.utils.checkpoint import checkpoint

from hf_cots import COTSForPreTraining, COTSModel
from hf_cots.models.patch_masking import MaskablePatches
from hf_cots.models.tower_properties import describe_tower
from hf_cots.models.towers import build_tower
from tests.support.steps import recompute_activations
from tests.support.tiny import SIZES, WORDS, tiny_batch, tiny_config
from tests.support.tiny_simla import simla_batch, tiny_simla


SIDE = {"image_size": 32, "patch_size": 8}
TOWERS = {
    "clip": t.CLIPVisionConfig(**SIDE, **SIZES),
    "siglip": t.SiglipVisionConfig(**SIDE, **SIZES),
    "chinese-clip": t.ChineseCLIPVisionConfig(**SIDE, **SIZES),
    "altclip": t.AltCLIPVisionConfig(**SIDE, **SIZES),
    "metaclip2": t.MetaClip2VisionConfig(**SIDE, **SIZES),
    "blip": t.BlipVisionConfig(**SIDE, **SIZES),
    "aimv2": t.Aimv2VisionConfig(**SIDE, **SIZES),
}
OWN = {
    "vit": t.ViTConfig(**SIDE, **SIZES),
    "beit": t.BeitConfig(**SIDE, **SIZES),
    "dinov2": t.Dinov2Config(**SIDE, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2),
    "ijepa": t.IJepaConfig(**SIDE, **SIZES),
}
NEVER = {
    "swin": t.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "convnext": t.ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "align": t.AlignVisionConfig(image_size=64, width_coefficient=0.2, depth_coefficient=0.2, hidden_dim=64),
}


def make_tower(name, mask=True):
    """With random weights, large enough that each patch matters, and a mask token that is not zero."""
    torch.manual_seed(0)
    tower = build_tower(copy.deepcopy((TOWERS | OWN)[name]), use_mask_token=mask).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


def draw(seed=1, images=3, side=32):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, side, side, generator=generator)
    masked = torch.rand(images, (side // 8) ** 2, generator=generator) < 0.4
    return pixels, masked


def make_model(name="clip", cls=COTSForPreTraining, **fields):
    torch.manual_seed(0)
    return cls(tiny_config(vision_config=copy.deepcopy((TOWERS | OWN)[name]), **fields)).eval()


@pytest.fixture(params=TOWERS)
def name(request):
    return request.param


# ---------------------------------------------------------------------- what is computed


def patch_by_patch(convolution, pixels, masked, token):
    """(n, patches, hidden): each patch cut out and multiplied with the kernel, or else the token."""
    side = convolution.kernel_size[0]
    rows = []
    for image, hidden in zip(pixels, masked):
        found = []
        for i in range(image.shape[1] // side):
            for j in range(image.shape[2] // side):
                patch = image[:, side * i : side * (i + 1), side * j : side * (j + 1)]
                value = (convolution.weight * patch).sum(dim=(1, 2, 3))
                value = value if convolution.bias is None else value + convolution.bias
                found.append(token if hidden[len(found)] else value)
        rows.append(torch.stack(found))
    return torch.stack(rows)


@torch.no_grad()
def test_clip_by_hand():
    tower, (pixels, masked) = make_tower("clip"), draw()
    parts = tower.embeddings
    patches = patch_by_patch(parts.patch_embedding, pixels, masked, parts.patch_embedding.mask_token)
    tokens = torch.cat([parts.class_embedding.expand(3, 1, -1), patches], dim=1) + parts.position_embedding.weight
    expected = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens)).last_hidden_state
    torch.testing.assert_close(tower(pixel_values=pixels, bool_masked_pos=masked).last_hidden_state, expected)


@torch.no_grad()
def test_siglip_by_hand():
    tower, (pixels, masked) = make_tower("siglip"), draw()
    parts = tower.embeddings
    patches = patch_by_patch(parts.patch_embedding, pixels, masked, parts.patch_embedding.mask_token)
    states = tower.encoder(inputs_embeds=patches + parts.position_embedding.weight).last_hidden_state
    found = tower(pixel_values=pixels, bool_masked_pos=masked)
    torch.testing.assert_close(found.last_hidden_state, tower.post_layernorm(states))
    torch.testing.assert_close(found.pooler_output, tower.head(tower.post_layernorm(states)))


@torch.no_grad()
def test_every_tower_equals_one_whose_embeddings_are_overwritten(name):
    """Its convolution's output is overwritten place by place."""
    tower, (pixels, masked) = make_tower(name), draw()
    convolution = tower.get_submodule(describe_tower(tower).patch_convolution)

    def overwrite(module, args, output):
        output = output.clone()
        for image, patch in masked.nonzero().tolist():
            output[image, :, patch // 4, patch % 4] = convolution.mask_token
        return output

    found = tower(pixel_values=pixels, bool_masked_pos=masked).last_hidden_state
    handle = convolution.register_forward_hook(overwrite)
    expected = tower(pixel_values=pixels).last_hidden_state
    handle.remove()
    torch.testing.assert_close(found, expected)
    assert (found - tower(pixel_values=pixels).last_hidden_state).abs().max() > 1e-2
    nothing = tower(pixel_values=pixels, bool_masked_pos=torch.zeros_like(masked)).last_hidden_state
    torch.testing.assert_close(nothing, tower(pixel_values=pixels).last_hidden_state)


@torch.no_grad()
def test_masked_pixels_do_not_matter(name):
    tower, (pixels, masked) = make_tower(name), draw()
    blocks = masked.view(3, 1, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    other = torch.where(blocks, torch.randn_like(pixels), pixels)
    first, second = (tower(pixel_values=p, bool_masked_pos=masked).last_hidden_state for p in (pixels, other))
    assert torch.equal(first, second)


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "siglip", "blip"])
def test_masks_at_another_resolution(name):
    tower, (pixels, masked) = make_tower(name), draw(side=48)
    states = tower(pixel_values=pixels, bool_masked_pos=masked, interpolate_pos_encoding=True).last_hidden_state
    assert states.shape[1] - masked.shape[1] == describe_tower(tower).num_special_tokens
    other = torch.where(masked[:, :1, None, None], pixels, pixels + 1)
    other[:, :, :8, 8:], other[:, :, 8:] = pixels[:, :, :8, 8:], pixels[:, :, 8:]  # the first patch, where not masked
    changed = tower(pixel_values=other, bool_masked_pos=masked, interpolate_pos_encoding=True).last_hidden_state
    assert [bool((a != b).any()) for a, b in zip(states, changed)] == (~masked[:, 0]).tolist()


@pytest.mark.parametrize("name", OWN)
def test_towers_with_their_own_mask_token_stay_as_they_are(name):
    model = make_model(name)
    keys = [key for key, _ in model.cots.named_parameters() if "mask_token" in key]
    assert len(keys) == 1
    assert keys[0].endswith("embeddings.mask_token")
    assert not any(isinstance(module, MaskablePatches) for module in model.modules())
    assert describe_tower(OWN[name]).patch_convolution is None


@pytest.mark.parametrize("name", NEVER)
def test_towers_that_cannot_mask_patches(name):
    config = NEVER[name]
    assert not describe_tower(config).can_mask_patches
    with pytest.raises(ValueError, match=r"cannot mask patches.*mvm_weight=0") as caught:
        build_tower(config, use_mask_token=True)
    assert "\n" not in str(caught.value)


def test_without_a_mask_token_nothing_is_masked():
    model, (pixels, masked) = make_model(cls=COTSModel), draw()
    assert type(model.vision_model.embeddings.patch_embedding) is torch.nn.Conv2d
    with pytest.raises(ValueError, match="COTSModel has no mask token"):
        model.encode_image(pixels, masked)


# ---------------------------------------------------------------------- gradients, and what runs a model otherwise


def gradients(tower, run=None):
    pixels, masked = draw()
    tower.train().zero_grad()
    run = tower if run is None else run
    run(pixel_values=pixels, bool_masked_pos=masked).last_hidden_state.square().sum().backward()
    return {key: parameter.grad.clone() for key, parameter in tower.named_parameters() if parameter.grad is not None}


def test_the_mask_token_has_a_gradient(name):
    tower = make_tower(name)
    token = next(key for key in gradients(tower) if key.endswith("mask_token"))
    assert gradients(tower)[token].abs().max() > 0


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_activation_checkpointing(name):
    """Of layers as transformers does it, and of the embeddings too, as FSDP may wrap them."""
    tower = make_tower(name)
    expected = gradients(tower)
    recompute_activations(tower)
    torch.testing.assert_close(gradients(tower), expected)
    forward = tower.embeddings.forward
    tower.embeddings.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
    torch.testing.assert_close(gradients(tower), expected)


@torch.no_grad()
def test_compiled():
    """In one graph: the mask is an input like any other."""
    tower, (pixels, masked) = make_tower("siglip"), draw()
    tower.encoder.layers = tower.encoder.layers[:1]
    compiled = torch.compile(lambda p, m: tower(pixel_values=p, bool_masked_pos=m)[0], backend="eager", fullgraph=True)
    for mask in (masked, ~masked):
        expected = tower(pixel_values=pixels, bool_masked_pos=mask).last_hidden_state
        torch.testing.assert_close(compiled(pixels, mask), expected)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_copies_and_pickles(name):
    tower, (pixels, masked) = make_tower(name), draw()
    for twin in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        with torch.no_grad():
            found, expected = (x(pixel_values=pixels, bool_masked_pos=masked) for x in (twin, tower))
            assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
            twin.get_submodule("embeddings.patch_embedding").mask_token.add_(1)  # its own, not the first one's
            again = tower(pixel_values=pixels, bool_masked_pos=masked)
        assert torch.equal(again.last_hidden_state, expected.last_hidden_state)


def test_autocast_and_half_precision():
    tower, (pixels, masked) = make_tower("siglip"), draw()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = tower(pixel_values=pixels, bool_masked_pos=masked).last_hidden_state
    half = tower.bfloat16()(pixel_values=pixels.bfloat16(), bool_masked_pos=masked).last_hidden_state
    torch.testing.assert_close(states.float(), half.float(), rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------- files


def test_key_of_the_mask_token():
    token = {key for key in make_model().state_dict() if "mask_token" in key}
    assert token == {"cots.vision_model.embeddings.patch_embedding.mask_token"}
    assert not any("mask_token" in key for key in make_model(mvm_weight=0).state_dict())


def test_a_deployed_model_leaves_it_out(name, tmp_path):
    model, batch = make_model(name), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded, info = COTSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).image_embeds, model.cots(**batch).image_embeds)
    whole, info = COTSForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(rows, whole.state_dict()[key]) for key, rows in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files(dtype, tmp_path):
    model = make_model("siglip").to(dtype)
    model.save_pretrained(tmp_path)
    loaded = COTSForPreTraining.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert all(torch.equal(rows, loaded.state_dict()[key]) for key, rows in model.state_dict().items())


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_pretraining_goes_on_from_a_deployed_model(name, tmp_path):
    make_model(name, COTSModel).save_pretrained(tmp_path)
    model, info = COTSForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    key = "cots.vision_model.embeddings.patch_embedding.mask_token"
    assert [k for k in info["missing_keys"] if k.startswith("cots.")] == [key]
    assert not model.state_dict()[key].any()  # as a new ViT's


def test_from_towers():
    torch.manual_seed(0)
    towers = t.CLIPVisionModel(TOWERS["clip"]), t.BertModel(t.BertConfig(**WORDS, **SIZES))
    fields = {"projection_dim": 16, "image_tokenizer_config": tiny_config().image_tokenizer_config}
    model = COTSForPreTraining.from_vision_text_pretrained(*towers, image_size=48, **fields)
    weights = towers[0].state_dict()
    for encoder in (model.cots, model.momentum_encoder):
        kernel = encoder.vision_model.embeddings.patch_embedding.weight
        assert torch.equal(kernel, weights["embeddings.patch_embedding.weight"])
    assert model.image_codes(torch.randn(1, 3, 48, 48)).shape == (1, 36)


# ---------------------------------------------------------------------- training with all levels


@pytest.mark.parametrize("name", ["clip", "siglip", "chinese-clip"])
def test_all_levels_train(name):
    """Each loss falls on a batch seen again and again; mask token and heads have gradients, momentum encoders none."""
    model = make_model(name, momentum=0.9, filter_lambda=None, queue_size=8).train()
    batch = tiny_batch() | {"image_ids": torch.arange(8)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    seen = []
    for step in range(40):
        output = model(**batch)
        output.loss.backward()
        if step == 0:
            trained = dict(model.named_parameters())
            for key in ("mvm_classifier.weight", "mvm_head.inject.weight", "mlm_head.dense.weight", "mlm_bias"):
                assert trained[key].grad.abs().max() > 0, key
            token = trained["cots.vision_model.embeddings.patch_embedding.mask_token"]
            assert token.grad.abs().max() > 0
            assert not any(p.requires_grad for p in model.momentum_encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
        seen.append([output.loss_instance, output.loss_mvm, output.loss_mlm])
    first, last = torch.tensor(seen[:5]).mean(dim=0), torch.tensor(seen[-5:]).mean(dim=0)
    assert (last < 0.9 * first).all(), (first, last)
    assert token.abs().max() > 0


def test_simla_masks_patches_of_a_clip():
    """Its own encoder passes the masks on to the tower too."""
    model = tiny_simla(vision_config=copy.deepcopy(TOWERS["clip"]))
    output = model(**simla_batch(model))
    output.loss.backward()
    assert output.loss_mim > 0
    assert model.simla.vision_model.embeddings.patch_embedding.mask_token.grad.abs().max() > 0
