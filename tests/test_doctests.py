"""Examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest


MODULES = [
    "hf_cots.data.augmentation",
    "hf_cots.data.collator",
    "hf_cots.data.sources",
    "hf_cots.models.masking",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they may write files
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed
