"""`hf-cots convert`: checkpoints of other projects as folders of ours, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import check_output_file, check_output_folder
from .app import app
from .options import Revision, Token


if TYPE_CHECKING:
    from ..models import COTSModel, COTSProcessor

converters = typer.Typer(no_args_is_help=True)
app.add_typer(
    converters,
    name="convert",
    rich_help_panel="Data",
    help="Convert dual encoders such as CLIP, DALL-E's discrete VAE, FLAVA's codebook and SIMLA.",
)

LICENSE_HELP = "License of the weights for the model card, as the Hub names it: that of the source."
Folder = Annotated[Path, typer.Option("--output", help="Folder to write.")]
TokenizerSize = Annotated[int, typer.Option(help="Side of its images in pixels, 8 per patch of the image tower.")]


def _load_cots(source: str, revision: str | None) -> tuple["COTSModel", "COTSProcessor"]:
    from transformers import AutoProcessor

    from ..models import COTSModel
    from ..search.loading import hub_options, named_errors

    with named_errors(source):
        model = COTSModel.from_pretrained(source, **hub_options(revision))
        return model, AutoProcessor.from_pretrained(source, **hub_options(revision))


def _public_name(source: str) -> str:
    """What a card calls a source: a Hub id, or a folder's name without where it lies."""
    return Path(source).name if Path(source).exists() else source


@converters.command()
def dual_encoder(
    source: Annotated[str, typer.Argument(help="CLIP, SigLIP, Chinese-CLIP, ALIGN, ...: Hub id or folder.")],
    output: Folder,
    license: Annotated[str | None, typer.Option(help=LICENSE_HELP)] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Convert a dual encoder to a COTS for AutoModel, with processor and card, that gives the same embeddings."""
    from ..conversion.dual_encoders import convert_dual_encoder
    from ..search.loading import hub_options, named_errors
    from ..training.arguments import check_license
    from ..training.model_card import write_model_card

    check_license(license)
    check_output_folder(output)
    with named_errors(source):
        model, differences = convert_dual_encoder(source, output, **hub_options(revision))
    training = f"Converted from {_public_name(source)}, of which it has all weights; it was not trained further."
    write_model_card(output, model.config, training, license=license)
    worst = ", ".join(f"{difference:.1g} ({kind}s)" for kind, difference in differences.items())
    typer.echo(f"{output}: the largest difference from the embeddings of {source} is {worst}")


@converters.command()
def truncate(
    source: Annotated[str, typer.Argument(help="A COTS: Hub id or folder.")],
    dim: Annotated[int, typer.Option(help="Dimensions of the embeddings to keep.")],
    output: Folder,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write a COTS with smaller embeddings: the first dimensions, normalized again (see nested_dims in training)."""
    from ..training.model_card import tell_of_truncation

    check_output_folder(output)
    model, processor = _load_cots(source, revision)
    before = model.config.projection_dim
    model.truncated(dim).save_pretrained(output)
    processor.save_pretrained(output)
    tell_of_truncation(output / "README.md", dim, before)
    typer.echo(f"{output}: embeddings of {dim} dimensions, of {before}")


@converters.command()
def text_tower(
    source: Annotated[str, typer.Argument(help="A COTS: Hub id or folder.")],
    tower: Annotated[Path, typer.Argument(help="Folder of the text tower that was distilled from the model's own.")],
    output: Folder,
    license: Annotated[str | None, typer.Option(help=LICENSE_HELP)] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write a COTS with a distilled text tower, as of hf-cots distill-text, in place of its own."""
    from transformers import AutoTokenizer

    from ..conversion.text_tower import fit_tokenizer, replace_text_tower
    from ..training.arguments import check_license
    from ..training.model_card import write_model_card

    check_license(license)
    check_output_folder(output)
    model, processor = _load_cots(source, revision)
    replaced = replace_text_tower(model, tower)
    processor.tokenizer = fit_tokenizer(AutoTokenizer.from_pretrained(tower), processor.tokenizer)
    replaced.save_pretrained(output)
    processor.save_pretrained(output)
    training = (
        f"{_public_name(source)} with another text tower, {tower.name}, which was distilled from its own; "
        "not trained further."
    )
    write_model_card(output, replaced.config, training, license=license)
    typer.echo(f"{output}: {source} with the text tower of {tower}")


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

    check_output_folder(output)
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
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Convert FLAVA's image codebook (Hub id or folder) to an image tokenizer for --image_tokenizer, or back."""
    from transformers import FlavaImageCodebook

    from ..conversion import image_tokenizers
    from ..models import COTSImageTokenizer
    from ..models.model_files import give_default_mode
    from ..search.loading import hub_options, named_errors

    check_output_folder(output)
    with named_errors(source):
        loaded = (COTSImageTokenizer if to_flava else FlavaImageCodebook).from_pretrained(
            source, **hub_options(revision)
        )
    if to_flava:
        image_tokenizers.to_flava(loaded).save_pretrained(output)
        give_default_mode(*output.glob("*.safetensors"))
    else:
        image_tokenizers.convert_flava(loaded, decoder, image_size).save_pretrained(output)


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
    token: Token = None,
) -> None:
    """Convert a checkpoint of SIMLA's authors (pre-training or retrieval) to a folder for AutoModel, or back."""
    import torch
    from transformers import AutoTokenizer

    from ..conversion.simla import convert_simla, save_converted, simla_tokenizer
    from ..conversion.simla import to_simla as to_authors
    from ..models import COTSImageProcessor, COTSProcessor, SimlaForPreTraining
    from ..search.loading import check_tokenizer, named_errors

    if to_simla:
        check_output_file(output)
        with named_errors(source):
            model = SimlaForPreTraining.from_pretrained(source)
        torch.save(to_authors(model), output)
        return
    check_output_folder(output)
    if tokenizer:  # before the long work
        with named_errors(tokenizer):
            words = AutoTokenizer.from_pretrained(tokenizer)
        check_tokenizer(tokenizer, words)
    left_out = {"mlm_weight": 0, "mim_weight": 0, "psl_weight": 0} if retrieval else {}
    model = convert_simla(source, image_size, **left_out)
    save_converted(model, output)
    if tokenizer:
        config, side = model.config, model.config.vision_config.image_size
        pixels = COTSImageProcessor(
            size={"height": side, "width": side}, image_mean=config.image_mean, image_std=config.image_std
        )
        COTSProcessor(pixels, simla_tokenizer(words)).save_pretrained(output)
