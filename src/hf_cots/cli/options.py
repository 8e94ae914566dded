"""Arguments and options that several verbs share, each declared once."""

import os
from pathlib import Path
from typing import Annotated

import typer


def use_token(context: typer.Context, token: str | None) -> None:
    """Let this command read the Hub with a token: models, re-rankers and data sets alike."""
    if token is None:
        return
    before = os.environ.get("HF_TOKEN")
    os.environ["HF_TOKEN"] = token

    def restore() -> None:
        os.environ.pop("HF_TOKEN", None)
        if before is not None:
            os.environ["HF_TOKEN"] = before

    context.call_on_close(restore)


Encoder = Annotated[str, typer.Argument(help="Dual encoder: Hub id or folder.")]
Pairs = Annotated[str, typer.Argument(help="Image-text pairs: Hub id, folder, parquet, CSV, JSON lines or tars.")]
LabeledImages = Annotated[str, typer.Argument(help="Folder of class folders, or any data with a label column.")]

ImageColumn = Annotated[str, typer.Option(help="Column of images or of paths to them.")]
VideoColumn = Annotated[
    str | None,
    typer.Option(help="Column of clips or of paths to them, in place of images; of a folder of clips, video."),
]
NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Frames of a clip; by default as many as the model's config says, or 8.")
]
CaptionColumn = Annotated[
    str,
    typer.Option(
        help="Column of texts or of lists of texts; by default the one named caption, captions, text or txt."
    ),
]
Separator = Annotated[
    str | None, typer.Option(help="Separator of CSV files (a character, or tab); by default that of the header.")
]
Split = Annotated[str, typer.Option(help="Split of a Hub data set.")]

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")]
# What takes it is its callback; the verbs need not look at it.
Token = Annotated[
    str | None,
    typer.Option(
        callback=use_token,
        help="Access token of the Hub, for private and gated repositories; by default that of `hf auth login`.",
    ),
]

Precision = Annotated[str, typer.Option(help="Precision to encode in: float32, bfloat16, or auto (by the GPU).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a forward pass.")]
ResultsFile = Annotated[Path | None, typer.Option(help="JSON file for the results.")]
