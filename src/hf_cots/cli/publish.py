"""The verb `hf-cots publish`."""

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .options import Token


@app.command(rich_help_panel="Train")
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, such as runs/mine/model.")],
    name: Annotated[str, typer.Argument(help="Repository on the Hub, as org/name; made if it does not exist.")],
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Upload nothing.")] = False,
    token: Token = None,
) -> None:
    """Upload a model with its card, recipe and results, after checking that it loads without this package."""
    from .._errors import print_note
    from ..training.check_folder import check_folder
    from ..training.publish import publish

    if check_only:
        for note in check_folder(folder):
            print_note(note, "yellow")
        typer.echo(f"{folder} may be published: it gives the same numbers with this package and without it")
        return
    typer.echo(publish(folder, name, private, token))
