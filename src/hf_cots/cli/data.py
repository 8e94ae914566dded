"""The panel "Data": make data sets, and audit your own."""

from pathlib import Path
from typing import Annotated

import typer

from .._errors import check_output_folder
from .app import app
from .options import (
    CaptionColumn,
    Encoder,
    ImageColumn,
    NumFrames,
    Pairs,
    Revision,
    Separator,
    Split,
    Token,
    VideoColumn,
)


PANEL = "Data"


@app.command(rich_help_panel=PANEL)
def openclipart(
    output: Annotated[Path, typer.Argument(help="Output folder for train/, test/ and openclipart.json.")],
    deb: Annotated[
        Path | None,
        typer.Option(help="The .deb file, or the folder of its SVG files; by default it is downloaded with apt."),
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Image size in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed for choosing the held-out clusters.")] = 0,
) -> None:
    """Make the openclipart set as image folders, as used for the recorded results (for parquet, see `hf-cots
    data`)."""
    from ..data.sets.openclipart import write_openclipart_set

    check_output_folder(output)
    counts = write_openclipart_set(output, deb, size=size, seed=seed)
    typer.echo(f"{counts['train']} training pairs and {counts['test']} test pairs in {output}")


@app.command(rich_help_panel=PANEL)
def audit(
    model: Encoder,
    data: Pairs,
    image_column: ImageColumn = "image",
    caption_column: CaptionColumn = "auto",
    split: Split = "train",
    separator: Separator = None,
    filter_lambda: Annotated[
        float, typer.Option(help="Flag pairs whose score is more than this many standard deviations below the mean.")
    ] = 2.0,
    shown: Annotated[int, typer.Option(min=1, help="Number of images on the HTML page.")] = 100,
    output: Annotated[Path, typer.Option(help="Output folder for the table, the keep-mask and the HTML page.")] = Path(
        "audit"
    ),
    video_column: VideoColumn = None,
    num_frames: NumFrames = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Find pairs whose image (or clip) and caption do not match; writes a table, a keep-mask and an HTML page."""
    from ..data.sources import load_pairs
    from ..evaluation.diagnostics.audit import audit_pairs, write_audit
    from ..search.encoders import choose_frames
    from ..search.loading import load_encoder

    check_output_folder(output)
    pairs = load_pairs(data, image_column, caption_column, split=split, separator=separator, video_column=video_column)
    encoder = load_encoder(model, revision=revision)
    choose_frames(pairs, encoder, num_frames)
    result = audit_pairs(encoder, pairs, filter_lambda, progress=True)
    files = write_audit(result, pairs, output, shown)
    typer.echo(f"{len(pairs)} pairs, {int((~result.kept).sum())} suspect; see {files['suspects.html']}")
    typer.echo(f"to train without them: --keep_mask {files['keep_mask.json']}")
