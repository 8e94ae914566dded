"""`hf-cots`: one verb per job. Thin: parse, call, print."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .evaluation.tasks.prompts import DEFAULT_TEMPLATE


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Image-text retrieval with COTS.")
console = Console()


def _fail(error: Exception) -> typer.Exit:
    """An error that the user can mend, in one line."""
    Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False)
    return typer.Exit(2)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where model, pictures and results go.")] = Path("runs/demo"),
    compare: Annotated[bool, typer.Option(help="Also train the same towers with plain InfoNCE.")] = False,
    smoke: Annotated[bool, typer.Option(help="A few steps only, to see that everything runs.")] = False,
    seed: Annotated[int, typer.Option(help="Of data order, augmentation, masks and weights.")] = 0,
) -> None:
    """Train a small COTS on emoji on a CPU, evaluate it on unseen concepts, and search with it."""
    try:
        from .demo.run import run_demo

        run_demo(output, compare=compare, smoke=smoke, seed=seed)
    except ModuleNotFoundError as error:
        raise _fail(ModuleNotFoundError(f"{error}. The demo needs: pip install 'hf-cots[demo]'")) from None


@app.command()
def openclipart(
    output: Annotated[Path, typer.Argument(help="Where train/, test/ and openclipart.json go.")],
    deb: Annotated[
        Path | None, typer.Option(help="The package's file, or its folder of SVGs; else apt gets it.")
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Chooses the clusters that are held out.")] = 0,
) -> None:
    """Make the openclipart set, 3,300 drawings with titles, from the Debian package openclipart-svg."""
    from .data.sets.openclipart import write_openclipart_set

    try:
        counts = write_openclipart_set(output, deb, size=size, seed=seed)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise _fail(error) from None
    typer.echo(f"{counts['train']} training pairs and {counts['test']} test pairs in {output}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train on image-text pairs; the flags are those of `python -m hf_cots.train`."""
    from .train import main

    main(context.args)


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a trained model.")],
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, searched with its sub-folders.")],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="How many files to print.")] = 10,
    rerank: Annotated[str | None, typer.Option(help="A SIMLA model that re-ranks the best 64.")] = None,
) -> None:
    """Print the picture files that fit a text best, with their scores."""
    from .search.index import ImageIndex
    from .search.reranked import RerankedIndex

    try:
        index = ImageIndex.from_folder(model, folder, progress=True)
        matches = (RerankedIndex.from_index(index, rerank) if rerank else index).search(text, k)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    for broken in index.broken:
        Console(stderr=True).print(f"left out: {broken}", style="yellow", highlight=False, markup=False)
    for match in matches:
        typer.echo(f"{match.score:.4f}  {match.path}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of any dual encoder.")],
    data: Annotated[
        str, typer.Argument(help="Hub id, folder, parquet, CSV, JSON lines or tars; or a protocol's JSON.")
    ],
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of texts or lists; found by itself.")] = "auto",
    image_id_column: Annotated[str | None, typer.Option(help="Equal cells mean the same picture.")] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub data set or of karpathy's file.")] = "test",
    protocol: Annotated[str | None, typer.Option(help="coco-5k, coco-1k, flickr30k or karpathy.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of a protocol's pictures.")] = None,
    id_checksum: Annotated[str | None, typer.Option(help="What the checksum of a protocol's ids must be.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file; the query table and the page lie beside it.")] = None,
    compare: Annotated[str | None, typer.Option(help="Another model, or results.json of an earlier run.")] = None,
    dual_softmax: Annotated[bool, typer.Option("--dual-softmax", help="Also report dual softmax.")] = False,
    querybank: Annotated[str | None, typer.Option(help="Training pairs: also report QB-Norm.")] = None,
    beta: Annotated[float, typer.Option(help="Inverse temperature of these two.")] = 20.0,
    check_overlap: Annotated[str | None, typer.Option(help="Training pairs to look for the test data in.")] = None,
    rerank: Annotated[str | None, typer.Option(help="A SIMLA model that re-ranks what the model finds.")] = None,
    k: Annotated[int, typer.Option("--k", help="Candidates that it re-ranks.")] = 64,
    validation: Annotated[str | None, typer.Option(help="Pairs to fit the weight of both scores on.")] = None,
    budget: Annotated[float | None, typer.Option(help="Re-ranked pairs a query on average; k then varies.")] = None,
    latency: Annotated[float | None, typer.Option(help="Milliseconds of re-ranking a query at most.")] = None,
    failures: Annotated[int, typer.Option(min=0, help="Worst queries to show on the page.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a forward pass.")] = 64,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of bootstrap and randomisation test.")] = 0,
) -> None:
    """Retrieval in both directions on anyone's image-text pairs, with intervals and a page of failures.

    `torchrun --nproc-per-node N -m hf_cots evaluate ...` divides the queries among N processes.
    """
    from .data.sources import load_pairs
    from .evaluation.rendering.tables import report_tables
    from .evaluation.retrieval.recall_cost import RerankEvaluation
    from .evaluation.retrieval.run import EvaluationRun

    def show(report: dict) -> None:
        for table in report_tables(report):
            console.print(table)
        for picture in report["data"]["left_out"]:
            Console(stderr=True).print(f"left out: {picture}", style="yellow", highlight=False, markup=False)
        if "overlap" in report:
            console.print(report["overlap"]["summary"], highlight=False, markup=False)

    try:
        reranking = None
        if rerank is not None:
            columns = (image_column, caption_column, image_id_column)
            fitted_on = None if validation is None else load_pairs(validation, *columns, "validation")
            reranking = RerankEvaluation(rerank, k, fitted_on, budget, latency, batch_size, resamples, seed)
        EvaluationRun(
            model=model,
            data=data,
            image_column=image_column,
            caption_column=caption_column,
            image_id_column=image_id_column,
            split=split,
            protocol=protocol,
            image_root=image_root,
            id_checksum=id_checksum,
            compare=compare,
            dual_softmax=dual_softmax,
            querybank=querybank,
            beta=beta,
            check_overlap=check_overlap,
            output=output,
            failures=failures,
            batch_size=batch_size,
            resamples=resamples,
            seed=seed,
            rerank=reranking,
        ).run(show)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise _fail(error) from None


