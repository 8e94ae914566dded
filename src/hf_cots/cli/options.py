"""Arguments and options shared by several verbs."""

import os
from pathlib import Path
from typing import Annotated

import typer


def use_token(context: typer.Context, token: str | None) -> None:
    """Use a Hub token for everything that this command loads: models, re-rankers and data sets."""
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

ImageColumn = Annotated[str, typer.Option(help="Column of images or image paths.")]
VideoColumn = Annotated[
    str | None,
    typer.Option(help="Column of clips or clip paths, to use clips instead of images; for a folder of clips: video."),
]
NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Frames to sample per clip; by default the model config's num_frames, or 8.")
]
CaptionColumn = Annotated[
    str,
    typer.Option(
        help="Column of captions (texts or lists of texts); by default the one named caption, captions, text or txt."
    ),
]
Separator = Annotated[
    str | None, typer.Option(help="Separator of CSV files (a character, or tab); detected from the header by default.")
]
Split = Annotated[str, typer.Option(help="Split of a Hub data set.")]

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")]
# The callback uses it; the verbs do not read it.
Token = Annotated[
    str | None,
    typer.Option(
        callback=use_token,
        help="Hub access token for private and gated repositories; by default the one saved by `hf auth login`.",
    ),
]

Precision = Annotated[
    str, typer.Option(help="Precision of the model: float32, bfloat16, or auto (bfloat16 if the GPU supports it).")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size for encoding images.")]
ResultsFile = Annotated[Path | None, typer.Option(help="JSON file for the results.")]
