"""Losses with shuffled cross-modal features: against a loop, for a trained level and for a dead one."""

import pytest
import torch

import hf_cots.train
from hf_cots import COTSForPreTraining
from hf_cots.data.collator import COTSCollator
from hf_cots.data.sources import load_pairs
from hf_cots.evaluation.diagnostics.inspect_token_level import inspect_token_level
from tests.support.cli import call, error_of, succeed
from tests.support.worlds import checkpoint, tiny_processor


@pytest.fixture(scope="module")
def trained(world):
    """A checkpoint whose masked words can be predicted from the image only."""
    folder = world.root / "run"
    overrides = {"contrast": "in_batch", "filter_lambda": None, "task_weight": 0.0, "masked_fraction": 0.5}
    settings = {"max_steps": 400, "learning_rate": 3e-3, "per_device_train_batch_size": 20, "logging_steps": 100}
    hf_cots.train.train(world.flags(folder, overrides, save_strategy="steps", save_steps=400, **settings))
    assert checkpoint(folder, 400)
    return folder / "checkpoint-400"


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder))


def test_a_trained_level_needs_the_other_modality(pairs, trained):
    model = COTSForPreTraining.from_pretrained(trained).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gains = inspect_token_level(model, tiny_processor(), pairs, batch_size=16)
    assert gains.keys() == {"mvm", "mlm"}
    # 5 to 20% by the number of threads, which rounds the sums of a short run differently; 0 for a level that is dead.
    assert gains["mlm"]["rise"] > 0.03 * gains["mlm"]["loss"], "the image shows the masked color"
    for gain in gains.values():
        assert gain["rise"] == pytest.approx(gain["shuffled"] - gain["loss"])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_losses_equal_a_loop_over_pairs(pairs, trained):
    """Pair by pair, with the feature of the one before it in its batch of 16; 40 pairs are 16, 16 and 8."""
    model = COTSForPreTraining.from_pretrained(trained).eval()
    collate = COTSCollator(tiny_processor(), model.config)
    collate.mask_settings |= {"masked_fraction": 1.0}
    sums = torch.zeros(2, 2)
    with torch.no_grad():
        for i in range(40):
            start = i - i % 16
            previous = start + (i - start - 1) % min(16, 40 - start)
            # Texts are padded to the longest of their batch, which changes nothing but rounding.
            own, other = collate([pairs[i]]), collate([pairs[previous]])
            image = model.cots.encode_image(other["pixel_values"]).pooler_output
            text = model.cots.encode_text(other["input_ids"], other["attention_mask"]).pooler_output
            for column, features in enumerate((None, {"image_features": image, "text_features": text})):
                output = model(**own, features=features)
                sums[0, column] += output.loss_mvm * 0.5
                sums[1, column] += output.loss_mlm * 0.5
    gains = inspect_token_level(model, tiny_processor(), pairs, batch_size=16)
    for row, name in enumerate(("mvm", "mlm")):
        found = (gains[name]["loss"], gains[name]["shuffled"])
        assert found == pytest.approx((sums[row] / 40).tolist(), rel=1e-4)


def test_a_head_that_ignores_the_other_modality_gains_nothing(pairs, trained):
    model = COTSForPreTraining.from_pretrained(trained)
    for head in (model.mvm_head, model.mlm_head):
        torch.nn.init.zeros_(head.inject.weight)
    gains = inspect_token_level(model, tiny_processor(), pairs)
    assert all(gain["rise"] == pytest.approx(0, abs=1e-6) for gain in gains.values())


def test_only_levels_that_are_on_are_measured(pairs, trained):
    config = COTSForPreTraining.from_pretrained(trained).config
    config.mvm_weight = 0.0
    assert inspect_token_level(COTSForPreTraining(config), tiny_processor(), pairs).keys() == {"mlm"}
    config.mlm_weight = 0.0
    with pytest.raises(ValueError, match="no token level"):
        inspect_token_level(COTSForPreTraining(config), tiny_processor(), pairs)


def test_the_command(world, trained):
    result = succeed("inspect-token-level", trained, world.imagefolder, "--split", "train")
    assert "mlm:" in result.stdout
    assert "%" in result.stdout
    assert error_of(call("inspect-token-level", world.root / "nothing", world.imagefolder))
