"""`hf-cots export`: export a dual encoder's two towers for ONNX Runtime or OpenVINO."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import print_note
from .app import app
from .options import BatchSize, CaptionColumn, Encoder, ImageColumn, Revision, Separator, Split, Token


@app.command(rich_help_panel="Search")
def export(
    model: Encoder,
    output: Annotated[Path, typer.Option(help="Output folder; every verb accepts it in place of a model.")],
    format: Annotated[str, typer.Option(help="Runtime of the towers: onnx or openvino.")] = "onnx",
    precision: Annotated[str, typer.Option(help="Precision: fp32, fp16, or int8 (onnx only).")] = "fp32",
    text_precision: Annotated[
        str | None, typer.Option(help="Precision of the text tower; by default the same as --precision.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Image-text pairs for comparing the export with the model.")
    ] = None,
    min_overlap: Annotated[
        float, typer.Option(help="Minimum top-10 overlap with the model; below it nothing is written. 0 accepts any.")
    ] = 0.97,
    image_column: ImageColumn = "image",
    caption_column: CaptionColumn = "auto",
    split: Split = "test",
    separator: Separator = None,
    batch_size: BatchSize = 64,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Export the two towers of a dual encoder with its processor, and record the cost in accuracy and speed."""
    from ..data.sources import load_pairs
    from ..export.run import Export

    pairs = None
    if eval_data is not None:
        pairs = load_pairs(eval_data, image_column, caption_column, split=split, separator=separator)
    job = Export(
        model, output, format, precision, text_precision, pairs, eval_data or "", min_overlap, batch_size, revision
    )
    for line in describe(job.run(), output):
        typer.echo(line)
    if pairs is None:
        worst = "" if "int8" not in job.precisions().values() else ", and int8 changes what is found"
        print_note(f"warning: the export was not compared with {model} on data{worst}: see --eval-data", "yellow")


def describe(about: dict[str, Any], output: Path) -> list[str]:
    """Describe what was written and its cost, one line each."""
    sizes = (f"{kind}s {each['precision']} {each['bytes'] / 1e6:.1f} MB" for kind, each in about["towers"].items())
    lines = [f"{output}: {', '.join(sizes)}; the model has {about['bytes_of_source'] / 1e6:.1f} MB"]
    found = about["evaluation"]
    if found is None:
        return lines
    recalls = (
        f"{name.replace('_', ' ')} {found['R@1']['source'][name]:.2f} -> {value:.2f}"
        for name, value in found["R@1"]["exported"].items()
    )
    lines += [f"R@1: {', '.join(recalls)}; top-10 overlap {found['overlap']['lowest']:.3f}"]
    for kind, sizes_of in found["latency"].items():
        times = (f"{each['speedup']:.2f} x at batch {size}" for size, each in sizes_of.items())
        lines.append(f"speed of {kind}s: {', '.join(times)}")
    return lines
