"""The index of the panel "Search"."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .._errors import note_on_interrupt, print_note
from .app import app, note_skipped
from .options import BatchSize, Encoder, ImageColumn, Revision, Separator, Split, Token


@app.command(rich_help_panel="Search")
def index(
    model: Encoder,
    source: Annotated[str, typer.Argument(help="Folder of images, or any data set: Hub id, parquet, CSV, tars, ...")],
    to: Annotated[Path, typer.Option(help="Folder of the index; made, or brought up to date.")],
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the vectors: float32 (the default), float16 or int8.")
    ] = None,
    approximate: Annotated[
        bool | None, typer.Option(help="Search approximately from now on, for 200,000 images and more; or no longer.")
    ] = None,
    recall: Annotated[float, typer.Option(help="Recall that an approximate search must have, as measured.")] = 0.99,
    image_column: ImageColumn = "image",
    split: Split = "train",
    separator: Separator = None,
    batch_size: BatchSize = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Make an index of images on disk, or bring it up to date: only contents that are new are encoded."""
    from ..search.gallery import SourceOptions
    from ..search.index import ImageIndex

    options = SourceOptions(image_column, split, separator)
    saved = f"all but the last batch is in {to}: the same command goes on"
    with note_on_interrupt(lambda: saved if to.is_dir() else "nothing was saved"):
        built = ImageIndex.build(
            model,
            source,
            to,
            dtype=dtype,
            options=options,
            batch_size=batch_size,
            progress=True,
            revision=revision,
            approximate=approximate,
            recall=recall,
        )
    note_skipped(built.summary.broken)
    error = float(built.store.meta.get("error", 0))
    if error:
        print_note(f"{built.store.dtype} changes scores by at most {error:.2g}", "dim")
    measured = built.approximation()
    if measured is not None:
        print_note(str(measured), "dim")
    if as_json:
        about = {} if measured is None else {"approximate": measured.measured()}
        typer.echo(json.dumps(built.summary.counts() | about))
    else:
        typer.echo(f"{len(built)} images in {to}: {built.summary}")
