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
    caption_column: Annotated[str, typer.Option(help="Column of texts or of lists of texts.")] = "caption",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    batch_size: Annotated[int, typer.Option(help="Crops in a forward pass.")] = 32,
    workers: Annotated[int, typer.Option(help="Processes that decode and crop.")] = 0,
) -> None:
    """Write the codes of a training run's crops, for `hf-cots train --code_cache`."""
    import torch

    from .data import RandomCropFlip, load_pairs, write_codes
    from .models import COTSImageTokenizer

    try:
        mean, std = ([float(number) for number in numbers.split(",")] for numbers in (image_mean, image_std))
        pairs = load_pairs(data, image_column, caption_column, split=split, seed=seed)
        model = COTSImageTokenizer.from_pretrained(tokenizer, dtype=torch.float32).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        augmentation = RandomCropFlip(image_size or 16 * model.config.grid_size, min_scale, flip)
        options = {"batch_size": batch_size, "workers": workers, "progress": True}
        done = write_codes(pairs, model, output, augmentation, epochs, mean, std, **options)
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
    """Draw a picture, its codes, what they keep, a mask, and what the model makes of the masked patches."""
    from .data.images import BrokenImage, read_image
    from .evaluation.inspection import draw_inspection, inspect_image, load_pretrained_with_heads

    try:
        picture = read_image(image)
        loaded, processor = load_pretrained_with_heads(model)
        found = inspect_image(loaded, processor, picture, caption, seed)
        output.parent.mkdir(parents=True, exist_ok=True)
        draw_inspection(found).save(output)
    except (BrokenImage, OSError, ValueError) as error:
        raise _fail(error) from None
    for text, predicted in found.predictions.items():
        told = f'told "{text}"' if text else "told nothing"
        typer.echo(f"{told}: {predicted.accuracy:.1%} of the masked codes right, {predicted.loss:.3f} nats")
    typer.echo(str(output))
