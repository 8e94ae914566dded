"""Deprecated calls fail tests, wherever a library says that they are."""

import warnings

import pytest
from transformers.utils import logging


def test_what_a_library_warns_of_is_an_error():
    """Of itself, as most do: not of the line of ours that has called it."""
    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        with pytest.raises(kind):
            warnings.warn_explicit("this call is deprecated", kind, "generic.py", 1, "transformers.utils.generic")


def test_what_transformers_logs_is_an_error():
    logger = logging.get_logger("transformers.configuration_utils")
    with pytest.raises(FutureWarning, match="torch_dtype"):
        logger.warning_once("`torch_dtype` is deprecated! Use `dtype` instead!")
    logger.warning("another warning")
