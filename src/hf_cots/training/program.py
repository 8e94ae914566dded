"""What the programs `hf_cots.train` and `hf_cots.train_dvae` share."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments


# Errors that the user can fix: a message is enough.
USER_ERRORS = (OSError, ModuleNotFoundError, ValueError)


def run_program(function: Callable[..., Any], *args: Any) -> None:
    """Call `function` with logging set up; an error that the user can fix ends the program with one line on stderr and
    exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        function(*args)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


def take_push_to_hub(training: TrainingArguments) -> bool:
    """Whether to upload the model at the end. The flag is turned off, because Trainer would upload the checkpoints."""
    push, training.push_to_hub = training.push_to_hub, False
    return push
