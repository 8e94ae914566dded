"""The Typer application: error reporting and notes. The commands are in the other files of this folder."""

import json
import logging
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .._errors import one_line_errors, print_note


if find_spec("torch") is None:  # exported models do without: transformers need not say so at each start
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


class NoteHandler(logging.Handler):
    """Print log records on stderr, warnings in yellow and others dimmed, unless their library has its own handler."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger(record.name.partition(".")[0]).handlers:
            return
        loud = record.levelno >= logging.WARNING
        print_note(f"{'warning: ' if loud else ''}{record.getMessage()}", "yellow" if loud else "dim")


def show_log() -> None:
    """Print the package's log records, unless the root logger already has a handler."""
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(NoteHandler())
        logging.getLogger("hf_cots").setLevel(logging.INFO)


class OneLineErrors(TyperGroup):
    """A command group that runs every verb inside [`one_line_errors`]."""

    def invoke(self, ctx: Any) -> Any:
        show_log()
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image-text retrieval models: training, evaluation and search.",
)
console = Console()


def note_skipped(images: Iterable[Any]) -> None:
    """Print on stderr which images or clips could not be read, and why."""
    for image in images:
        print_note(f"skipping unreadable {image}", "yellow")


def write_json(report: dict[str, Any], output: Path) -> None:
    """Write a report as readable JSON."""
    output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
