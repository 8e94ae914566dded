"""What the programs `hf_cots.train` and `hf_cots.train_dvae` share."""

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments

from .._errors import one_line_errors


def run_program(function: Callable[..., Any], *args: Any) -> None:
    """Call `function` with logging set up, within [`one_line_errors`]."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with one_line_errors():
        function(*args)


def take_push_to_hub(training: TrainingArguments) -> bool:
    """Whether to upload the model at the end. The flag is turned off, because Trainer would upload the checkpoints."""
    push, training.push_to_hub = training.push_to_hub, False
    return push
