"""The image or text half of a dual encoder as a tower: weights, normalization, tokenizer, image size, training."""

import json
import logging

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from hf_cots import COTSModel, COTSProcessor
from hf_cots.train import train
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_model import build_model, build_tokenizer
from tests.support.runs import assert_same_weights
from tests.support.simla_world import simla_folder
from tests.support.tiny import SIZES
from tests.support.worlds import SIDE, checkpoint, tiny_tokenizer


OFF = {"mvm_weight": 0, "mlm_weight": 0}
IMAGE = SIZES | {"image_size": SIDE, "patch_size": 8}
TEXT = SIZES | {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 24, "pad_token_id": 0}
ENDS = {"bos_token_id": 2, "eos_token_id": 3}


def dual_config(name):
    """A config of each real architecture, small."""
    if name == "vision-text":
        vision, text = t.ViTConfig(**IMAGE), t.BertConfig(**TEXT)
        return t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    if name == "align":
        vision = {"image_size": SIDE, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 64}
        return t.AlignConfig(vision_config=vision, text_config=TEXT, projection_dim=16)
    classes = {
        "clip": t.CLIPConfig,
        "siglip": t.SiglipConfig,
        "chinese-clip": t.ChineseCLIPConfig,
        "altclip": t.AltCLIPConfig,
        "metaclip2": t.MetaClip2Config,
        "blip": t.BlipConfig,
    }
    text = TEXT | ENDS | ({"project_dim": 32} if name == "altclip" else {})
    return classes[name](vision_config=IMAGE, text_config=text)


NAMES = ("clip", "siglip", "chinese-clip", "altclip", "metaclip2", "blip", "align", "vision-text")


@pytest.fixture(scope="module")
def folders(world):
    """Dual encoders with random weights, with CLIP's image processor and the world's tokenizer, by name."""
    found = {}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        folder = found[name] = world.root / f"dual-{name}"
        model = t.AutoModel.from_config(dual_config(name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        t.CLIPImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return found


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def build(world, overrides=None, **settings):
    settings = {"image_tokenizer": None} | settings
    arguments, _, _ = parse_arguments(world.flags(world.root / "out", OFF | (overrides or {}), **settings))
    return build_model(arguments, build_tokenizer(arguments))


# ---------------------------------------------------------------------- what a half gives


def test_both_halves(folders, name, caplog):
    """The states of each tower are those of the dual encoder's own, and no weight is new."""
    dual = t.AutoModel.from_pretrained(folders[name]).eval()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = COTSModel.from_vision_text_pretrained(str(folders[name]), str(folders[name]), mvm_weight=0).eval()
    assert "newly initialized" not in caplog.text
    assert "MISSING" not in caplog.text
    ids, pixels = torch.randint(5, TEXT["vocab_size"], (2, 9)), torch.randn(2, 3, SIDE, SIDE)
    ids[:, 0], ids[:, -1] = 2, 3
    with torch.no_grad():
        image, text = dual.vision_model(pixel_values=pixels)[0], dual.text_model(input_ids=ids)[0]
        found = model.encode_image(pixels).last_hidden_state, model.encode_text(ids).last_hidden_state
    image = image.flatten(2).transpose(1, 2) if image.ndim == 4 else image
    torch.testing.assert_close(found[0], image)
    torch.testing.assert_close(found[1], text)
    again = COTSModel.from_vision_text_pretrained(dual, dual, mvm_weight=0).eval()
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels).last_hidden_state, found[0])


def test_saved_and_loaded(folders, name, tmp_path):
    torch.manual_seed(0)
    model = COTSModel.from_vision_text_pretrained(str(folders[name]), str(folders[name]), mvm_weight=0).eval()
    model.save_pretrained(tmp_path)
    loaded, info = COTSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = {"pixel_values": torch.randn(2, 3, SIDE, SIDE), "input_ids": torch.randint(5, 60, (2, 9))}
    with torch.no_grad():
        ours, theirs = model(**batch), loaded.eval()(**batch)
    assert torch.equal(ours.logits_per_image, theirs.logits_per_image)


def test_cots_folder_gives_its_halves(world, tmp_path):
    source = COTSModel.from_pretrained(world.model)
    model = build(world, vision=world.model, text=world.model)
    for tower in ("vision_model", "text_model"):
        wanted = getattr(source, tower).state_dict()
        assert all(torch.equal(r, wanted[k]) for k, r in getattr(model.cots, tower).state_dict().items())


