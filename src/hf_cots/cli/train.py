"""The panel "Train": models, image tokenizers, and their codes computed beforehand."""

from pathlib import Path
from typing import Annotated

import typer

from .._errors import check_output_folder, note_on_interrupt
from .app import app


PANEL = "Train"
# Verbs that hand on the flags of transformers' argument parser.
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
    """Distill a text tower into one for several languages, from translation pairs (python -m hf_cots.distill_text)."""
    from ..distill_text import main

    main(context.args)


@app.command(rich_help_panel=PANEL, context_settings=PASS_ON)
def tokenize(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="The training recipe, YAML or JSON; flags of training may follow.")],
    output: Annotated[Path, typer.Option(help="Folder of the codes; complete files of an earlier run are kept.")],
    epochs: Annotated[int, typer.Option(help="Epochs whose crops are tokenized.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Crops in a forward pass.")] = 32,
    shard_size: Annotated[int, typer.Option(help="Crops in a file: what an interrupted run can lose.")] = 16_384,
    workers: Annotated[int, typer.Option(help="Processes that decode and crop.")] = 0,
) -> None:
    """Write the image tokenizer's codes for the crops of a training run, for its --code_cache."""
    from ..training.arguments import parse_arguments
    from ..training.tokenize import tokenize_training_data

    check_output_folder(output)
    arguments = parse_arguments([recipe, *context.args])
    with note_on_interrupt(lambda: f"complete files stay in {output}: the same command goes on from there"):
        done, held = tokenize_training_data(*arguments, output, epochs, batch_size, shard_size, workers)
    typer.echo(f"{done} crops tokenized, {held} were there: {output}")


@app.command(rich_help_panel=PANEL)
def demo(
    output: Annotated[Path, typer.Option(help="Folder for model, images and results.")] = Path("runs/demo"),
    compare: Annotated[bool, typer.Option(help="Also train the same towers with plain InfoNCE.")] = False,
    smoke: Annotated[bool, typer.Option(help="Run a few steps only, to see that everything works.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of data order, augmentation, masks and weights.")] = 0,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Begin with random weights in the image tower, on two drawing styles."),
    ] = False,
) -> None:
    """Train a small COTS on emoji on a CPU, evaluate it on unseen concepts, and search with it."""
    check_output_folder(output)
    try:
        import datasets
        from transformers.utils import logging

        from ..demo.run import run_demo

        datasets.disable_progress_bars()  # of files that are read in a blink
        logging.disable_progress_bar()
        with note_on_interrupt(lambda: f"what is finished is in {output}; the demo starts from its beginning"):
            run_demo(output, compare, smoke, seed, from_scratch)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. The demo needs: pip install 'hf-cots[demo]'") from None


@app.command(rich_help_panel=PANEL)
def demo_video(
    model: Annotated[str, typer.Argument(help="The image model, that of the demo.")] = "runs/demo/model",
    output: Annotated[Path, typer.Option(help="Folder for clips, model and results.")] = Path("runs/demo-video"),
    smoke: Annotated[bool, typer.Option(help="Run a few steps only, to see that everything works.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the fine-tuning.")] = 0,
) -> None:
    """Search animated emoji with the demo's image model, as it is and fine-tuned on clips, with 1 to 12 frames.

    Downloads 172 MB once."""
    check_output_folder(output)
    if not Path(model).exists():
        raise FileNotFoundError(f"no model {model}: train it with hf-cots demo, or name one")
    try:
        import datasets
        from transformers.utils import logging

        from ..demo.run_clips import run_clip_demo

        datasets.disable_progress_bars()
        logging.disable_progress_bar()
        with note_on_interrupt(lambda: f"what is finished is in {output}; the demo starts from its beginning"):
            run_clip_demo(model, output, seed, smoke)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. The demo needs: pip install 'hf-cots[demo]'") from None
