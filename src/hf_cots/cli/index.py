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
    to: Annotated[
        str, typer.Option(help="Folder of the index, or http://host:19530/name in Milvus; made or updated.")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the vectors: float32 (the default), float16 or int8.")
    ] = None,
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
    from ..search.milvus import is_milvus

    options = SourceOptions(image_column, split, separator)
    saved = f"all but the last batch is in {to}: the same command goes on"
    with note_on_interrupt(lambda: saved if is_milvus(to) or Path(to).is_dir() else "nothing was saved"):
        built = ImageIndex.build(
            model, source, to, dtype=dtype, options=options, batch_size=batch_size, progress=True, revision=revision
        )
    note_skipped(built.summary.broken)
    error = float(built.meta.get("error", 0))
    if error:
        print_note(f"{built.meta['dtype']} changes scores by at most {error:.2g}", "dim")
    if as_json:
        typer.echo(json.dumps(built.summary.counts()))
    else:
        typer.echo(f"{len(built)} images in {to}: {built.summary}")
