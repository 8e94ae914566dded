"""`hf-cots convert`: checkpoints of other projects as folders of ours, and back."""

from pathlib import Path
from typing import Annotated

import typer

from .app import app


converters = typer.Typer(no_args_is_help=True)
app.add_typer(
    converters,
    name="convert",
    rich_help_panel="Data",
    help="Convert checkpoints of DALL-E's discrete VAE, FLAVA's codebook and SIMLA.",
)

Folder = Annotated[Path, typer.Option("--output", help="Folder to write.")]
TokenizerSize = Annotated[int, typer.Option(help="Side of its images in pixels, 8 per patch of the image tower.")]


@converters.command()
def dalle(
    encoder: Annotated[Path, typer.Argument(help="https://cdn.openai.com/dall-e/encoder.pkl, downloaded.")],
    decoder: Annotated[
        Path | None, typer.Argument(help="decoder.pkl from the same place; without it the result only tokenizes.")
    ] = None,
    *,
    output: Folder,
    image_size: TokenizerSize = 192,
) -> None:
    """Convert OpenAI's discrete VAE to an image tokenizer for --image_tokenizer."""
    from ..conversion.image_tokenizers import convert_dalle

    convert_dalle(encoder, decoder, image_size).save_pretrained(output)


@converters.command()
def flava(
    source: Annotated[str, typer.Argument(help="FLAVA's codebook, or with --to-flava our image tokenizer.")],
    output: Folder,
    decoder: Annotated[
        Path | None, typer.Option(help="DALL-E's decoder.pkl; without it the result only tokenizes.")
    ] = None,
    image_size: TokenizerSize = 192,
    to_flava: Annotated[bool, typer.Option("--to-flava", help="Convert ours to FLAVA's, without decoder.")] = False,
) -> None:
    """Convert FLAVA's image codebook (Hub id or folder) to an image tokenizer for --image_tokenizer, or back."""
    from transformers import FlavaImageCodebook

    from ..conversion import image_tokenizers
    from ..models import COTSImageTokenizer
    from ..models.model_files import give_default_mode

    if to_flava:
        image_tokenizers.to_flava(COTSImageTokenizer.from_pretrained(source)).save_pretrained(output)
        give_default_mode(*output.glob("*.safetensors"))
    else:
        codebook = FlavaImageCodebook.from_pretrained(source)
        image_tokenizers.convert_flava(codebook, decoder, image_size).save_pretrained(output)


@converters.command()
def simla(
    source: Annotated[str, typer.Argument(help="The authors' .pth file, or with --to-simla our folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write; with --to-simla, file.")],
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels, if it is to differ from the checkpoint's.")
    ] = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Leave out the heads for masked modeling and keywords.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="BERT's tokenizer: Hub id or folder. Without it no processor is written.")
    ] = None,
    to_simla: Annotated[bool, typer.Option("--to-simla", help="Convert ours to the authors' format.")] = False,
) -> None:
    """Convert a checkpoint of SIMLA's authors (pre-training or retrieval) to a folder for AutoModel, or back."""
    import torch
    from transformers import AutoTokenizer

    from ..conversion.simla import convert_simla, save_converted, simla_tokenizer
    from ..conversion.simla import to_simla as to_authors
    from ..models import COTSImageProcessor, COTSProcessor, SimlaForPreTraining

    if to_simla:
        torch.save(to_authors(SimlaForPreTraining.from_pretrained(source)), output)
        return
    left_out = {"mlm_weight": 0, "mim_weight": 0, "psl_weight": 0} if retrieval else {}
    model = convert_simla(source, image_size, **left_out)
    save_converted(model, output)
    if tokenizer:
        config, side = model.config, model.config.vision_config.image_size
        pixels = COTSImageProcessor(
            size={"height": side, "width": side}, image_mean=config.image_mean, image_std=config.image_std
        )
        COTSProcessor(pixels, simla_tokenizer(AutoTokenizer.from_pretrained(tokenizer))).save_pretrained(output)
