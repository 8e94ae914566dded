"""The verb `hf-cots publish`."""

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .options import Token


@app.command(rich_help_panel="Train")
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, such as runs/mine/model.")],
    name: Annotated[str, typer.Argument(help="Hub repository, as org/name; created if it does not exist.")],
    private: Annotated[bool | None, typer.Option(help="Whether to create the repository as private.")] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Run the checks without uploading.")] = False,
    token: Token = None,
) -> None:
    """Upload a model with its card, recipe and results, after checking that it loads without this package."""
    from .._errors import print_note
    from ..training.check_folder import check_folder
    from ..training.publish import publish

    if check_only:
        for note in check_folder(folder):
            print_note(note, "yellow")
        typer.echo(f"{folder} is ready to publish: its outputs are the same with and without this package installed")
        return
    typer.echo(publish(folder, name, private, token))
