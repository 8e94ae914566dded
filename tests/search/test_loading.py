"""Loading: the default device, and models that are incomplete or of another kind."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cots import COTSConfig, COTSForPreTraining, COTSModel
from hf_cots.search.index import ImageIndex
from hf_cots.search.loading import default_device, load_encoder, load_for_pretraining, load_reranker
from tests.support.worlds import tiny_processor


@pytest.fixture(scope="module")
def checkpoint(world):
    """A training checkpoint without token levels."""
    folder = world.root / "for-pretraining"
    fields = COTSModel.from_pretrained(world.model).config.to_dict()
    off = {"mvm_weight": 0.0, "mlm_weight": 0.0, "task_weight": 0.0, "queue_size": 8}
    COTSForPreTraining(COTSConfig(**fields | off)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def without(folder, name, target):
    """A copy of a model without one of its weights."""
    COTSModel.from_pretrained(folder).save_pretrained(target)
    tiny_processor().save_pretrained(target)
    weights = load_file(target / "model.safetensors")
    del weights[name]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def test_everything_is_loaded_onto_the_default_device(world, checkpoint):
    expected = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator().type
    assert default_device().type == expected
    assert load_encoder(str(world.model)).model.device.type == expected
    assert ImageIndex.from_folder(str(world.model), world.imagefolder).encoder.model.device.type == expected
    assert load_for_pretraining(str(checkpoint))[0].device.type == expected


def test_a_checkpoint_is_loaded_with_its_queues(checkpoint):
    model, _ = load_for_pretraining(str(checkpoint), "cpu")
    assert not model.training
    stored = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in stored.items())


def test_an_index_with_an_incomplete_model_is_refused(world, tmp_path):
    model = without(world.model, "text_projection.weight", tmp_path)
    with pytest.raises(
        ValueError, match=r"COTSModel needs weights that are missing from the file: text_projection\.weight"
    ):
        ImageIndex.from_folder(model, world.imagefolder)


def test_a_model_to_deploy_is_no_checkpoint(tmp_path, world):
    config = COTSModel.from_pretrained(world.model).config
    off = {"mvm_weight": 0.0, "task_weight": 0.0, "mask_token_id": 4, "special_token_ids": list(range(5))}
    COTSModel(COTSConfig(**config.to_dict() | off)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing from the file: key_queue.*Name a checkpoint of its pre-training"):
        load_for_pretraining(str(tmp_path))


def test_models_of_another_kind_are_refused(world):
    with pytest.raises(ValueError, match="has model_type 'cots' and cannot re-rank: use a SIMLA model"):
        load_reranker(str(world.model))
    with pytest.raises(
        ValueError, match="has model_type 'cots_image_tokenizer': use a checkpoint of COTS, COOKIE or SIMLA"
    ):
        load_for_pretraining(str(world.image_tokenizer))
