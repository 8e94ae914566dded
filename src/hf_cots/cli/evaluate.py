"""The panel "Evaluate": retrieval, the other tasks, and model inspection."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import check_output_file, note_on_interrupt
from ..evaluation.tasks.prompts import DEFAULT_TEMPLATE
from .app import app, console, note_skipped, write_json
from .options import (
    BatchSize,
    CaptionColumn,
    Encoder,
    ImageColumn,
    LabeledImages,
    NumFrames,
    Pairs,
    Precision,
    ResultsFile,
    Revision,
    Separator,
    Split,
    Token,
    VideoColumn,
)


PANEL = "Evaluate"


PairsOrProtocol = Annotated[
    str,
    typer.Argument(
        help="Image-text pairs: Hub id, folder, parquet, CSV, JSON lines or tars; or the annotations of --protocol."
    ),
]
ImageIdColumn = Annotated[
    str | None, typer.Option(help="Column that identifies the image: rows with equal values share one image.")
]
TestSplit = Annotated[str, typer.Option(help="Split of a Hub data set or of a Karpathy annotation file.")]
Protocol = Annotated[
    str | None, typer.Option(help="Protocol: coco-5k, coco-1k, flickr30k, karpathy, msrvtt-1k-a or msrvtt-full.")
]
ImageRoot = Annotated[Path | None, typer.Option(help="Folder of the protocol's images or clips.")]
IdChecksum = Annotated[str | None, typer.Option(help="Expected checksum of the protocol's image and caption ids.")]
Results = Annotated[
    Path | None,
    typer.Option(help="JSON file for the results; the per-query table and the failure page are written next to it."),
]
Compare = Annotated[str | None, typer.Option(help="Model to compare with, or results.json of an earlier run.")]
DualSoftmax = Annotated[bool, typer.Option("--dual-softmax", help="Also report results with dual softmax.")]
Querybank = Annotated[
    str | None, typer.Option(help="Also report results with QB-Norm, using these training pairs as the bank.")
]
Beta = Annotated[float, typer.Option(help="Inverse temperature of dual softmax and QB-Norm.")]
CheckOverlap = Annotated[str | None, typer.Option(help="Training pairs to check for copies of the test data.")]
Rerank = Annotated[str | None, typer.Option(help="SIMLA model to re-rank the top k with.")]
Candidates = Annotated[int, typer.Option("-k", "--k", help="Number of candidates to re-rank per query.")]
Validation = Annotated[
    str | None, typer.Option(help="Pairs for fitting the weights of the first-stage and re-ranker scores.")
]
Budget = Annotated[
    float | None, typer.Option(help="Average number of pairs to re-rank per query; k then varies by query.")
]
Latency = Annotated[float | None, typer.Option(help="Maximum re-ranking time per query in milliseconds.")]
Failures = Annotated[int, typer.Option(min=0, help="Number of worst queries to show on the failure page.")]
Resamples = Annotated[int, typer.Option(min=1, help="Number of bootstrap resamples for the confidence intervals.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap and the randomization test.")]


@app.command(rich_help_panel=PANEL)
def evaluate(
    model: Encoder,
    data: PairsOrProtocol,
    image_column: ImageColumn = "image",
    caption_column: CaptionColumn = "auto",
    image_id_column: ImageIdColumn = None,
    split: TestSplit = "test",
    separator: Separator = None,
    protocol: Protocol = None,
    image_root: ImageRoot = None,
    id_checksum: IdChecksum = None,
    output: Results = None,
    compare: Compare = None,
    dual_softmax: DualSoftmax = False,
    querybank: Querybank = None,
    beta: Beta = 20.0,
    check_overlap: CheckOverlap = None,
    rerank: Rerank = None,
    k: Candidates = 64,
    validation: Validation = None,
    budget: Budget = None,
    latency: Latency = None,
    failures: Failures = 20,
    batch_size: BatchSize = 64,
    precision: Precision = "float32",
    resamples: Resamples = 1000,
    seed: Seed = 0,
    video_column: VideoColumn = None,
    num_frames: NumFrames = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Evaluate text-to-image (or clip) and image-to-text retrieval, with confidence intervals and a failure page.

    `torchrun --nproc-per-node N -m hf_cots evaluate ...` divides images, texts and queries among N processes.
    """
    from ..data.sources import load_pairs
    from ..evaluation.retrieval.run import EvaluationRun

    columns, reranking = (image_column, caption_column, image_id_column), None
    if rerank is not None:
        from ..evaluation.retrieval.recall_cost import RerankEvaluation

        fitted_on = None if validation is None else load_pairs(validation, *columns, "validation", separator=separator)
        reranking = RerankEvaluation(rerank, k, fitted_on, budget, latency, batch_size, resamples, seed)
    run = partial(EvaluationRun, model, data, *columns, split, separator, protocol, image_root, id_checksum)
    run = partial(run, compare, dual_softmax, querybank, beta, check_overlap, output, failures, batch_size)
    with note_on_interrupt(lambda: describe_results(output)):
        run(resamples, seed, reranking, revision, precision, video_column, num_frames).run(_show_report)


