"""All model classes of the package, each with a tiny config and a batch, for what every model is expected to do."""

import copy
from typing import Any

import pytest
import torch

from hf_cots import (
    CookieForPreTraining,
    CookieModel,
    COTSForPreTraining,
    COTSModel,
    SimlaForPreTraining,
    SimlaModel,
)
from tests.support.tiny import tiny_batch, tiny_config
from tests.support.tiny_cookie import tiny_cookie_config
from tests.support.tiny_simla import tiny_simla_config


ENCODERS = [COTSModel, CookieModel, SimlaModel]
PRETRAINING = [COTSForPreTraining, CookieForPreTraining, SimlaForPreTraining]
ALL = pytest.mark.parametrize("cls", ENCODERS + PRETRAINING)
ALL_ENCODERS = pytest.mark.parametrize("cls", ENCODERS)
ALL_PRETRAINING = pytest.mark.parametrize("cls", PRETRAINING)
CONFIGS = {"cots": tiny_config, "cookie": tiny_cookie_config, "simla": tiny_simla_config}


def config_of(cls: type, **fields: Any) -> Any:
    """A tiny config of the class: 32 pixels, 200 words, two layers a stream, no dropout in the text."""
    return CONFIGS[cls.config_class.model_type](**fields)


def make(cls: type, **fields: Any) -> Any:
    """The same random model each time, in evaluation mode."""
    torch.manual_seed(0)
    return cls(config_of(cls, **fields)).eval()


def make_loud(cls: type, **fields: Any) -> Any:
    """[`make`] with weights large enough that inputs and layers matter."""
    model = make(cls, **fields)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("temperature"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


def batch_of(cls: type, pairs: int = 8, length: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the class's forward takes: pairs, for COOKIE's pre-training in two views."""
    batch = tiny_batch(pairs, length, seed)
    if cls is CookieForPreTraining:
        views = {f"view_{name}": copy.copy(rows) for name, rows in tiny_batch(pairs, length, seed + 1).items()}
        batch |= views
    return batch


def encoder_of(model: Any) -> Any:
    """The encoder inside a model for pre-training, or the model itself."""
    return model if type(model) in ENCODERS else model.encoder


def prefix_of(cls: type) -> str:
    """What stands before an encoder's parameter names in a model of this class."""
    return "" if cls in ENCODERS else f"{cls.base_model_prefix}."


def flat(output: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors of an output, however deep, by name."""
    pairs = output.items() if hasattr(output, "items") else enumerate(output)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in pairs:
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value
        elif value is not None:
            tensors |= flat(value, f"{prefix}{name}.")
    return tensors


def assert_equal(ours: Any, theirs: Any) -> None:
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
