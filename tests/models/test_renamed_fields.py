"""Files and recipes of before: old names of fields, values and buffers load, and are saved under those of today."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cots import CookieConfig, COTSConfig, COTSForPreTraining, COTSModel, SimlaConfig, SimlaForPreTraining
from hf_cots.models.renamed_fields import REMOVED, RENAMED, rename_fields
from tests.support.runs import assert_same_weights, load_exactly
from tests.support.tiny import tiny_config
from tests.support.tiny_simla import tiny_simla_config


def test_old_names_and_values_become_those_of_today():
    old = {"fresh_negatives": False, "masked_share": 0.5, "reference_quirks": True, "text_view": "sibling"}
    new = {"enqueue_before_loss": False, "masked_fraction": 0.5, "match_original_code": True}
    assert rename_fields(old | {"momentum": 0.9}) == new | {"text_view": "other_caption", "momentum": 0.9}
    assert rename_fields(new) == new


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_option_loads_with_its_default_alone(name):
    assert rename_fields({name: REMOVED[name], "momentum": 0.9}) == {"momentum": 0.9}
    with pytest.raises(ValueError, match=f"the option {name} was removed"):
        rename_fields({name: "text_to_image" if name == "task_direction" else True})


def test_a_field_under_both_its_names_is_refused():
    with pytest.raises(ValueError, match="masked_share is now called masked_fraction"):
        rename_fields({"masked_share": 0.5, "masked_fraction": 0.25})


def test_new_names_are_fields_and_old_ones_are_not():
    fields = {*COTSConfig().to_dict(), *SimlaConfig().to_dict(), *CookieConfig().to_dict()}
    assert set(RENAMED.values()) <= fields
    assert not {*RENAMED, *REMOVED} & fields


def filled(model):
    """Something that is not 0 in every slot of the queue."""
    keys = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    model.key_queue.enqueue(keys, keys.flip(0), torch.arange(5), 100 + torch.arange(5))
    return model


def rewrite(folder, **fields):
    """Make a folder look as an earlier version saved it."""
    state = load_file(folder / "model.safetensors")
    state["key_queue.pair_numbers"] = state.pop("key_queue.pair_index")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for old, new in RENAMED.items():
        if new in config:
            config[old] = config.pop(new)
    (folder / "config.json").write_text(json.dumps(config | fields))
    return state


MODELS = {
    "cots": lambda: COTSForPreTraining(tiny_config(enqueue_before_loss=False, masked_fraction=0.5)),
    "simla": lambda: SimlaForPreTraining(tiny_simla_config(match_original_code=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_of_before_loads_bit_for_bit(name, tmp_path):
    model = filled(MODELS[name]())
    model.save_pretrained(tmp_path / "old")
    rewrite(tmp_path / "old", **(REMOVED if name == "cots" else {}))
    loaded = load_exactly(type(model), tmp_path / "old")
    for field in set(RENAMED.values()) & model.config.to_dict().keys():
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    loaded.save_pretrained(tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert_same_weights(saved, model.state_dict())
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert not {*RENAMED, *REMOVED} & config.keys()


def test_a_checkpoint_of_before_resumes(tmp_path):
    """As Trainer loads it: `load_state_dict(strict=False)`, which would leave the buffer empty without a word."""
    model = filled(MODELS["cots"]())
    model.save_pretrained(tmp_path)
    state = rewrite(tmp_path)
    resumed = MODELS["cots"]()
    result = resumed.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert not result.missing_keys
    assert resumed.key_queue.pair_index.tolist()[:5] == [100, 101, 102, 103, 104]
    assert "key_queue.pair_numbers" in state, "the caller's state dict is left as it was"


def test_the_encoder_of_a_file_of_before(tmp_path):
    model = filled(MODELS["cots"]())
    model.save_pretrained(tmp_path)
    rewrite(tmp_path)
    loaded, info = COTSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.cots.state_dict()[key]), key
