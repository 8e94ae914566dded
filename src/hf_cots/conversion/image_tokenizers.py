"""DALL-E's discrete VAE and FLAVA's image codebook as [`COTSImageTokenizer`], and FLAVA's back again.

OpenAI published two pickles of modules, which would run what they name when they are loaded: see
[`saved_modules`] for how they are read without that.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from .._errors import naming
from ..models import COTSImageTokenizer, COTSImageTokenizerConfig
from .saved_modules import StandIn, read_saved_module


NUM_GROUPS = 4  # both public implementations have no other number
MODULES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)

# DALL-E's names, and FLAVA's, which have one more level of nesting.
OUTER = {"blocks.input": "stem", "blocks.output.conv": "head"}
BLOCK = re.compile(r"blocks\.group_(\d+)\.(?:group\.)?block_(\d+)\.(?:id_path|res_path\.(?:path\.)?conv_(\d+))")
KINDS = {"w": "weight", "b": "bias", "weight": "weight", "bias": "bias"}


def rename_parameter(name: str) -> str:
    """Translate the name of a parameter of DALL-E's or FLAVA's to the one in our encoder or decoder.

    Raises:
        ValueError: if it is none of theirs.
    """
    module, _, kind = name.rpartition(".")
    block = BLOCK.fullmatch(module)
    if kind not in KINDS or not (module in OUTER or block):
        raise ValueError(f"'{name}' is no parameter of DALL-E's discrete VAE")
    if block is None:
        return f"{OUTER[module]}.{KINDS[kind]}"
    group, index, conv = block.groups()
    part = "shortcut" if conv is None else f"convs.{int(conv) - 1}"
    return f"groups.{int(group) - 1}.{int(index) - 1}.{part}.{KINDS[kind]}"


def _parameters(module: StandIn, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters below a stand-in, by their dotted names."""
    content = vars(module)
    for name, parameter in content["_parameters"].items():
        if parameter is not None:
            yield prefix + name, parameter
    for name, child in content["_modules"].items():
        yield from _parameters(child, f"{prefix}{name}.")


def read_dalle(path: Path | str, kind: str) -> dict[str, torch.Tensor]:
    """Read one of OpenAI's pickles without running any of it.

    Args:
        path: `encoder.pkl` or `decoder.pkl`.
        kind: "Encoder" or "Decoder", what the file must hold.

    Returns:
        Its parameters, float32, under our names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming what the file asks for, if that is more than tensors in modules of DALL-E's classes; or if
            it is damaged or holds another kind of module.
    """
    module = read_saved_module(path, MODULES)
    held = type(module).__name__
    if not isinstance(module, StandIn) or held != kind:
        raise ValueError(f"{path} must hold DALL-E's {kind}, but holds {held}")
    try:
        parameters = {rename_parameter(name): tensor for name, tensor in _parameters(module)}
        claimed, size = sum(tensor.nbytes for tensor in parameters.values()), Path(path).stat().st_size
        if claimed > size:
            raise ValueError(f"{path} has {size:,} bytes, and parameters that share them claim {claimed:,}")
        return {name: tensor.float() for name, tensor in parameters.items()}
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"{path} holds no complete {kind}: {type(error).__name__} {error}") from None


def _assemble(
    encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor] | None, image_size: int, source: str
) -> COTSImageTokenizer:
    """Build a model whose sizes are read off the weights."""
    try:
        stem, head = encoder["stem.weight"], encoder["head.weight"]
        with naming(source):
            config = COTSImageTokenizerConfig(
                image_size=image_size,
                num_channels=stem.shape[1],
                codebook_size=head.shape[0],
                hidden_size=stem.shape[0],
                decoder_input_size=128 if decoder is None else decoder["stem.weight"].shape[0],
                num_groups=NUM_GROUPS,
                blocks_per_group=len({name.split(".")[2] for name in encoder if name.startswith("groups.0.")}),
                has_decoder=decoder is not None,
                reconstruction="logit_laplace",
                kl_weight=6.6 / 192,
            )
    except KeyError as missing:
        raise ValueError(f"{source} lacks the parameter {missing}") from None
    except IndexError:
        raise ValueError(f"{source} holds weights of fewer axes than those of a convolution") from None
    with torch.device("meta"):  # which takes no memory, whatever sizes a file claims
        wanted = {name: tensor.shape for name, tensor in COTSImageTokenizer(config).state_dict().items()}
    parts = {"encoder": encoder, "decoder": decoder or {}}
    state = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{source} does not fit together in {len(wrong)} parameters, the first is {name}: wanted "
            f"{list(wanted.get(name, []))}, found {list(given.get(name, []))}"
        )
    model = COTSImageTokenizer(config)
    model.load_state_dict(state)
    return model.eval()


def convert_dalle(encoder: Path | str, decoder: Path | str | None = None, image_size: int = 192) -> COTSImageTokenizer:
    """Convert OpenAI's `encoder.pkl` and `decoder.pkl` to one model, in evaluation mode.

    Args:
        encoder, decoder: the files; without a decoder the model can only tokenize.
        image_size: side in pixels of the images that it will be used on, a multiple of 8.

    Raises:
        FileNotFoundError, ValueError: as [`read_dalle`] says, or if the two files do not belong together.
    """
    parts = read_dalle(encoder, "Encoder"), None if decoder is None else read_dalle(decoder, "Decoder")
    return _assemble(*parts, image_size, " and ".join(str(path) for path in (encoder, decoder) if path))


def convert_flava(
    codebook: FlavaImageCodebook, decoder: Path | str | None = None, image_size: int = 192
) -> COTSImageTokenizer:
    """Convert FLAVA's image codebook, which is DALL-E's encoder, to our model in evaluation mode.

    Args:
        codebook: of `FlavaImageCodebook.from_pretrained("facebook/flava-image-codebook")`.
        decoder: DALL-E's `decoder.pkl`, which FLAVA did not publish again; without it the model can only tokenize.
        image_size: as for [`convert_dalle`]; 112 in FLAVA.

    Raises:
        FileNotFoundError, ValueError: as for [`convert_dalle`].
    """
    encoder = {rename_parameter(name): tensor.float() for name, tensor in codebook.state_dict().items()}
    parts = encoder, None if decoder is None else read_dalle(decoder, "Decoder")
    return _assemble(*parts, image_size, "FLAVA's codebook" + (f" and {decoder}" if decoder else ""))


def to_flava(tokenizer: COTSImageTokenizer) -> FlavaImageCodebook:
    """Convert our encoder to FLAVA's: what FLAVA's pre-training and other users of its codebook can load.

    Theirs takes pixels mapped by [`map_pixels`], as its own image processor gives them.

    Raises:
        ValueError: if the model has another number of groups than 4.
    """
    config = tokenizer.config
    if config.num_groups != NUM_GROUPS:
        raise ValueError(f"FLAVA's codebook has {NUM_GROUPS} groups, this image tokenizer {config.num_groups}")
    theirs = FlavaImageCodebook(
        FlavaImageCodebookConfig(
            num_groups=config.num_groups,
            input_channels=config.num_channels,
            num_blocks_per_group=config.blocks_per_group,
            hidden_size=config.hidden_size,
            vocab_size=config.codebook_size,
        )
    )
    ours = tokenizer.encoder.state_dict()
    theirs.load_state_dict({name: ours[rename_parameter(name)] for name in theirs.state_dict()})
    return theirs.eval()