def _show_report(report: dict[str, Any]) -> None:
    """Print the tables of an evaluation."""
    from ..evaluation.rendering.tables import report_tables

    for table in report_tables(report):
        console.print(table)
    note_skipped(report["data"]["left_out"])
    if "overlap" in report:
        console.print(report["overlap"]["summary"], highlight=False, markup=False)


def describe_results(output: Path | None) -> str:
    """Say what an interrupted evaluation leaves behind."""
    return f"results so far are in {output}" if output is not None and output.is_file() else "no results were written"


def _run_task(run: Callable[[], dict[str, Any]], task: str, output: Path | None, digits: int = 1) -> None:
    """Run a task of `evaluation.tasks`, print its table, write its report."""
    from ..evaluation.rendering.tables import task_table

    check_output_file(output)  # an error here comes before the work, not after
    report = run()
    console.print(task_table(report, task, digits))
    if output is not None:
        write_json(report, output)
    for data in (report["data"], report.get("gallery", {})):
        note_skipped(data.get("left_out", ()))


@app.command(rich_help_panel=PANEL)
def classify(
    model: Encoder,
    data: LabeledImages,
    template: Annotated[
        list[str],
        typer.Option(help="Prompt template with {} for the class name, or a file with one per line; can be repeated."),
    ] = [DEFAULT_TEMPLATE],  # noqa: B006 (typer copies it)
    classes: Annotated[
        Path | None,
        typer.Option(help="File with one class per line: the label, optionally followed by a tab and its name."),
    ] = None,
    image_column: ImageColumn = "image",
    label_column: Annotated[str, typer.Option(help="Column of labels.")] = "label",
    split: Split = "test",
    separator: Separator = None,
    batch_size: BatchSize = 64,
    output: ResultsFile = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Evaluate zero-shot classification: top-1 and top-5 accuracy, compared with chance."""
    from ..evaluation.tasks.run import run_classification

    columns = (image_column, label_column)
    run = partial(
        run_classification,
        model,
        data,
        template,
        classes,
        *columns,
        split,
        batch_size,
        separator=separator,
        revision=revision,
    )
    _run_task(run, "zero_shot", output)


@app.command(rich_help_panel=PANEL)
def text_matching(
    model: Annotated[str, typer.Argument(help="Any model that encodes texts: Hub id or folder.")],
    data: Annotated[str, typer.Argument(help="Scored text pairs: Hub id, parquet, CSV or JSON lines.")],
    text_a: Annotated[str, typer.Option(help="Column of the first text.")] = "sentence1",
    text_b: Annotated[str, typer.Option(help="Column of the second text.")] = "sentence2",
    score_column: Annotated[str, typer.Option(help="Column of the scores; higher means more similar.")] = "score",
    split: Split = "test",
    separator: Separator = None,
    sts_benchmark: Annotated[
        bool, typer.Option("--sts-benchmark", help="Read the data as an original STS-Benchmark file.")
    ] = False,
    output: ResultsFile = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Evaluate text similarity: rank correlation with human scores."""
    from ..evaluation.tasks.run import run_text_matching

    run = partial(
        run_text_matching,
        model,
        data,
        (text_a, text_b),
        score_column,
        split,
        sts_benchmark,
        separator=separator,
        revision=revision,
    )
    _run_task(run, "text_matching", output, digits=3)


@app.command(rich_help_panel=PANEL)
def image_retrieval(
    model: Encoder,
    data: LabeledImages,
    gallery: Annotated[str | None, typer.Option(help="Data set to search; by default the queries themselves.")] = None,
    across: Annotated[
        str | None, typer.Option(help="Column in which matches must differ from the query, such as the style.")
    ] = None,
    image_column: ImageColumn = "image",
    label_column: Annotated[
        str, typer.Option(help="Column of labels; images with the same label are relevant to each other.")
    ] = "label",
    split: Split = "test",
    separator: Separator = None,
    batch_size: BatchSize = 64,
    output: ResultsFile = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Evaluate image-to-image retrieval by label (mean average precision); queries are excluded from their own
    gallery."""
    from ..evaluation.tasks.run import run_image_retrieval

    columns = (image_column, label_column)
    run = partial(
        run_image_retrieval,
        model,
        data,
        gallery,
        across,
        *columns,
        split,
        batch_size,
        separator=separator,
        revision=revision,
    )
    _run_task(run, "image_to_image", output)


@app.command(rich_help_panel=PANEL)
def inspect_token_level(
    checkpoint: Annotated[str, typer.Argument(help="COTS pre-training checkpoint, with its token heads.")],
    data: Pairs,
    image_column: ImageColumn = "image",
    caption_column: CaptionColumn = "auto",
    split: Split = "test",
    revision: Revision = None,
    token: Token = None,
    separator: Separator = None,
) -> None:
    """Check that the token level uses the other modality: how much its losses rise with shuffled cross-modal
    features."""
    from ..data.sources import load_pairs
    from ..evaluation.diagnostics.inspect_token_level import inspect_token_level as measure
    from ..search.loading import load_for_pretraining

    pairs = load_pairs(data, image_column, caption_column, split=split, separator=separator)
    for name, found in measure(*load_for_pretraining(checkpoint, revision=revision), pairs).items():
        percent = 100 * found["rise"] / found["loss"]
        typer.echo(f"{name}: {found['loss']:.4f}, with a shuffled feature {found['shuffled']:.4f} ({percent:+.2f}%)")


@app.command(rich_help_panel=PANEL)
def inspect(
    model: Annotated[str, typer.Argument(help="Pre-training checkpoint: Hub id or folder.")],
    image: Annotated[Path, typer.Argument(help="Image file.")],
    caption: Annotated[
        str | None, typer.Option(help="Caption of the image; masked patches are predicted with and without it.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Output image file.")] = Path("inspection.png"),
    seed: Annotated[int, typer.Option(help="Seed of the mask.")] = 0,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Draw an image, its codes and their reconstruction, a mask, and the model's predictions for the masked patches.

    For a SIMLA model: draw the predicted keywords and where each word of the caption attends.
    """
    from transformers import AutoConfig

    from ..data.images import BrokenImage, read_image
    from ..evaluation.diagnostics.inspect_cots import inspect_image, load_with_token_heads
    from ..evaluation.diagnostics.inspect_simla import inspect_simla
    from ..evaluation.rendering.panels import draw_panels
    from ..search.loading import NO_REMOTE_CODE, hub_options, load_reranker, named_errors

    try:
        opened = read_image(image)
    except BrokenImage as error:
        raise ValueError(str(error)) from None
    check_image_file(output)
    with named_errors(model):
        kind = AutoConfig.from_pretrained(model, **NO_REMOTE_CODE, **hub_options(revision)).model_type
    if kind == "simla":
        found: Any = inspect_simla(*load_reranker(model, revision=revision), opened, caption)
    else:
        found = inspect_image(*load_with_token_heads(model, revision), opened, caption, seed)
    draw_panels(found.panels()).save(output)
    for line in (*found.lines(), output):
        typer.echo(str(line))


def check_image_file(path: Path) -> None:
    """Check that an image file can be written, before any work is done.

    Raises:
        OSError, ValueError: naming the file.
    """
    from PIL import Image

    check_output_file(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"cannot write {path}: '{path.suffix}' is not an image format; use .png")