@pytest.mark.parametrize("side", [16, 48])
def test_image_size(folders, name, side):
    """Python and command line agree; the tower's own interpolation says what the states are."""
    folder, pixels = str(folders[name]), torch.randn(2, 3, side, side)
    if name == "align" and side == 16:
        side, pixels = 64, torch.randn(2, 3, 64, 64)
    dual = t.AutoModel.from_pretrained(folder).eval()
    options = {} if name == "align" else {"interpolate_pos_encoding": True}
    model = COTSModel.from_vision_text_pretrained(folder, folder, mvm_weight=0, image_size=side).eval()
    assert model.config.vision_config.image_size == side
    with torch.no_grad():
        expected = dual.vision_model(pixel_values=pixels, **options)[0]
        found = model.vision_model(pixel_values=pixels)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if name != "align":
        with pytest.raises(ValueError, match="50 is not divisible by patch_size=8"):
            COTSModel.from_vision_text_pretrained(folder, folder, mvm_weight=0, image_size=50)


# ---------------------------------------------------------------------- what is refused


def test_missing_weights(folders, tmp_path):
    source = folders["clip"]
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    lost = [key for key in weights if "vision_model" in key and "layers.1.mlp" in key]
    save_file({k: v for k, v in weights.items() if k not in lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is missing weights of the image tower: vision_model.*layers.1.mlp"):
        COTSModel.from_vision_text_pretrained(str(tmp_path), str(source), mvm_weight=0)
    COTSModel.from_vision_text_pretrained(str(source), str(tmp_path), mvm_weight=0)  # its texts are whole


def test_halves_of_a_simla(world):
    """Its images have a tower of their own; its texts share theirs with both."""
    simla, (_, text) = str(simla_folder(world)), world.towers()
    COTSModel.from_vision_text_pretrained(simla, str(text), mvm_weight=0)
    with pytest.raises(ValueError, match=r"the text half of SimlaModel is not a separate tower") as caught:
        COTSModel.from_vision_text_pretrained(simla, simla, mvm_weight=0)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- from the command line


def test_normalization_and_tokenizer(world, folders):
    model = build(world, vision=folders["clip"], text=folders["clip"])
    assert tuple(model.config.image_mean) == tuple(t.CLIPImageProcessor().image_mean)
    assert (model.config.image_pooling, model.config.text_pooling) == ("cls", "last")
    kernel = t.AutoModel.from_pretrained(folders["clip"]).vision_model.embeddings.patch_embedding.weight
    assert torch.equal(model.cots.vision_model.embeddings.patch_embedding.weight, kernel)
    _, text = world.towers()
    other = build(world, vision=folders["siglip"], text=text)
    assert other.config.text_config.model_type == "bert"
    assert (other.config.image_pooling, other.config.text_pooling) == ("mean", "cls")


ALL_LEVELS = {"mvm_weight": 1, "mlm_weight": 1, "task_weight": 0.1}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_all_levels_train_and_resume(world, folders, name, tmp_path):
    """Each term falls; a resumed run is the uninterrupted one, to the bit; the deployed model serves."""
    settings = {"vision": folders[name], "text": folders[name], "save_strategy": "steps", "save_steps": 6}
    settings |= {"max_steps": 12, "learning_rate": 3e-3}
    train(world.flags(tmp_path / "whole", ALL_LEVELS, **settings))
    again = world.flags(tmp_path / "again", ALL_LEVELS, **settings)
    train([*again, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-6")])
    first, second = (checkpoint(tmp_path / run, 12) for run in ("whole", "again"))
    assert_same_weights(first, second)
    token = "cots.vision_model.embeddings.patch_embedding.mask_token"
    assert first[token].abs().max() > 0
    state = json.loads((tmp_path / "whole" / "checkpoint-12" / "trainer_state.json").read_text())
    for term in ("loss_mvm", "loss_mlm", "loss_instance"):
        seen = [entry[term] for entry in state["log_history"] if term in entry]
        assert sum(seen[-3:]) < sum(seen[:3]), term
    model, info = COTSModel.from_pretrained(tmp_path / "whole" / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert COTSProcessor.from_pretrained(tmp_path / "whole" / "model").image_processor.image_mean is not None
    assert not any("mask_token" in key for key in model.state_dict())
