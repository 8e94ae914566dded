"""Sharded parameters (FSDP2 through accelerate) give what whole ones give, and what is saved is whole."""

import json

import pytest
import torch
from transformers import AutoModel

import hf_cots.train
from tests.support.paths import SCRIPTS
from tests.support.processes import torchrun
from tests.support.recording import RecordingTrainer
from tests.support.runs import assert_near, assert_same_weights
from tests.support.worlds import checkpoint, log_history


STEPS = 4
FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        # By default accelerate would wrap the embeddings too, and then once more.
        "transformer_layer_cls_to_wrap": ["ViTLayer", "BertLayer"],
    },
    "ddp_backend": "gloo",
}


def flags(world, name, size, contrast="momentum", **settings):
    """SGD unless said, because Adam would turn the rounding of gradients that are all but zero into steps."""
    settings = {"optim": "sgd", "learning_rate": 0.01} | settings
    settings |= {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2}
    settings |= {"per_device_train_batch_size": size, "eval_data": world.imagefolder}
    settings |= {"eval_strategy": "steps", "eval_steps": 2}
    overrides = {"learn_temperature": True, "queue_size": 20, "center_keys": False, "contrast": contrast}
    return world.flags(world.root / name, overrides, **settings)


@pytest.fixture(scope="module")
def errors(world):
    """The same run whole and sharded over two ranks; sharded, and resumed; what the ranks printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_cots.train, "COTSTrainer", RecordingTrainer)
        hf_cots.train.train(flags(world, "whole", 8))
        hf_cots.train.train(flags(world, "batch", 8, "in_batch"))
    adam = FSDP | {"optim": "adamw_torch", "learning_rate": 1e-3}
    cached = {"gradient_cache": True, "gradient_accumulation_steps": 2} | FSDP
    starts = [
        flags(world, "cached", 2, "in_batch", **cached),
        flags(world, "sharded", 4, **FSDP),
        flags(world, "adam", 4, **adam),
        [*flags(world, "resumed", 4, **adam), "--resume_from_checkpoint", str(world.root / "adam" / "checkpoint-2")],
    ]
    return torchrun(2, str(SCRIPTS / "sharded.py"), *map(json.dumps, starts))


def test_sharded_parameters_give_the_state_of_whole_ones(world, errors):
    folder = world.root / "sharded" / f"checkpoint-{STEPS}"
    assert (folder / "complete.json").is_file(), errors[-4000:]
    whole, sharded = checkpoint(world.root / "whole", STEPS), checkpoint(world.root / "sharded", STEPS)
    assert whole.keys() == sharded.keys()
    assert all(whole[name].shape == sharded[name].shape for name in whole)
    prefixes = ("cots.", "momentum_encoder.", "mvm_", "mlm_", "key_queue.image_keys", "key_queue.text_keys")
    assert_near(sharded, whole, prefixes, 1e-5)
    assert torch.equal(whole["key_queue.image_ids"], sharded["key_queue.image_ids"])
    assert int(sharded["steps_seen"]) == STEPS
    # The filter's scores are sums of 16 products of float32.
    torch.testing.assert_close(sharded["score_queue.scores"], whole["score_queue.scores"], rtol=1e-4, atol=1e-5)


def test_sharded_parameters_with_cached_gradients_give_those_of_one_batch(world, errors):
    assert (world.root / "cached" / f"checkpoint-{STEPS}" / "complete.json").is_file(), errors[-4000:]
    whole, cached = checkpoint(world.root / "batch", STEPS), checkpoint(world.root / "cached", STEPS)
    assert_near(cached, whole, ("cots.", "mvm_", "mlm_"), 1e-5)
    assert whole["cots.log_temperature"] != checkpoint(world.root / "batch", 2)["cots.log_temperature"]


def test_every_rank_holds_the_same_queues(world, errors):
    hashes = [(world.root / "sharded" / f"hashes-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    assert len(hashes[0]) == STEPS
    assert hashes[0] == hashes[1]


def test_a_sharded_run_resumes(world, errors):
    assert (world.root / "resumed" / f"checkpoint-{STEPS}" / "complete.json").is_file(), errors[-4000:]
    adam, resumed = (checkpoint(world.root / name, STEPS) for name in ("adam", "resumed"))
    assert_same_weights(resumed, adam)


def test_a_sharded_run_evaluates_and_leaves_a_whole_model(world, errors):
    lines = [
        [line for line in log_history(world.root / name, STEPS) if "eval_text_to_image_R@1" in line]
        for name in ("whole", "sharded")
    ]
    assert [line["step"] for line in lines[1]] == [2, 4], errors[-4000:]
    models = [AutoModel.from_pretrained(world.root / name / "model") for name in ("whole", "sharded")]
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
    trained = checkpoint(world.root / "sharded", STEPS)
    assert torch.equal(models[1].text_projection.weight, trained["cots.text_projection.weight"])
