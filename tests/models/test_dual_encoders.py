"""Pretrained dual encoders as COTS models: the same embeddings and temperature, and the whole objective on them."""

import copy
import json
import logging
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import transformers as t
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file

from hf_cots import CookieModel, COTSConfig, COTSForPreTraining, COTSModel
from hf_cots.models.tower_properties import describe_tower
from hf_cots.training.build_model import add_lora, freeze_towers
from hf_cots.training.gradient_cache import cache_gradients
from tests.support.clip import make_clip
from tests.support.dual_encoders import (
    DUAL_ENCODERS,
    ENDS,
    SIDE,
    SIZES,
    WORDS,
    cache_as_hub,
    draw_images,
    draw_texts,
    make_dual_encoder,
    randomize,
)
from tests.support.runs import assert_same_weights, load_exactly
from tests.support.tiny import tiny_config


NO_TOKENS = {"mvm_weight": 0, "mlm_weight": 0}
QUEUES = {"queue_size": 16, "similarity_queue_size": 6, "filter_warmup_steps": 0}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each dual encoder, and the folder where transformers saved it; made once."""
    folder, made = tmp_path_factory.mktemp("sources"), {}

    def get(name):
        if name not in made:
            made[name] = make_dual_encoder(name)
            made[name].save_pretrained(folder / name)
        return made[name], str(folder / name)

    return get


@pytest.fixture(params=DUAL_ENCODERS)
def source(request, sources):
    return sources(request.param)


def run(model, pixels, texts):
    with torch.no_grad():
        output = model(pixel_values=pixels, **texts)
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = model.get_text_features(**texts).pooler_output
    names = ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text")
    return {name: output[name] for name in names} | {"image": image, "text": text}


def assert_equal_outputs(ours, theirs, pixels, texts):
    """Embeddings and features to 1e-5; logits, without SigLIP's bias, to 1e-5 of their range."""
    given, attends = texts, ours.config.text_padding == "attended"
    if attends:  # the source's own processor gives no mask
        given = {"input_ids": texts["input_ids"]}
    found, wanted = run(ours, pixels, texts), run(theirs, pixels, given)
    bias = theirs.logit_bias.item() if hasattr(theirs, "logit_bias") else 0
    for name, rows in wanted.items():
        is_logits = name.startswith("logits")
        scale = 1 / ours.config.temperature if is_logits else max(1, rows.abs().max().item())
        difference = (found[name] - (rows - bias if is_logits else rows)).abs().max().item()
        assert difference < 1e-5 * scale, (name, difference)
    if texts["input_ids"].shape[1] > 5:  # and not because all rows are alike
        assert all(wanted[name].std(dim=0).max() > 1e-2 for name in ("image_embeds", "text_embeds"))


# ---------------------------------------------------------------------- the same embeddings


def test_embeddings_are_the_sources(source):
    """From the folder; texts of several lengths, padded or not, up to the longest."""
    theirs, folder = source
    ours = COTSModel.from_dual_encoder(folder, **NO_TOKENS).eval()
    longest = describe_tower(theirs.text_model).max_positions
    pixels = draw_images(theirs, 3)
    for words, length in ((1, 1), (2, 7), (9, 9), (9, 16), (longest - 1, longest), (longest, longest)):
        assert_equal_outputs(ours, theirs, pixels, draw_texts(3, words, length))
    padded_in_front = {name: rows.roll(5, dims=1) for name, rows in draw_texts(3, 9, 14).items()}
    assert_equal_outputs(ours, theirs, pixels, padded_in_front)
    with torch.no_grad():
        unmasked = draw_texts(3, 9, 16)["input_ids"]
        difference = (
            run(ours, pixels, {"input_ids": unmasked})["text"] - run(theirs, pixels, {"input_ids": unmasked})["text"]
        )
    assert difference.abs().max() < 1e-4
    assert ours.dtype == torch.float32


def test_a_saved_cots_gives_them_too(source, tmp_path):
    """Also where the Auto class loads it, and out of a file for pre-training."""
    theirs, _ = source
    fields = NO_TOKENS | QUEUES
    ours = COTSModel.from_dual_encoder(theirs, **fields)
    ours.save_pretrained(tmp_path / "model")
    learner = COTSForPreTraining.from_dual_encoder(theirs, **fields)
    learner.save_pretrained(tmp_path / "pretraining")
    # Trainer resumes with plain `load_state_dict`, which knows no older names.
    assert load_file(tmp_path / "pretraining" / "model.safetensors").keys() == learner.state_dict().keys()
    pixels, texts = draw_images(theirs, 2), draw_texts(2, 6, 9)
    for loaded in (
        load_exactly(COTSModel, tmp_path / "model"),
        t.AutoModel.from_pretrained(tmp_path / "pretraining"),
        COTSForPreTraining.from_pretrained(tmp_path / "model").encoder,
        COTSForPreTraining.from_pretrained(tmp_path / "model").momentum_encoder,
        learner.momentum_encoder,
    ):
        assert_equal_outputs(loaded.eval(), theirs, pixels, texts)
    assert_same_weights(COTSModel.from_pretrained(tmp_path / "pretraining").state_dict(), ours.state_dict())


