"""--layer_decay against rates that are written down by hand, parameter by parameter."""

import re

import pytest
import torch
from transformers import AlbertConfig, BeitConfig, DebertaV2Config, GPT2Config, MPNetConfig, SwinConfig, T5Config

from hf_cots.models.tower_layers import find_layers, parameter_depths
from hf_cots.models.towers import build_tower
from tests.support import runs
from tests.support.runs import make_trainer
from tests.support.tiny import SIZES


RATE, DECAY = 1e-3, 0.5
# By hand: of the world's two layers a tower, first match counts.
FACTORS = (
    (r"(vision|text)_model\.embeddings\.", 0.125),
    (r"(vision|text)_model\.(encoder\.layer|layers|encoder\.layers)\.0\.", 0.25),
    (r"(vision|text)_model\.(encoder\.layer|layers|encoder\.layers)\.1\.", 0.5),
    (r"vision_model\.layernorm\.", 1.0),
    (r"_model\.", None),
    (r"", 1.0),
)


def factor(name: str) -> float:
    found = next(value for pattern, value in FACTORS if re.search(pattern, name))
    assert found is not None, f"{name} is not in the list"
    return found


def rates_by_name(trainer) -> dict[str, tuple[float, float]]:
    trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
    groups = trainer.optimizer.param_groups
    found = {names.pop(id(p)): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert not names, "every trained parameter is in a group"
    return found


@pytest.mark.parametrize("own", [{}, {"text_learning_rate": 1e-5, "vision_learning_rate": 3e-5}], ids=["one", "own"])
def test_rates_are_those_written_down_by_hand(world, tmp_path, own):
    settings = {"layer_decay": DECAY, "weight_decay": 0.1, "overrides": {"learn_temperature": True}} | own
    trainer = make_trainer(world.flags(tmp_path, settings.pop("overrides"), **settings))
    rates = rates_by_name(trainer)
    for name, (rate, weight_decay) in rates.items():
        tower = re.search(r"(vision|text)_model\.", name)
        base = own.get(f"{tower[1]}_learning_rate", RATE) if tower else RATE
        assert rate == pytest.approx(base * factor(name), rel=1e-12), name
        plain = name.endswith(("bias", "temperature")) or "norm" in name.lower()
        assert weight_decay == (0 if plain else 0.1), name
    assert trainer.optimizer.param_groups[0]["lr"] == RATE, "what the log shows as the learning rate"
    assert any("projection" in name for name in rates)


@pytest.mark.parametrize("flags", [runs.simla_flags, runs.cookie_flags], ids=["simla", "cookie"])
def test_the_other_models_have_layers_too(world, tmp_path, flags):
    rates = rates_by_name(make_trainer(flags(world, tmp_path, layer_decay=DECAY)))
    for tower in ("vision_model", "text_model"):
        found = {rate for name, (rate, _) in rates.items() if f".{tower}." in name}
        assert {RATE * DECAY**depth for depth in (1, 2, 3)} <= found
    new = {rate for name, (rate, _) in rates.items() if "_projection." in name or ".transformer." in name}
    assert new == {RATE}


def test_adapters_learn_at_the_rate_of_their_layer(world, tmp_path):
    pytest.importorskip("peft")
    rates = rates_by_name(make_trainer(world.flags(tmp_path, layer_decay=DECAY, lora_rank=2)))
    adapters = {name: rate for name, (rate, _) in rates.items() if "lora_" in name}
    assert {rate / RATE for rate in adapters.values()} == {0.25, 0.5}
    assert all(rate / RATE == factor(name) for name, rate in adapters.items())


TOWERS = {
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4),
    "beit": BeitConfig(image_size=32, patch_size=8, use_shared_relative_position_bias=True, **SIZES),
    "gpt2": GPT2Config(vocab_size=60, n_positions=40, n_embd=32, n_layer=3, n_head=2),
    "t5": T5Config(vocab_size=60, d_model=32, d_kv=16, d_ff=64, num_layers=3, num_heads=2),
    "mpnet": MPNetConfig(vocab_size=60, **SIZES),
    "deberta": DebertaV2Config(vocab_size=60, relative_attention=True, **SIZES),
}
PLACES = {
    "swin": (2, {"embeddings.patch_embeddings.projection.weight": 0, "layernorm.weight": 3}),
    "beit": (2, {"embeddings.cls_token": 0}),
    "gpt2": (3, {"wte.weight": 0, "wpe.weight": 0, "h.2.ln_1.weight": 3, "ln_f.weight": 4}),
    "t5": (3, {"encoder.block.0.layer.0.SelfAttention.q.weight": 1, "encoder.final_layer_norm.weight": 4}),
    "mpnet": (2, {"encoder.relative_attention_bias.weight": 0, "encoder.layer.1.output.dense.bias": 2}),
    "deberta": (2, {"encoder.rel_embeddings.weight": 0, "encoder.layer.0.output.dense.bias": 1}),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_layers_are_found_in_any_tower(kind):
    with torch.device("meta"):
        tower = build_tower(TOWERS[kind], add_pooling_layer=False)
    count, places = PLACES[kind]
    assert len(find_layers(tower)[1]) == count
    depths = parameter_depths(tower)
    assert set(depths.values()) >= set(range(count + 1))
    assert places.items() <= depths.items(), {name: depths.get(name) for name in places}


def test_what_cannot_take_effect_is_refused_by_name(world, tmp_path):
    trainer = make_trainer(world.flags(tmp_path, layer_decay=DECAY, freeze=["vision", "text"]))
    with pytest.raises(ValueError, match="--layer_decay would have no effect: both towers are frozen"):
        trainer.create_optimizer()
    with pytest.raises(ValueError, match="--layer_decay must be above 0 and at most 1, got 2"):
        make_trainer(world.flags(tmp_path, layer_decay=2))
    with torch.device("meta"):
        albert = build_tower(AlbertConfig(vocab_size=60, embedding_size=16, **SIZES), add_pooling_layer=False)
    with pytest.raises(ValueError, match="AlbertModel has no list of layers"):
        parameter_depths(albert)
    trainer = make_trainer(world.flags(tmp_path, layer_decay=DECAY))
    del trainer.model.encoder.text_model.encoder.layer[1]
    with pytest.raises(ValueError, match=r"--layer_decay: BertModel has no list .*--freeze text"):
        trainer.create_optimizer()


def test_the_log_tells_the_rates_of_each_tower(world, tmp_path, caplog):
    with caplog.at_level("INFO"):
        make_trainer(world.flags(tmp_path, layer_decay=DECAY, freeze="text")).create_optimizer()
    (line,) = (record.getMessage() for record in caplog.records if "learning rates from" in record.getMessage())
    assert line == "vision tower: learning rates from 0.000125 to 0.001 over 2 layers"


def test_a_resumed_run_keeps_its_decay_and_refuses_another(world, tmp_path):
    settings = {"layer_decay": DECAY, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dropout": 0.1}
    make_trainer(world.flags(tmp_path / "whole", **settings)).train()
    middle = tmp_path / "whole" / "checkpoint-2"
    make_trainer(world.flags(tmp_path / "resumed", **settings)).train(resume_from_checkpoint=middle)
    runs.assert_same_checkpoints(tmp_path / "resumed", tmp_path / "whole", 4)
    for other in (0.75, None):
        trainer = make_trainer(world.flags(tmp_path / "other", **settings | {"layer_decay": other}))
        with pytest.raises(ValueError, match=f"--layer_decay is {other} and was {DECAY}"):
            trainer.train(resume_from_checkpoint=middle)
