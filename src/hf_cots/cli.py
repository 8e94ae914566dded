"""`hf-cots`: one verb per job. Thin: parse, call, print."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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
        from .demo import run_demo

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
    from .data.openclipart import write_openclipart_set

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
) -> None:
    """Print the picture files that fit a text best, with their scores."""
    from .search import PictureIndex

    try:
        index = PictureIndex.from_folder(model, folder, progress=True)
        matches = index.search(text, k)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    for broken in index.broken:
        Console(stderr=True).print(f"left out: {broken}", style="yellow", highlight=False, markup=False)
    for match in matches:
        typer.echo(f"{match.score:.4f}  {match.path}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a trained model.")],
    data: Annotated[str, typer.Argument(help="Hub id, folder, parquet, CSV, JSON lines or tars.")],
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of texts or of lists of texts.")] = "caption",
    image_id_column: Annotated[str | None, typer.Option(help="Equal cells mean the same picture.")] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "test",
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Recall@K in both directions on anyone's image-text pairs."""
    from transformers import AutoModel, AutoProcessor

    from .data import load_pairs
    from .evaluation import evaluate_retrieval
    from .evaluation.tables import terminal_table

    try:
        pairs = load_pairs(data, image_column, caption_column, image_id_column, split)
        encoder, processor = AutoModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
        results = evaluate_retrieval(encoder, processor, pairs, progress=True)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    console.print(terminal_table(results))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=2) + "\n")


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a trained model.")],
    data: Annotated[str, typer.Argument(help="Hub id, folder, parquet, CSV, JSON lines or tars.")],
    image_column: Annotated[str, typer.Option(help="Column of pictures or paths.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of texts or of lists of texts.")] = "caption",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    filter_lambda: Annotated[float, typer.Option(help="Suspect: so many deviations below the mean score.")] = 2.0,
    shown: Annotated[int, typer.Option(min=1, help="Pictures on the page.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder for table, keep-mask and page.")] = Path("audit"),
) -> None:
    """Rank the pairs whose picture and caption fit least: a table, a keep-mask for training, a page of pictures."""
    from transformers import AutoModel, AutoProcessor

    from .data import load_pairs
    from .evaluation.audit import audit_pairs, write_audit

    try:
        pairs = load_pairs(data, image_column, caption_column, split=split)
        encoder, processor = AutoModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
        result = audit_pairs(encoder, processor, pairs, filter_lambda, progress=True)
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
    caption_column: Annotated[str, typer.Option(help="Column of texts or of lists of texts.")] = "caption",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "test",
) -> None:
    """Is the token level alive? By how much its losses rise when the other stream's feature is a stranger's."""
    from transformers import AutoProcessor

    from .data import load_pairs
    from .models import COTSForPreTraining
    from .training.token_gain import token_level_gain

    try:
        pairs = load_pairs(data, image_column, caption_column, split=split)
        model, processor = COTSForPreTraining.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
        gains = token_level_gain(model, processor, pairs)
    except (OSError, ValueError) as error:
        raise _fail(error) from None
    for name, gain in gains.items():
        percent = 100 * gain["rise"] / gain["loss"]
        typer.echo(f"{name}: {gain['loss']:.4f}, with a stranger's feature {gain['shuffled']:.4f} ({percent:+.2f}%)")