def _run_task(run: Callable[[], dict[str, Any]], task: str, output: Path | None, digits: int = 1) -> None:
    """Run a task of `evaluation.tasks`, write its report, print its table."""
    from .evaluation.rendering.tables import task_table

    try:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)  # found out before the work is done, not after
        report = run()
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise _fail(error) from None
    if output is not None:
        output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(task_table(report, task, digits))
    for data in (report["data"], report.get("gallery", {})):
        for picture in data.get("left_out", ()):
            Console(stderr=True).print(f"left out: {picture}", style="yellow", highlight=False, markup=False)


@app.command()
def classify(
    model: Annotated[str, typer.Argument(help="Hub id or folder of any dual encoder.")],
    data: Annotated[str, typer.Argument(help="Folder of class folders, or any data with a label column.")],
    template: Annotated[
        list[str], typer.Option(help="Text with {} for the class name, or file of such lines; can be repeated.")
    ] = [DEFAULT_TEMPLATE],  # noqa: B006 (typer copies it)
    classes: Annotated[
        Path | None, typer.Option(help="File of classes, one a line: label, or label, tab, name.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    label_column: Annotated[str, typer.Option(help="Column of classes.")] = "label",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a forward pass.")] = 64,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Zero-shot classification: top-1 and top-5 beside chance."""
    from .evaluation.tasks.run import run_classification

    _run_task(
        lambda: run_classification(model, data, template, classes, image_column, label_column, split, batch_size),
        "zero_shot",
        output,
    )


@app.command()
def text_matching(
    model: Annotated[str, typer.Argument(help="Hub id or folder of anything that encodes texts.")],
    data: Annotated[str, typer.Argument(help="Pairs of texts with a score: Hub id, parquet, CSV or JSON lines.")],
    text_a: Annotated[str, typer.Option(help="Column of the first text.")] = "sentence1",
    text_b: Annotated[str, typer.Option(help="Column of the second text.")] = "sentence2",
    score_column: Annotated[str, typer.Option(help="Column of the score; higher is more alike.")] = "score",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "test",
    sts_benchmark: Annotated[
        bool, typer.Option("--sts-benchmark", help="The data is a file of STS-Benchmark as its authors give it out.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Rank correlation of text similarities with human scores."""
    from .evaluation.tasks.run import run_text_matching

    _run_task(
        lambda: run_text_matching(model, data, (text_a, text_b), score_column, split, sts_benchmark),
        "text_matching",
        output,
        digits=3,
    )


@app.command()
def image_retrieval(
    model: Annotated[str, typer.Argument(help="Hub id or folder of any dual encoder.")],
    data: Annotated[str, typer.Argument(help="Folder of class folders, or any data with a label column.")],
    gallery: Annotated[str | None, typer.Option(help="Other data to search; by default the data itself.")] = None,
    across: Annotated[
        str | None, typer.Option(help="Column in which answers must differ from the query, a style say.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    label_column: Annotated[str, typer.Option(help="Pictures with equal cells should find each other.")] = "label",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a forward pass.")] = 64,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Mean average precision of pictures that look for others of their label, each left out of its own gallery."""
    from .evaluation.tasks.run import run_image_retrieval

    _run_task(
        lambda: run_image_retrieval(model, data, gallery, across, image_column, label_column, split, batch_size),
        "image_to_image",
        output,
    )


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="Hub id or folder of any dual encoder.")],
    data: Annotated[str, typer.Argument(help="Hub id, folder, parquet, CSV, JSON lines or tars.")],
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of texts or lists; found by itself.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    filter_lambda: Annotated[float, typer.Option(help="Suspect: so many deviations below the mean score.")] = 2.0,
    shown: Annotated[int, typer.Option(min=1, help="Pictures on the page.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder for table, keep-mask and page.")] = Path("audit"),
) -> None:
    """Rank the pairs whose picture and caption fit least: a table, a keep-mask for training, a page of pictures."""
    from .data.sources import load_pairs
    from .evaluation.diagnostics.audit import audit_pairs, write_audit
    from .search.loading import load_encoder

    try:
        pairs = load_pairs(data, image_column, caption_column, split=split)
        result = audit_pairs(load_encoder(model), pairs, filter_lambda, progress=True)
        files = write_audit(result, pairs, output, shown)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    typer.echo(f"{len(pairs)} pairs, {int((~result.kept).sum())} suspect; see {files['suspects.html']}")
    typer.echo(f"to train without them: --keep_mask {files['keep_mask.json']}")


@app.command()
def token_gain(
    checkpoint: Annotated[str, typer.Argument(help="A training checkpoint, with its token heads.")],
    data: Annotated[str, typer.Argument(help="Hub id, folder, parquet, CSV, JSON lines or tars.")],
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of texts or lists; found by itself.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "test",
) -> None:
    """Is the token level alive? By how much its losses rise when the other stream's feature is a stranger's."""
    from .data.sources import load_pairs
    from .evaluation.diagnostics.inspect_token_level import inspect_token_level
    from .search.loading import load_for_pretraining

    try:
        pairs = load_pairs(data, image_column, caption_column, split=split)
        gains = inspect_token_level(*load_for_pretraining(checkpoint), pairs)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    for name, gain in gains.items():
        percent = 100 * gain["rise"] / gain["loss"]
        typer.echo(f"{name}: {gain['loss']:.4f}, with a stranger's feature {gain['shuffled']:.4f} ({percent:+.2f}%)")


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"'{text}' is no list of numbers with commas between them, such as 0.5,0.5,0.5") from None


@app.command()
def tokenize(
    data: Annotated[str, typer.Argument(help="The training data, as for `hf-cots train --train_data`.")],
    tokenizer: Annotated[str, typer.Option(help="Hub id or folder of the image tokenizer.")],
    output: Annotated[Path, typer.Option(help="Folder of the cache; whole shards of an earlier run are kept.")],
    epochs: Annotated[int, typer.Option(help="How many epochs' crops are written.")] = 1,
    seed: Annotated[int, typer.Option(help="The training run's --seed.")] = 42,
    image_size: Annotated[
        int | None, typer.Option(help="The image stream's, in pixels; 16 per code if not given.")
    ] = None,
    min_scale: Annotated[float, typer.Option(help="The training run's --min_scale.")] = 0.2,
    flip: Annotated[float, typer.Option(help="The training run's --flip.")] = 0.5,
    image_mean: Annotated[str, typer.Option(help="The model's, three numbers with commas.")] = "0.5,0.5,0.5",
    image_std: Annotated[str, typer.Option(help="The same.")] = "0.5,0.5,0.5",
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of texts or lists; found by itself.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    keep_mask: Annotated[Path | None, typer.Option(help="The training run's --keep_mask.")] = None,
    batch_size: Annotated[int, typer.Option(help="Crops in a forward pass.")] = 32,
    shard_size: Annotated[int, typer.Option(help="Crops in a file: what a killed run can lose.")] = 16_384,
    workers: Annotated[int, typer.Option(help="Processes that decode and crop.")] = 0,
) -> None:
    """Write the codes of a training run's crops, for `hf-cots train --code_cache`."""
    import torch

    from .data.augmentation import RandomCropFlip
    from .data.code_cache import write_codes
    from .data.keep_mask import apply_keep_mask
    from .data.sources import load_pairs
    from .models import COTSImageTokenizer
    from .search.loading import default_device

    try:
        mean, std = (_numbers(text) for text in (image_mean, image_std))
        pairs = load_pairs(data, image_column, caption_column, split=split, seed=seed)
        if keep_mask is not None:
            apply_keep_mask(pairs, keep_mask)
        model = COTSImageTokenizer.from_pretrained(tokenizer, dtype=torch.float32).eval()
        model.to(default_device())
        augmentation = RandomCropFlip(image_size or 16 * model.config.grid_size, min_scale, flip)
        sizes = (batch_size, shard_size, workers)
        done = write_codes(pairs, model, output, augmentation, epochs, mean, std, *sizes, progress=True)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    typer.echo(f"{done} crops tokenized, {epochs * len(pairs) - done} were there: {output}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint of pre-training: Hub id or folder.")],
    image: Annotated[Path, typer.Argument(help="A picture file.")],
    caption: Annotated[str | None, typer.Option(help="What it shows; it is predicted with and without.")] = None,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("inspection.png"),
    seed: Annotated[int, typer.Option(help="Of the mask.")] = 0,
) -> None:
    """Draw a picture, its codes, what they keep, a mask, and what the model makes of the masked patches.

    Of a SIMLA: the keywords that it predicts, and where each word of the caption looks.
    """
    from transformers import AutoConfig

    from .data.images import BrokenImage, read_image
    from .evaluation.diagnostics.inspect_cots import inspect_model
    from .evaluation.diagnostics.inspect_simla import inspect_simla_model
    from .search.loading import load_reranker

    try:
        picture = read_image(image)
        if AutoConfig.from_pretrained(model).model_type == "simla":
            sheet, lines = inspect_simla_model(*load_reranker(model), picture, caption)
        else:
            sheet, lines = inspect_model(model, picture, caption, seed)
        output.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(output)
    except (BrokenImage, OSError, ValueError) as error:
        raise _fail(error) from None
    for line in (*lines, output):
        typer.echo(str(line))