def test_the_source_is_left_as_it_was(sources):
    theirs, _ = sources("clip")
    theirs = copy.deepcopy(theirs).train()
    before = copy.deepcopy(theirs.state_dict())
    ours = COTSModel.from_dual_encoder(theirs)
    assert theirs.training
    assert theirs.text_model.training
    ours.visual_projection.weight.data.zero_()
    ours.config.vision_config.image_size = 1
    assert theirs.config.vision_config.image_size == 32
    assert_same_weights(before, theirs.state_dict())


def test_what_is_read_off_the_source(sources):
    def fields(name):
        config = COTSModel.from_dual_encoder(sources(name)[0]).config
        projections = (config.image_projection, config.text_projection, config.projection_bias)
        return config.image_pooling, config.text_pooling, config.text_padding, *projections, config.projection_dim

    assert fields("clip") == ("tower", "tower", "ignored", "linear", "linear", False, 16)
    assert fields("clip-old") == fields("vit-bert") == fields("clip-roberta") == fields("altclip") == fields("clip")
    assert fields("chinese-clip") == ("tower", "cls", "ignored", "linear", "linear", False, 16)
    assert fields("siglip") == ("tower", "tower", "attended", "none", "none", False, 32)
    assert fields("align") == ("tower", "cls", "ignored", "none", "linear", True, 160)


def test_temperature_and_bias_carry_over(sources):
    theirs = copy.deepcopy(sources("siglip")[0])
    theirs.logit_scale.data.fill_(4.9)
    config = COTSModel.from_dual_encoder(theirs).config
    assert config.temperature == config.min_temperature == pytest.approx(torch.tensor(-4.9).exp().item())
    assert config.max_temperature == 0.5
    assert config.contrast == "momentum"
    learner = COTSForPreTraining.from_dual_encoder(theirs, contrast="sigmoid", learn_temperature=True, **NO_TOKENS)
    assert learner.logit_bias.item() == pytest.approx(-3.1)
    learner.cots.clamp_temperature()
    assert learner.cots.temperature.item() == pytest.approx(config.temperature)
    with torch.no_grad():
        pixels, texts = draw_images(theirs, 3), draw_texts(3, 9, 9)
        logits = learner.cots.eval()(pixel_values=pixels, **texts).logits_per_image + learner.logit_bias
        wanted = theirs(pixel_values=pixels, input_ids=texts["input_ids"]).logits_per_image
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-3)
    align = COTSModel.from_dual_encoder(sources("align")[0]).config
    assert align.temperature == align.max_temperature == pytest.approx(0.6)
    assert COTSModel.from_dual_encoder(sources("clip")[0], temperature=0.2).temperature == 0.2


def test_sigmoid_loss_is_siglips(sources):
    """Its `return_loss` sums over the texts of a batch what ours averages."""
    theirs, _ = sources("siglip")
    learner = COTSForPreTraining.from_dual_encoder(
        theirs, contrast="sigmoid", filter_lambda=None, task_weight=0, **NO_TOKENS
    )
    pixels, texts = draw_images(theirs, 4), draw_texts(4, 9, 9)
    with torch.no_grad():
        ours = learner.eval()(pixel_values=pixels, **texts).loss_instance
        wanted = theirs(pixel_values=pixels, input_ids=texts["input_ids"], return_loss=True).loss
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_padding_that_is_attended(sources):
    """A mask does no harm where the tower reads padding; elsewhere the padded length does none."""
    texts, longer = draw_texts(2, 6, 9), draw_texts(2, 6, 20)
    longer["input_ids"][:, :6] = texts["input_ids"][:, :6]
    for name, attends in (("siglip", True), ("clip", False), ("chinese-clip", False)):
        ours = COTSModel.from_dual_encoder(sources(name)[0]).eval()
        with torch.no_grad():
            masked, padded = (ours.get_text_features(**given).pooler_output for given in (texts, longer))
            unmasked = ours.get_text_features(texts["input_ids"]).pooler_output
        assert torch.equal(masked, unmasked) or not attends
        assert torch.allclose(masked, padded, atol=1e-5) != attends


