"""Shared code of the programs `hf_cots.train` and `hf_cots.train_dvae`."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._errors import check_output_folder, note_on_interrupt, one_line_errors
from .checkpoints import last_checkpoint


def run_program(function: Callable[..., Any], *args: Any) -> None:
    """Set up logging and call `function` inside [`one_line_errors`]."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        with one_line_errors():
            function(*args)
    except BrokenPipeError:  # nobody reads the output any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextmanager
def guarded_output(output_dir: str) -> Iterator[None]:
    """Check first that `output_dir` can be written; if the work inside is stopped with Ctrl-C, report what has been
    saved.

    Raises:
        OSError: naming the folder.
    """
    check_output_folder(output_dir)
    with note_on_interrupt(lambda: describe_checkpoints(output_dir)):
        yield


def describe_checkpoints(output_dir: str) -> str:
    """Describe where a stopped run can be resumed."""
    found = last_checkpoint(output_dir)
    if found is None:
        return f"no checkpoint is complete in {output_dir}; --save_steps says how often one is written"
    return f"the last complete checkpoint is {found}: go on with --resume_from_checkpoint {found}"
