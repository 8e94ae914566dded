"""The verb `hf-cots index`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import note_on_interrupt, print_note
from .app import app, note_skipped
from .options import BatchSize, Encoder, ImageColumn, Revision, Separator, Split, Token, VideoColumn


if TYPE_CHECKING:
    from ..search.disk_index import DiskIndex
    from ..search.milvus_index import MilvusIndex


Approximate = Annotated[
    bool | None, typer.Option(help="Turn approximate search on (for 200,000 images and more) or off for this index.")
]
Recall = Annotated[float | None, typer.Option(help="Minimum measured recall of approximate search; 0.99 by default.")]
IndexPrecision = Annotated[
    str | None,
    typer.Option(
        help="Precision of the model: float32 (the default), bfloat16, or auto (bfloat16 if the GPU supports it)."
    ),
]
VectorType = Annotated[
    str | None,
    typer.Option(
        help="Precision of the stored vectors: float32 (the default), float16, int8, or binary (search by signs)."
    ),
]


@app.command(rich_help_panel="Search")
def index(
    model: Encoder,
    source: Annotated[
        str, typer.Argument(help="Folder of images and clips, or a data set: Hub id, parquet, CSV, tars, ...")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Folder of the index, or http://host:19530/name for Milvus; created if missing, else updated."
        ),
    ],
    dtype: VectorType = None,
    approximate: Approximate = None,
    recall: Recall = None,
    precision: IndexPrecision = None,
    image_column: ImageColumn = "image",
    video_column: VideoColumn = None,
    split: Split = "train",
    separator: Separator = None,
    batch_size: BatchSize = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Create or update an index of images and clips; only new contents are encoded.

    `torchrun --nproc-per-node N -m hf_cots index ...` divides the images among N processes.
    """
    from ..search.gallery import SourceOptions
    from ..search.index import ImageIndex
    from ..search.milvus import is_milvus
    from ..search.processes import processes

    about_source = {"options": SourceOptions(video_column or image_column, split, separator), "revision": revision}
    about_index: dict[str, Any] = {
        "dtype": dtype,
        "approximate": approximate,
        "recall": recall,
        "precision": precision,
    }
    saved = f"all but the last batch is in {to}: the same command goes on"
    with note_on_interrupt(lambda: saved if is_milvus(to) or Path(to).is_dir() else "nothing was saved"):
        built = ImageIndex.build(
            model, source, to, batch_size=batch_size, progress=True, **about_source, **about_index
        )
    if processes().is_main_process:
        _report(built, to, as_json)
    processes().destroy_process_group()


def _report(built: "DiskIndex | MilvusIndex", to: str, as_json: bool) -> None:
    """Print what was done."""
    from ..search.clips import describe_count
    from ..search.disk_index import DiskIndex

    note_skipped(built.summary.broken)
    error = float(built.meta.get("error", 0))
    if error:
        print_note(f"{built.meta['dtype'].replace('binary', 'int8')} changes scores by at most {error:.2g}", "dim")
    measured = built.approximation() if isinstance(built, DiskIndex) else None
    if measured is not None:
        print_note(str(measured), "dim")
    if as_json:
        about = {} if measured is None else {"approximate": measured.measured()}
        typer.echo(json.dumps(built.summary.counts() | about))
    else:
        typer.echo(f"{describe_count(len(built), built.count_clips())} in {to}: {built.summary}")
