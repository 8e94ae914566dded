"""The panel "Train": train models and image tokenizers, and precompute image codes."""

from pathlib import Path
from typing import Annotated

import typer

from .._errors import check_output_folder, note_on_interrupt
from .app import app


PANEL = "Train"
# For verbs that pass their flags on to transformers' argument parser.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(rich_help_panel=PANEL, context_settings=PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train COTS, SIMLA or COOKIE on image-text pairs, from flags or a recipe (same as python -m hf_cots.train)."""
    from ..train import main

    main(context.args)


@app.command(rich_help_panel=PANEL, context_settings=PASS_ON, add_help_option=False)
def train_tokenizer(context: typer.Context) -> None:
    """Train an image tokenizer, from flags or a recipe (same as python -m hf_cots.train_dvae)."""
    from ..train_dvae import main

    main(context.args)


@app.command(rich_help_panel=PANEL, context_settings=PASS_ON, add_help_option=False)
def distill_text(context: typer.Context) -> None:
    """Distill a multilingual text tower from translation pairs (same as python -m hf_cots.distill_text)."""
    from ..distill_text import main

    main(context.args)


@app.command(rich_help_panel=PANEL, context_settings=PASS_ON)
def tokenize(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Training recipe (YAML or JSON); training flags may follow.")],
    output: Annotated[Path, typer.Option(help="Output folder; complete files of an earlier run are kept.")],
    epochs: Annotated[int, typer.Option(help="Number of epochs to tokenize.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Crops per forward pass.")] = 32,
    shard_size: Annotated[
        int, typer.Option(help="Crops per file; an interrupted run loses at most one file.")
    ] = 16_384,
    workers: Annotated[int, typer.Option(help="Number of processes that decode and crop images.")] = 0,
) -> None:
    """Precompute the image tokenizer's codes for a training run, for its --code_cache flag."""
    from ..training.arguments import parse_arguments
    from ..training.tokenize import tokenize_training_data

    check_output_folder(output)
    arguments = parse_arguments([recipe, *context.args])
    with note_on_interrupt(lambda: f"complete files are kept in {output}; run the same command again to continue"):
        done, held = tokenize_training_data(*arguments, output, epochs, batch_size, shard_size, workers)
    typer.echo(f"{done} crops tokenized, {held} already in {output}")


@app.command(rich_help_panel=PANEL)
def demo(
    output: Annotated[Path, typer.Option(help="Output folder for the model, images and results.")] = Path("runs/demo"),
    compare: Annotated[bool, typer.Option(help="Also train the same towers with plain InfoNCE.")] = False,
    smoke: Annotated[bool, typer.Option(help="Run only a few steps, to check that everything works.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed for data order, augmentation, masks and weights.")] = 0,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Start from random image tower weights, and use only two drawing styles."),
    ] = False,
) -> None:
    """Train a small COTS on emoji on a CPU, evaluate it on unseen concepts, and search with it."""
    check_output_folder(output)
    try:
        import datasets
        from transformers.utils import logging

        from ..demo.run import run_demo

        datasets.disable_progress_bars()  # the files are small
        logging.disable_progress_bar()
        with note_on_interrupt(lambda: f"finished files are in {output}; the demo restarts from the beginning"):
            run_demo(output, compare, smoke, seed, from_scratch)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. The demo needs: pip install 'hf-cots[demo]'") from None


@app.command(rich_help_panel=PANEL)
def demo_video(
    model: Annotated[str, typer.Argument(help="Image model; by default the demo's.")] = "runs/demo/model",
    output: Annotated[Path, typer.Option(help="Output folder for clips, model and results.")] = Path(
        "runs/demo-video"
    ),
    smoke: Annotated[bool, typer.Option(help="Run only a few steps, to check that everything works.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the fine-tuning.")] = 0,
) -> None:
    """Evaluate clip search on animated emoji, with the demo's image model and fine-tuned on clips, with 1 to 12
    frames.

    Downloads 172 MB once."""
    check_output_folder(output)
    if not Path(model).exists():
        raise FileNotFoundError(f"no such model: {model}; train it with hf-cots demo, or give another model")
    try:
        import datasets
        from transformers.utils import logging

        from ..demo.run_clips import run_clip_demo

        datasets.disable_progress_bars()
        logging.disable_progress_bar()
        with note_on_interrupt(lambda: f"finished files are in {output}; the demo restarts from the beginning"):
            run_clip_demo(model, output, seed, smoke)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. The demo needs: pip install 'hf-cots[demo]'") from None
