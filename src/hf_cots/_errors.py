"""The errors that a user can fix, and how every command reports them."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


# What the library raises for wrong names, files, settings and missing packages. All else is a fault of ours.
USER_ERRORS = (OSError, ValueError, ModuleNotFoundError)


def print_note(text: str, style: str) -> None:
    """Print one line on stderr, in a color where there are colors."""
    Console(stderr=True).print(text, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error of [`USER_ERRORS`] into one line on stderr and exit code 2; others keep their traceback.

    Raises:
        SystemExit: with the line as its message.
    """
    try:
        yield
    except BrokenPipeError:  # `hf-cots ... | head`, which is no error
        raise
    except USER_ERRORS as error:
        stop = SystemExit(f"error: {error}")
        stop.code = 2
        print_note(str(stop), "red")
        raise stop from None
