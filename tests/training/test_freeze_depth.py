"""--freeze vision:1: the embeddings and first layers of a tower are not trained, and nothing is computed for them."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, GPT2Config, ViTConfig

from hf_cots.models.tower_layers import freeze_layers, frozen_modules
from hf_cots.models.towers import build_tower
from hf_cots.train import train
from hf_cots.training.build_model import parse_freeze
from tests.support import runs
from tests.support.runs import make_model, make_trainer
from tests.support.steps import assert_close
from tests.support.tiny import NO_DROPOUT, SIZES, WORDS
from tests.support.worlds import checkpoint


# By hand: what depth 1 freezes of the world's two layers a tower.
FROZEN = {
    "vision:1": ("cots.vision_model.embeddings.", "cots.vision_model.layers.0."),
    "text:1": ("cots.text_model.embeddings.", "cots.text_model.encoder.layer.0."),
    "text": ("cots.text_model.",),
}
NO_TOKENS = {"mvm_weight": 0, "mlm_weight": 0}


def is_frozen(name: str, freeze: tuple[str, ...]) -> bool:
    return name.startswith(tuple(prefix for one in freeze for prefix in FROZEN[one]))


@pytest.mark.parametrize("freeze", [("vision:1",), ("text:1",), ("vision:1", "text")], ids=", ".join)
def test_what_is_named_stays_and_the_rest_learns(world, tmp_path, freeze):
    trainer = make_trainer(world.flags(tmp_path, freeze=list(freeze), max_steps=2, dropout=0.1))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if name.startswith("cots."):
            assert parameter.requires_grad != is_frozen(name, freeze), name
            changed = not torch.equal(parameter, before[name])
            assert not (changed and is_frozen(name, freeze)), name
            if name.endswith(("projection.weight", "1.output.dense.weight", "fc2.weight")):
                assert changed != is_frozen(name, freeze), name
        if name.startswith("momentum_encoder.") and is_frozen(name.replace("momentum_encoder", "cots"), freeze):
            assert torch.equal(parameter, before[name]), name


def test_it_equals_a_run_whose_frozen_gradients_are_thrown_away(world, tmp_path):
    """Without dropout, against a run that computes all gradients and sets those of the frozen parameters to None."""
    flags = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0}
    frozen = make_trainer(world.flags(tmp_path / "a", freeze=["vision:1", "text:1"], **flags))
    slow = make_trainer(world.flags(tmp_path / "b", **flags))
    for name, parameter in slow.model.named_parameters():
        if is_frozen(name, ("vision:1", "text:1")):
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    frozen.train()
    slow.train()
    assert_close(frozen.model.state_dict(), slow.model.state_dict(), rtol=1e-5, atol=1e-6)


def test_no_graph_is_built_below_and_dropout_is_off_there(world, tmp_path):
    model = make_model(
        world.flags(tmp_path, NO_TOKENS, freeze=["vision:1", "text:1"], image_tokenizer=None, dropout=0.1)
    )
    model.train()
    seen = {}

    def watch(key):
        def note(module, inputs, output):
            seen[key] = (output[0] if isinstance(output, tuple) else output).requires_grad

        return note

    for tower in (model.cots.vision_model, model.cots.text_model):
        for name, module in tower.named_modules():
            if name in ("embeddings", "layers.0", "layers.1", "encoder.layer.0", "encoder.layer.1"):
                module.register_forward_hook(watch((type(tower).__name__, name)))
    model.cots.encode_image(torch.randn(2, 3, 32, 32))
    model.cots.encode_text(torch.randint(5, 20, (2, 6)))
    assert {name for (_, name), has_graph in seen.items() if has_graph} == {"layers.1", "encoder.layer.1"}
    assert len(seen) == 6
    dropping = {n for n, m in model.cots.named_modules() if isinstance(m, nn.Dropout) and m.training}
    assert dropping
    assert all(".1." in name for name in dropping), dropping
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_library_user_freezes_layers_of_any_tower():
    text = build_tower(GPT2Config(vocab_size=60, n_positions=40, n_embd=32, n_layer=3, n_head=2))
    freeze_layers(text, 2)
    trained = {name for name, parameter in text.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in dict(text.named_parameters()) if name.startswith(("h.2.", "ln_f."))}
    assert [type(module).__name__ for module in frozen_modules(text)] == ["GPT2Block"] * 2 + ["Embedding"] * 2 + [
        "Dropout"
    ]
    bert = build_tower(BertConfig(**WORDS, **SIZES, **NO_DROPOUT), add_pooling_layer=False)
    freeze_layers(bert, 2)  # BERT has nothing behind its last layer
    assert frozen_modules(bert) == [bert]
    vit = build_tower(ViTConfig(image_size=32, patch_size=8, **SIZES), add_pooling_layer=False)
    assert frozen_modules(vit) == []
    vit.embeddings.requires_grad_(False)
    assert frozen_modules(vit) == [], "with its first layer trained, a tower trains as before"


def test_adapters_below_are_frozen_too(world, tmp_path):
    pytest.importorskip("peft")
    settings = {"lora_rank": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "freeze": ["vision:1"]}
    trainer = make_trainer(world.flags(tmp_path / "whole", **settings))
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_" in n}
    assert not any("vision_model.layers.0." in name for name in trained)
    assert any("vision_model.layers.1." in name for name in trained)
    assert any("text_model.encoder.layer.0." in name for name in trained)
    trainer.train()
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    again = make_trainer(world.flags(tmp_path / "resumed", **settings))
    again.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    runs.assert_same_weights(again.model.state_dict(), state)


def test_a_resumed_run_equals_an_uninterrupted_one_and_another_depth_is_refused(world, tmp_path):
    settings = {"freeze": ["vision:1"], "dropout": 0.1, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(world.flags(tmp_path / "whole", **settings)).train()
    middle = tmp_path / "whole" / "checkpoint-2"
    make_trainer(world.flags(tmp_path / "resumed", **settings)).train(resume_from_checkpoint=middle)
    runs.assert_same_checkpoints(tmp_path / "resumed", tmp_path / "whole", 4)
    assert not torch.equal(*(checkpoint(tmp_path / "whole", n)["cots.visual_projection.weight"] for n in (2, 4)))
    for other in (["vision:2"], ["vision"], None):
        trainer = make_trainer(world.flags(tmp_path / "other", **settings | {"freeze": other}))
        with pytest.raises(ValueError, match="--freeze must be as it was"):
            trainer.train(resume_from_checkpoint=middle)


@pytest.mark.parametrize("flags", [runs.simla_flags, runs.cookie_flags], ids=["simla", "cookie"])
def test_the_other_models_freeze_by_depth(world, tmp_path, flags):
    train(flags(world, tmp_path, freeze=["vision:1"], max_steps=1, save_strategy="steps", save_steps=1))
    start = make_model(flags(world, tmp_path)).state_dict()
    after = checkpoint(tmp_path, 1)
    online = {name for name in after if ".vision_model." in name and "momentum" not in name}
    moved = {name for name in online if not torch.equal(after[name], start[name])}
    assert moved
    assert all(".layers.1." in name or ".layernorm." in name for name in moved), moved


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["vision:3"], "--freeze vision:3: ViTModel has 2 layers: freeze 1 to 2 of them, not 3"),
        (["text:0"], "--freeze text:0: BertModel has 2 layers"),
        (["vision:x"], "--freeze takes vision and text.*got 'vision:x'"),
        (["vision:"], "got 'vision:'"),
        (["image:1"], "got 'image:1'"),
        (["vision:1", "vision"], "names vision twice"),
    ],
)
def test_depths_that_are_none_are_refused(world, tmp_path, freeze, message):
    with pytest.raises(ValueError, match=message):
        make_model(world.flags(tmp_path, freeze=freeze))


def test_a_tower_named_twice_alike_is_named_once():
    assert parse_freeze(["text", "text", "vision:8"]) == {"text": None, "vision": 8}
