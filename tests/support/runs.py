"""Building, loading and comparing models and training runs."""

from pathlib import Path

import torch

from hf_cots.train import build_trainer
from hf_cots.training.arguments import parse_arguments
from hf_cots.training.build_model import build_model, build_tokenizer
from tests.support.worlds import World, checkpoint


def make_trainer(flags: list[str]):
    """The trainer that `hf_cots.train` would make."""
    return build_trainer(*parse_arguments(flags))


def make_model(flags: list[str]):
    """The model that `hf_cots.train` would train."""
    arguments, _, _ = parse_arguments(flags)
    return build_model(arguments, build_tokenizer(arguments))


def load_exactly(cls, folder: Path):
    """The model of a folder, whose file must hold each weight of it and none beside."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"], "a clean load must not warn"
    return model


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """The same names and, bit for bit, the same values."""
    assert one.keys() == other.keys()
    assert not [name for name in other if not torch.equal(one[name], other[name])]


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], prefixes, tolerance: float) -> None:
    """All that has a prefix, taken as one vector, differs by a fraction of its length at most."""
    for prefix in prefixes:
        ours, theirs = (
            torch.cat([s[name].flatten() for name in one if name.startswith(prefix)]) for s in (one, other)
        )
        assert (ours - theirs).norm() < tolerance * theirs.norm(), prefix


def assert_same_checkpoints(one: Path, other: Path, step: int) -> None:
    """Weights, buffers, optimizer and schedule of two runs after `step` are bit for bit the same."""
    assert_same_weights(checkpoint(one, step), checkpoint(other, step))
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(run / f"checkpoint-{step}" / name, weights_only=True) for run in (one, other)]
        torch.testing.assert_close(*states, rtol=0, atol=0)


def simla_flags(world: World, output_dir: Path, overrides: dict | None = None, **settings) -> list[str]:
    """[`World.flags`] of a SIMLA with all five terms."""
    fields = {"projection_dim": 16, "queue_size": 24, "momentum": 0.9, "num_masked_patches": 5}
    fields |= {"min_block_patches": 2, "distillation_warmup_steps": 2} | (overrides or {})
    return world.flags(output_dir, **({"architecture": "simla", "config_overrides": fields} | settings))


def cookie_flags(world: World, output_dir: Path, overrides: dict | None = None, **settings) -> list[str]:
    """[`World.flags`] of a COOKIE with all three contrasts."""
    fields = {"projection_dim": 16, "num_shared_heads": 2, "shared_intermediate_size": 32, "learn_temperature": True}
    defaults = {"architecture": "cookie", "image_tokenizer": None, "config_overrides": fields | (overrides or {})}
    return world.flags(output_dir, **(defaults | settings))
