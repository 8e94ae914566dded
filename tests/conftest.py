"""Tests run on one core, without a network and with the tests' own random state, and fail at deprecated calls."""

import logging
import os
import shutil
import tempfile
import warnings


os.environ["HF_COTS_CACHE"] = tempfile.mkdtemp(prefix="hf_cots-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = os.environ.get("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

from tests.support.worlds import World


torch.set_num_threads(1)


class DeprecationHandler(logging.Handler):
    """Warns of what a library logs about deprecated calls, for `filterwarnings` in pyproject.toml to decide on."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in (message := record.getMessage()).lower():
            warnings.warn_explicit(message, FutureWarning, record.pathname, record.lineno, record.name)


quiet = logging.getLogger("transformers")  # by the variable above: its warnings are made, but still not printed
for handler in quiet.handlers:
    handler.setLevel(quiet.level)
quiet.setLevel(min(quiet.level, logging.WARNING))
quiet.propagate = False  # in CI transformers would hand them to pytest, too
for name in ("transformers", "huggingface_hub", "datasets"):
    logging.getLogger(name).addHandler(DeprecationHandler())


@pytest.fixture(scope="session", autouse=True)
def _remove_cache():
    yield
    shutil.rmtree(os.environ["HF_COTS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same seed, so that it gives the same result alone and in company."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A world of colored shapes: one for each file of tests, which may also write their runs below its `root`."""
    return World(tmp_path_factory.mktemp("world"))