def test_half_precision_becomes_float32(sources, tmp_path):
    theirs = copy.deepcopy(sources("clip")[0]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    rounded, texts = copy.deepcopy(theirs).float(), draw_texts(2, 5, 8)
    for given in (theirs, str(tmp_path), t.CLIPModel.from_pretrained(tmp_path)):
        ours = COTSModel.from_dual_encoder(given).eval()
        assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
        assert_equal_outputs(ours, rounded, draw_images(rounded, 2), texts)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit-bert"])
def test_another_image_size(sources, name):
    theirs, _ = sources(name)
    ours = COTSModel.from_dual_encoder(theirs, image_size=48).eval()
    assert (ours.config.patch_grid, ours.config.image_tokenizer_config.grid_size) == (6, 6)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        found = ours.get_image_features(pixels).pooler_output
        wanted = theirs.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- where it is loaded from


def test_from_the_hub_and_out_of_a_processor(tmp_path, monkeypatch):
    """A hand-made cache, offline. The mean is the processor's, and the image size of a convolutional net too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    theirs = make_dual_encoder("align")
    processor = t.CLIPImageProcessor(crop_size=96, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    for saved in (theirs, processor):
        saved.save_pretrained(tmp_path / "files")
    cached = cache_as_hub(tmp_path, "align")
    for path in (tmp_path / "files").iterdir():
        path.rename(cached / path.name)
    ours = COTSModel.from_dual_encoder("org/align", **NO_TOKENS).eval()
    assert (ours.config.image_mean, ours.config.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert ours.config.vision_config.image_size == 96
    assert_equal_outputs(ours, theirs, torch.randn(2, 3, 96, 96), draw_texts(2, 5, 8))
    assert COTSModel.from_dual_encoder("org/align", image_size=64, **NO_TOKENS).config.vision_config.image_size == 64
    with pytest.raises(OSError, match="couldn't"):
        COTSModel.from_dual_encoder("org/nothing")


def test_without_an_image_processor(sources, caplog):
    with caplog.at_level(logging.WARNING):
        COTSModel.from_dual_encoder(sources("clip")[1])
    assert "has no image processor: image_mean and image_std are 0.5" in caplog.text


def write_modules(folder, *modules):
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))


def test_sentence_transformers_folders(tmp_path):
    """The old layout, in a folder of its own, and the one that the library writes today."""
    st = pytest.importorskip("sentence_transformers")
    clip = tmp_path / "old" / "0_CLIPModel"
    make_clip(clip)
    randomize(t.CLIPModel.from_pretrained(clip)).save_pretrained(clip)
    write_modules(tmp_path / "old", ("0_CLIPModel", "sentence_transformers.models.CLIPModel"))
    texts = ["a small cat", "the dog", "a photo of a bird"]
    library = st.SentenceTransformer(str(tmp_path / "old"), device="cpu")
    library.save(str(tmp_path / "new"))
    inputs = t.AutoTokenizer.from_pretrained(clip)(texts, padding=True, return_tensors="pt")
    wanted = torch.tensor(library.encode(texts, normalize_embeddings=True))
    for layout in ("old", "new"):
        ours = COTSModel.from_dual_encoder(str(tmp_path / layout)).eval()
        assert ours.config.image_mean == pytest.approx([0.4814, 0.4578, 0.4082], abs=1e-3)
        with torch.no_grad():
            found = ours(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).text_embeds
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    write_modules(tmp_path / "old", ("0_CLIPModel", "sentence_transformers.models.CLIPModel"), ("1", "models.Dense"))
    with pytest.raises(ValueError, match=r"sentence-transformers.* its modules are CLIPModel, Dense; take a dual"):
        COTSModel.from_dual_encoder(str(tmp_path / "old"))


def test_without_the_package(sources, tmp_path):
    """`AutoModel` with the code beside the weights."""
    names, expected = ("clip", "siglip", "align"), {}
    for name in names:
        ours = COTSModel.from_dual_encoder(sources(name)[0], **NO_TOKENS).eval()
        ours.save_pretrained(tmp_path / name)
        expected[name] = {"pixel_values": draw_images(sources(name)[0], 2)} | draw_texts(2, 5, 8)
        with torch.no_grad():
            expected[name]["wanted"] = ours(**expected[name]).logits_per_image
    torch.save(expected, tmp_path / "expected.pt")
    code = (
        "import sys, torch; sys.modules['hf_cots'] = None; from transformers import AutoModel\n"
        "for name, inputs in torch.load('expected.pt').items():\n"
        "    model, wanted = AutoModel.from_pretrained(name, trust_remote_code=True), inputs.pop('wanted')\n"
        "    with torch.no_grad(): assert torch.equal(model(**inputs).logits_per_image, wanted), name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# ---------------------------------------------------------------------- what is refused


GROUPS = {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2]}
REFUSED = {
    "groupvit": (
        lambda: t.GroupViTModel(
            t.GroupViTConfig(text_config={**WORDS, **ENDS}, vision_config=SIDE | GROUPS, projection_dim=16)
        ),
        r"GroupViTModel \(groupvit\) cannot become a COTS: its visual_projection is not a linear layer but",
    ),
    "xclip": (
        lambda: t.XCLIPModel(
            t.XCLIPConfig(text_config={**WORDS, **ENDS}, vision_config={**SIDE, "mit_hidden_size": 32})
        ),
        r"XCLIPModel \(xclip\) cannot become a COTS: it is not a dual encoder with an image and a text tower; take",
    ),
    "naflex": (
        lambda: t.Siglip2Model(
            t.Siglip2Config(
                text_config={**WORDS, "projection_size": 32},
                vision_config={**SIZES, "num_patches": 16, "patch_size": 8},
            )
        ),
        "Siglip2VisionModel needs pixel_attention_mask, spatial_shapes .*; take a SigLIP 2 of fixed resolution",
    ),
    "bert": (
        lambda: t.BertModel(t.BertConfig(**WORDS)),
        r"BertModel \(bert\) .* not a dual encoder with an image and a",
    ),
    "cots": (lambda: COTSModel(tiny_config()), r"COTSModel \(cots\) .*; it is one: load it with from_pretrained"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_cots(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as raised:
        COTSModel.from_dual_encoder(make())
    assert "\n" not in str(raised.value)


def test_embeddings_that_are_made_in_another_way(sources, monkeypatch):
    theirs, _ = sources("clip")
    for name, message in (
        ("text_embeds", "its text embeddings are not a pooled and linearly projected output of its text tower"),
        ("image_embeds", "its image embeddings are not a pooled and linearly projected output of its image tower"),
        ("logits_per_image", "its logits are not cosine similarities over a temperature"),
    ):
        forward = theirs.forward

        def changed(*args, name=name, forward=forward, **kwargs):
            output = forward(*args, **kwargs)
            output[name] = output[name] + torch.arange(output[name].shape[1])
            return output

        with monkeypatch.context() as patch:
            patch.setattr(theirs, "forward", changed)
            with pytest.raises(ValueError, match=message):
                COTSModel.from_dual_encoder(theirs)


def test_a_folder_that_lacks_weights(tmp_path):
    """`AutoModel` would make the projections up."""
    config = t.CLIPConfig(text_config={**WORDS, **ENDS}, vision_config=SIDE, projection_dim=16)
    t.CLIPVisionModel(config.vision_config).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its files are missing .* of its weights, such as"):
        COTSModel.from_dual_encoder(str(tmp_path))


def test_another_model_of_ours(sources):
    with pytest.raises(ValueError, match="CookieModel has layers that dual encoders do not have"):
        CookieModel.from_dual_encoder(sources("clip")[0])


def test_words_are_masked_with_a_token_that_is_named(sources):
    theirs, _ = sources("clip")
    with pytest.raises(ValueError, match="mask_token_id=-1 is outside the text tower's vocabulary"):
        COTSForPreTraining.from_dual_encoder(theirs, mvm_weight=0)
    learner = COTSForPreTraining.from_dual_encoder(
        theirs, mvm_weight=0, mask_token_id=197, special_token_ids=[1, 197, 198, 199], **QUEUES
    )
    assert learner(pixel_values=draw_images(theirs, 4), **draw_texts(4, 9, 12)).loss_mlm > 0


# ---------------------------------------------------------------------- the objective


@pytest.mark.parametrize("contrast", ["momentum", "in_batch", "sigmoid"])
def test_the_objective_trains_it(source, contrast):
    """Instance and task level and the filter: every tower gets a gradient, and the momentum encoder follows."""
    theirs, _ = source
    learner = COTSForPreTraining.from_dual_encoder(
        theirs, contrast=contrast, momentum=0.5, filter_lambda=0, learn_temperature=True, **NO_TOKENS, **QUEUES
    ).train()
    batch = {"pixel_values": draw_images(theirs, 6)} | draw_texts(6, 9, 12)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=1e-5)
    for _ in range(2):
        (step,) = learner.begin_step([batch])
        output = learner(**batch, step=step)
        assert output.loss.isfinite()
        assert output.loss_task > 0
        optimizer.zero_grad()
        output.loss.backward()
        gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()}
        for part in ("vision_model", "text_model", "log_temperature"):
            assert any(name.startswith(f"cots.{part}") for name in gradients), part
        before = {name: rows.clone() for name, rows in learner.momentum_encoder.state_dict().items()}
        optimizer.step()
        learner.end_step()
        online = learner.cots.state_dict()
        for name, rows in learner.momentum_encoder.state_dict().items():
            if rows.is_floating_point():
                wanted = online[name] if "running_" in name else (before[name] + online[name]) / 2
                torch.testing.assert_close(rows, wanted, msg=name)
    assert 0 < step.kept.sum() < 6


def run_cached_step(model, batch):
    batches = [{name: rows[i : i + 2] for name, rows in batch.items()} for i in (0, 2, 4)]
    for piece, step in zip(batches, cache_gradients(model, batches, model.begin_step(batches))):
        (model(**piece, step=step).loss / len(batches)).backward()


@pytest.mark.parametrize("name", ["clip", "siglip", "align"])
def test_gradient_cache_frozen_towers_and_lora(sources, name):
    """Three micro-batches give the gradients of one batch (without batch normalization, whose statistics are theirs);
    towers that are frozen and adapters work as on any tower."""
    theirs, _ = sources(name)
    fields = {"contrast": "in_batch", "filter_lambda": None} | NO_TOKENS
    batch = {"pixel_values": draw_images(theirs, 6)} | draw_texts(6, 9, 12)
    if name != "align":
        one, three = (COTSForPreTraining.from_dual_encoder(theirs, **fields).train() for _ in range(2))
        one(**batch).loss.backward()
        run_cached_step(three, batch)
        for (n, p), q in zip(one.named_parameters(), three.parameters()):
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5), n
    frozen = COTSForPreTraining.from_dual_encoder(theirs, **fields)
    freeze_towers(frozen, ["vision"])
    frozen(**batch).loss.backward()
    assert {n.split(".")[1] for n, p in frozen.named_parameters() if p.grad is not None} >= {"text_model"}
    assert not [n for n, p in frozen.named_parameters() if "vision_model" in n and p.grad is not None]
    if name != "align":
        pytest.importorskip("peft")
        learner = COTSForPreTraining.from_dual_encoder(theirs, learn_temperature=True, **NO_TOKENS, **QUEUES)
        adapted = add_lora(learner, 2)
        trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
        assert {n.partition("lora_")[0].split(".")[3] for n in trained if "lora_" in n} == {
            "vision_model",
            "text_model",
        }
        assert any("visual_projection" in n for n in trained) == (name == "clip")
        adapted(**batch).loss.backward()


def test_standardized_features_need_a_bias(sources):
    ours = COTSModel.from_dual_encoder(sources("clip")[0])
    with pytest.raises(ValueError, match="only be standardized by projections with a bias"):
        ours.standardize_projections(torch.randn(5, 32), torch.randn(5, 32))
    none = COTSModel.from_dual_encoder(sources("siglip")[0])
    with pytest.raises(ValueError, match="projection_bias=true"):
        none.standardize_projections(torch.randn(5, 32), torch.randn(5, 32))


# ---------------------------------------------------------------------- the fields of the config


def test_projections_of_the_config():
    model = COTSModel(tiny_config(projection_bias=False))
    assert model.visual_projection.bias is model.text_projection.bias is None
    one = COTSModel(tiny_config(image_projection="none", projection_dim=32))
    assert not list(one.visual_projection.parameters())
    assert one.text_projection.bias is not None
    with pytest.raises(
        StrictDataclassClassValidationError,
        match='text_projection="none" needs projection_dim=24, the width of BertModel',
    ):
        tiny_config(text_projection="none", projection_dim=32)
    with pytest.raises(StrictDataclassClassValidationError, match='image_projection="none" needs projection_dim=64'):
        tiny_config(image_projection="none", image_pooling="cls+mean")


def test_a_text_towers_own_pooled_output():
    theirs = randomize(t.BertModel(t.BertConfig(**WORDS)))
    vision = t.ViTModel(t.ViTConfig(**SIDE))
    ours = COTSModel.from_vision_text_pretrained(vision, theirs, text_pooling="tower").eval()
    texts = draw_texts(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_text(**texts).pooler_output, theirs(**texts).pooler_output)
    assert ours.encode_text(torch.zeros(0, 8, dtype=torch.long)).pooler_output.shape == (0, 32)
    with pytest.raises(ValueError, match='text_pooling="tower" does not fit GPT2Model, which has no pooled output'):
        COTSConfig(text_config=t.GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2), text_pooling="tower")
