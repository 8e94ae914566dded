"""The panel "Search"."""

from pathlib import Path
from typing import Annotated

import typer

from .app import app, note_skipped
from .options import Encoder, Revision, Token


@app.command(rich_help_panel="Search")
def search(
    model: Encoder,
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched with its sub-folders.")],
    text: Annotated[str, typer.Argument(help="Text to search for.")],
    k: Annotated[int, typer.Option("-k", "--k", help="How many images to print.")] = 10,
    rerank: Annotated[str | None, typer.Option(help="SIMLA model that re-ranks the best 64 images.")] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Print the image files that match a text best, with their scores."""
    from ..search.index import ImageIndex
    from ..search.reranked import RerankedIndex

    index = ImageIndex.from_folder(model, folder, progress=True, revision=revision)
    matches = (RerankedIndex.from_index(index, rerank) if rerank else index).search(text, k)
    note_skipped(index.broken)
    for match in matches:
        typer.echo(f"{match.score:.4f}  {match.path}")
