"""Arguments and options that several verbs share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer


Encoder = Annotated[str, typer.Argument(help="Dual encoder: Hub id or folder.")]
Pairs = Annotated[str, typer.Argument(help="Image-text pairs: Hub id, folder, parquet, CSV, JSON lines or tars.")]
LabeledImages = Annotated[str, typer.Argument(help="Folder of class folders, or any data with a label column.")]

ImageColumn = Annotated[str, typer.Option(help="Column of images or of paths to them.")]
CaptionColumn = Annotated[
    str,
    typer.Option(
        help="Column of texts or of lists of texts; by default the one named caption, captions, text or txt."
    ),
]
LabelColumn = Annotated[str, typer.Option(help="Column of labels.")]
Separator = Annotated[
    str | None, typer.Option(help="Separator of CSV files (a character, or tab); by default that of the header.")
]
Split = Annotated[str, typer.Option(help="Split of a Hub data set.")]

TopK = Annotated[int, typer.Option("-k", "--k", help="How many images to print.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a forward pass.")]
ResultsFile = Annotated[Path | None, typer.Option(help="JSON file for the results.")]
