"""`hf-cots convert`: convert checkpoints of other projects to this package's format, and back."""

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

LICENSE_HELP = "License of the source's weights, as a Hub identifier, for the model card."
Folder = Annotated[Path, typer.Option("--output", help="Output folder.")]
TokenizerSize = Annotated[
    int, typer.Option(help="Image size of the tokenizer in pixels: 8 per patch of the image tower.")
]


def _load_cots(source: str, revision: str | None) -> tuple["COTSModel", "COTSProcessor"]:
    from transformers import AutoProcessor

    from ..models import COTSModel
    from ..search.loading import hub_options, named_errors

    with named_errors(source):
        model = COTSModel.from_pretrained(source, **hub_options(revision))
        return model, AutoProcessor.from_pretrained(source, **hub_options(revision))


def _public_name(source: str) -> str:
    """The name of a source in a model card: a Hub id, or a folder's name without its path."""
    return Path(source).name if Path(source).exists() else source


@converters.command()
def dual_encoder(
    source: Annotated[
        str, typer.Argument(help="Hub id or folder of a dual encoder (CLIP, SigLIP, Chinese-CLIP, ALIGN, ...).")
    ],
    output: Folder,
    license: Annotated[str | None, typer.Option(help=LICENSE_HELP)] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Convert a dual encoder to a COTS with the same embeddings, with its processor and a model card."""
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
    source: Annotated[str, typer.Argument(help="COTS model: Hub id or folder.")],
    dim: Annotated[int, typer.Option(help="Number of embedding dimensions to keep.")],
    output: Folder,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Truncate a COTS's embeddings to their first dimensions, normalized again (train with nested_dims for this)."""
    from ..training.model_card import tell_of_truncation

    check_output_folder(output)
    model, processor = _load_cots(source, revision)
    before = model.config.projection_dim
    model.truncated(dim).save_pretrained(output)
    processor.save_pretrained(output)
    tell_of_truncation(output / "README.md", dim, before)
    typer.echo(f"{output}: embeddings truncated from {before} to {dim} dimensions")


@converters.command()
def text_tower(
    source: Annotated[str, typer.Argument(help="COTS model: Hub id or folder.")],
    tower: Annotated[Path, typer.Argument(help="Folder of a text tower distilled from the model's own.")],
    output: Folder,
    license: Annotated[str | None, typer.Option(help=LICENSE_HELP)] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Replace a COTS's text tower by one distilled from it (see hf-cots distill-text)."""
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
    typer.echo(f"{output}: {source} with the text tower {tower}")


@converters.command()
def dalle(
    encoder: Annotated[
        Path, typer.Argument(help="Path of encoder.pkl, downloaded from https://cdn.openai.com/dall-e/encoder.pkl.")
    ],
    decoder: Annotated[
        Path | None,
        typer.Argument(help="Path of decoder.pkl, from the same site; without it the result can only tokenize."),
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
    source: Annotated[
        str, typer.Argument(help="FLAVA's image codebook or, with --to-flava, an image tokenizer: Hub id or folder.")
    ],
    output: Folder,
    decoder: Annotated[
        Path | None, typer.Option(help="Path of DALL-E's decoder.pkl; without it the result can only tokenize.")
    ] = None,
    image_size: TokenizerSize = 192,
    to_flava: Annotated[
        bool, typer.Option("--to-flava", help="Convert an image tokenizer to FLAVA's format, without its decoder.")
    ] = False,
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
    source: Annotated[
        str, typer.Argument(help="The authors' .pth file or, with --to-simla, a converted model's folder.")
    ],
    output: Annotated[Path, typer.Option(help="Output folder; with --to-simla, output file.")],
    image_size: Annotated[int | None, typer.Option(help="Image size in pixels; by default the checkpoint's.")] = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Drop the heads for masked modeling and keyword prediction.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub id or folder of BERT's tokenizer; without it no processor is saved.")
    ] = None,
    to_simla: Annotated[
        bool, typer.Option("--to-simla", help="Convert a SimlaForPreTraining to the authors' format.")
    ] = False,
    token: Token = None,
) -> None:
    """Convert a checkpoint of SIMLA's authors (pre-training or retrieval) to transformers' format, or back."""
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
