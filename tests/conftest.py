"""Tests run on one core, without a network and with the tests' own random state."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = os.environ.get("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

from tests.support.worlds import World


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same seed, so that it gives the same result alone and in company."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """One world of coloured shapes for all tests, which only read it: a test that writes makes its own."""
    return World(tmp_path_factory.mktemp("world"))
