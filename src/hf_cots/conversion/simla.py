"""The checkpoints of SIMLA's authors as [`SimlaForPreTraining`], and back.

Both of their kinds are known: pre-training (256 pixels, all heads) and retrieval (384 pixels, no masked modelling, no
keywords, the ids of the queued images). Beside the weights such a file pickles an optimizer and the run's
configuration object; torch's restricted unpickler reads it, with stand-ins that can do nothing in place of the
configuration's classes.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers, processors
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers import BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ViTConfig

from .._errors import naming
from ..models import SimlaConfig, SimlaForPreTraining
from .saved_modules import Refused, StandIn, check_archive, check_tensor, make_stand_ins


logger = logging.getLogger(__name__)

AUTHORS_GRID = 16  # patches in a row of the 256 pixels that they mask 75 patches of
HEAD_SIZE = 64  # of BERT-base and ViT-B/16
# The word classifier's weight is the word embeddings'; positions are counted, not learned.
TIED = ("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
# What an omegaconf configuration is pickled with.
REPLACED_CLASSES = re.compile(
    r"(omegaconf|typing)\..*|builtins\.(bool|dict|float|int|list|str)|collections\.defaultdict"
)
QUEUES = {"image_queue": "key_queue.image_keys", "text_queue": "key_queue.text_keys"}


class ConfigurationStandIn(StandIn):
    """Replaces a class of a pickled configuration: it takes any arguments and attributes, and drops them."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state) -> None:
        pass


def read_simla(path: Path | str) -> dict[str, torch.Tensor]:
    """Read the tensors under `model` in a checkpoint of the authors', without running anything that it names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such tensors, or asks for code beyond what a configuration is pickled with.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        check_archive(path)
        asked = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint that torch.save wrote: {error}") from None
    refused = [name for name in asked if not REPLACED_CLASSES.fullmatch(name)]
    if refused:
        raise ValueError(f"{path} asks for code that is not run here: {', '.join(sorted(refused))}")
    stand_ins = [(cls, name) for name, cls in make_stand_ins(asked, ConfigurationStandIn).items()]
    try:
        with safe_globals(stand_ins):  # type: ignore[arg-type]
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile or damaged pickle can bring the unpickler to raise anything
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from None
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or "visual_encoder.pos_embed" not in state:
        raise ValueError(f"{path} has no 'model' with SIMLA's weights")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_complex():
            raise ValueError(f"{path}: '{name}' is no tensor of weights")
        try:
            check_tensor(tensor)
        except Refused as refused:
            raise ValueError(f"{path}: '{name}': {refused}") from None
    return state


def first_line(error: Exception) -> str:
    """The beginning of an error's message, or its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def tower_names(config: SimlaConfig, suffix: str) -> Iterator[tuple[str, list[str]]]:
    """List their name of each weight with ours: several where they keep query, key and value in one.

    Args:
        config: says which parts exist.
        suffix: "" for the trained model, "_m" for the momentum encoder.
    """
    ours, heads = ("momentum_encoder", "momentum_heads") if suffix else ("simla", "heads")
    vision, embeddings = f"visual_encoder{suffix}", f"{ours}.vision_model.embeddings"
    yield f"{vision}.cls_token", [f"{embeddings}.cls_token"]
    yield f"{vision}.pos_embed", [f"{embeddings}.position_embeddings"]
    if config.mim_weight > 0:
        yield f"{vision}.mask_token", [f"{embeddings}.mask_token"]
    # The authors' retrieval model holds the bare encoder, their pre-training model the one with a word classifier.
    text = f"text_encoder{suffix}.bert" if config.mlm_weight > 0 else f"text_encoder{suffix}"
    stack = f"{ours}.text_model"
    for kind in ("weight", "bias"):
        yield f"{vision}.patch_embed.proj.{kind}", [f"{embeddings}.patch_embeddings.projection.{kind}"]
        yield f"{vision}.norm.{kind}", [f"{ours}.vision_model.layernorm.{kind}"]
        for layer in range(config.vision_config.num_hidden_layers):
            theirs, block = f"{vision}.blocks.{layer}", f"{ours}.vision_model.layers.{layer}"
            yield f"{theirs}.norm1.{kind}", [f"{block}.layernorm_before.{kind}"]
            yield f"{theirs}.norm2.{kind}", [f"{block}.layernorm_after.{kind}"]
            yield f"{theirs}.attn.qkv.{kind}", [f"{block}.attention.{part}_proj.{kind}" for part in "qkv"]
            yield f"{theirs}.attn.proj.{kind}", [f"{block}.attention.o_proj.{kind}"]
            yield f"{theirs}.mlp.fc1.{kind}", [f"{block}.mlp.fc1.{kind}"]
            yield f"{theirs}.mlp.fc2.{kind}", [f"{block}.mlp.fc2.{kind}"]
        yield f"{text}.embeddings.LayerNorm.{kind}", [f"{stack}.layer_norm.{kind}"]
        for layer in range(config.text_config.num_hidden_layers):
            theirs, block = f"{text}.encoder.layer.{layer}", f"{stack}.layers.{layer}"
            for attention in ("attention", "crossattention"):
                for part in ("query", "key", "value"):
                    yield f"{theirs}.{attention}.self.{part}.{kind}", [f"{block}.{attention}.{part}.{kind}"]
                for part in ("dense", "LayerNorm"):
                    name = f"{attention}.output.{part}.{kind}"
                    yield f"{theirs}.{name}", [f"{block}.{name}"]
            for part in ("intermediate.dense", "output.dense", "output.LayerNorm"):
                yield f"{theirs}.{part}.{kind}", [f"{block}.{part}.{kind}"]
        yield f"vision_proj{suffix}.{kind}", [f"{ours}.visual_projection.{kind}"]
        yield f"text_proj{suffix}.{kind}", [f"{ours}.text_projection.{kind}"]
        if not suffix:
            yield f"itm_head.{kind}", [f"{ours}.itm_head.{kind}"]
        if config.mlm_weight > 0:
            for part in ("dense", "LayerNorm"):
                theirs = f"text_encoder{suffix}.cls.predictions.transform.{part}.{kind}"
                yield theirs, [f"{heads}.word_transform.{part}.{kind}"]
        if config.mim_weight > 0:
            yield f"mim_head{suffix}.{kind}", [f"{heads}.mim_head.{kind}"]
        if config.psl_weight > 0:
            yield f"concept_head{suffix}.{kind}", [f"{ours}.concept_head.{kind}"]
    for part in ("word_embeddings", "position_embeddings"):
        yield f"{text}.embeddings.{part}.weight", [f"{stack}.{part}.weight"]
    if config.mlm_weight > 0:
        yield f"text_encoder{suffix}.cls.predictions.bias", [f"{heads}.word_bias"]


def all_names(config: SimlaConfig) -> Iterator[tuple[str, list[str]]]:
    """[`tower_names`] of the trained model and of the momentum encoder."""
    yield from tower_names(config, "")
    yield from tower_names(config, "_m")


def read_config(state: dict[str, torch.Tensor], image_size: int | None = None, **fields) -> SimlaConfig:
    """Read a config off the shapes of the authors' weights.

    Args:
        state: of [`read_simla`].
        image_size: in pixels, if another than the checkpoint's is wanted.
        fields: of [`SimlaConfig`].
    """
    pretraining = "text_encoder.cls.predictions.bias" in state
    text = "text_encoder.bert" if pretraining else "text_encoder"
    width, _, patch_size, _ = state["visual_encoder.patch_embed.proj.weight"].shape
    vocab_size, positions = (
        len(state[f"{text}.embeddings.{part}.weight"]) for part in ("word_embeddings", "position_embeddings")
    )
    side = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    heads = max(1, width // HEAD_SIZE)
    if side < 1 or patch_size < 1:
        raise IndexError(f"{side} patches of {patch_size} pixels in a row")
    if not pretraining:
        fields = {"mlm_weight": 0, "mim_weight": 0, "psl_weight": 0} | fields
    grid = (image_size or side * patch_size) // patch_size
    if fields.get("mim_weight", 1) > 0:
        fields = mask_of_grid(grid) | fields
    codes = {"image_size": 8 * grid} | dict(fields.pop("image_tokenizer_config", {}))
    if "mim_head.weight" in state:
        codes["codebook_size"] = len(state["mim_head.weight"])
    return SimlaConfig(
        vision_config=ViTConfig(
            image_size=image_size or side * patch_size,
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=_count_layers(state, "visual_encoder.blocks."),
            num_attention_heads=heads,
            intermediate_size=len(state["visual_encoder.blocks.0.mlp.fc1.bias"]),
            layer_norm_eps=1e-6,
        ),
        text_config=BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=_count_layers(state, f"{text}.encoder.layer."),
            num_attention_heads=heads,
            intermediate_size=len(state[f"{text}.encoder.layer.0.intermediate.dense.bias"]),
            max_position_embeddings=positions,
        ),
        image_tokenizer_config=codes,
        projection_dim=len(state["vision_proj.weight"]),
        queue_size=state["image_queue"].shape[1],
        **fields,
    )


def mask_of_grid(grid: int) -> dict[str, int]:
    """The config's fields for as large a part of a small image as the authors mask of 16 x 16 patches; none where
    their mask fits, which does not grow with the image."""
    usual, smallest = SimlaConfig.num_masked_patches, SimlaConfig.min_block_patches
    if usual <= grid**2:
        return {}
    share = grid**2 / AUTHORS_GRID**2
    fields = {
        "num_masked_patches": max(1, round(usual * share)),
        "min_block_patches": max(1, round(smallest * share)),
    }
    logger.warning(
        "%d masked patches do not fit an image of %d: the converted model masks %d, in blocks of at least %d",
        usual,
        grid**2,
        *fields.values(),
    )
    return fields


def _count_layers(state: dict[str, torch.Tensor], prefix: str) -> int:
    """Count the layers that weights of these names belong to."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def resize_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize position embeddings (1, 1 + n, hidden) to a grid of another side: bicubic, the first token's stays."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def convert_simla(path: Path | str, image_size: int | None = None, **fields) -> SimlaForPreTraining:
    """Convert a checkpoint of the authors' to a model, in evaluation mode.

    The image tokenizer is not in their file; its weights are random, and [`save_converted`] leaves them out.

    Args:
        path: their file.
        image_size: another resolution in pixels; position embeddings are interpolated.
        fields: of [`SimlaConfig`]; `mlm_weight=0, mim_weight=0, psl_weight=0` make a pre-training file a retrieval
            model, whose momentum encoders and queues are kept.

    Raises:
        FileNotFoundError, ValueError: as [`read_simla`]; or naming weights that are missing or unknown.
    """
    state = read_simla(path)
    try:
        with naming(path):
            config = read_config(state, image_size, **fields)
    except KeyError as error:
        raise ValueError(f"{path} is no checkpoint of SIMLA: missing {error}") from None
    except (IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is no checkpoint of SIMLA: a weight has another shape ({error})") from None
    if config.mlm_weight == 0:  # a pre-training file read for retrieval
        state = {re.sub(r"^(text_encoder(_m)?)\.bert\.", r"\1.", name): tensor for name, tensor in state.items()}
    check_names(path, state, config)
    with torch.device("meta"):
        expected = SimlaForPreTraining(config).state_dict()
    ours = {}
    for theirs, names in all_names(config):
        tensor = state[theirs]
        if theirs.endswith(".pos_embed"):
            tensor = resize_positions(tensor, config.patch_grid)
        for name, part in zip(names, tensor.chunk(len(names))):
            if expected[name].shape != part.shape:
                raise ValueError(f"{path}: {theirs} has the shape {tuple(tensor.shape)}, which does not fit the rest")
            ours[name] = part
    temperature = state["temp"].view(1).float()
    ours |= {"simla.temperature": temperature, "momentum_encoder.temperature": temperature}
    for kind in ("weight", "bias"):  # their momentum encoder has none
        ours[f"momentum_encoder.itm_head.{kind}"] = ours[f"simla.itm_head.{kind}"]
    ours |= convert_queue(state, config.queue_size)
    for name, tensor in ours.items():
        if expected[name].shape != tensor.shape:
            raise ValueError(f"{path}: {name} would have the shape {tuple(tensor.shape)}, which does not fit the rest")
    return SimlaForPreTraining.from_pretrained(None, config=config, state_dict=ours)


def check_names(path: Path | str, state: dict[str, torch.Tensor], config: SimlaConfig) -> None:
    """Check that all weights are there, and none that belongs to no SIMLA.

    Raises:
        ValueError: naming those that are missing or unknown.
    """
    names = {theirs for theirs, _ in all_names(config)} | {"temp", *QUEUES, "queue_ptr"}
    missing = sorted(names - set(state))
    dropped = ("text_encoder.cls.", "text_encoder_m.cls.", "mim_head", "concept_head")
    unknown = sorted(
        name
        for name in set(state) - names - {"idx_queue"}
        if not name.endswith((*TIED, "mask_token")) and not name.startswith(dropped)
    )
    if missing or unknown:
        raise ValueError(f"{path} is no checkpoint of SIMLA: missing {missing[:5]}, unknown {unknown[:5]}")


def convert_queue(state: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """Convert the queue's buffers. Where the file does not say which images are queued, each slot gets an id of its
    own that no image has."""
    unnamed = torch.iinfo(torch.long).min + torch.arange(size)
    return {
        **{name: state[theirs].t().contiguous() for theirs, name in QUEUES.items()},
        "key_queue.image_ids": state["idx_queue"][0].long() if "idx_queue" in state else unnamed,
        "key_queue.pointer": state["queue_ptr"][0].long(),
        "key_queue.filled": torch.tensor(size),
    }


def save_converted(model: SimlaForPreTraining, folder: Path | str) -> None:
    """Save without the image tokenizer's random weights, so that training asks for trained ones."""
    state = {name: rows for name, rows in model.state_dict().items() if not name.startswith("image_tokenizer.")}
    model.save_pretrained(folder, state_dict=state)


def to_simla(model: SimlaForPreTraining) -> dict[str, dict[str, torch.Tensor]]:
    """Convert a model to the authors' names: `{"model": ...}`, for `torch.save`."""
    own, config = model.state_dict(), model.config
    state = {theirs: torch.cat([own[name] for name in ours]) for theirs, ours in all_names(config)}
    for suffix in ("", "_m"):
        root = f"text_encoder{suffix}"
        bert = f"{root}.bert" if config.mlm_weight > 0 else root
        positions = config.text_config.max_position_embeddings
        state[f"{bert}.embeddings.position_ids"] = torch.arange(positions)[None]
        if config.mlm_weight > 0:
            state[f"{root}.cls.predictions.decoder.weight"] = state[f"{bert}.embeddings.word_embeddings.weight"]
            state[f"{root}.cls.predictions.decoder.bias"] = state[f"{root}.cls.predictions.bias"]
    state["temp"] = own["simla.temperature"][0].clone()
    for theirs, name in QUEUES.items():
        state[theirs] = own[name].t().contiguous()
    state["queue_ptr"] = own["key_queue.pointer"][None].clone()
    if config.mlm_weight == 0:
        state["idx_queue"] = own["key_queue.image_ids"][None].clone()
    return {"model": state}


def simla_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int = 25) -> PreTrainedTokenizerFast:
    """Make a BERT tokenizer read as the authors' code does: punctuation removed, dashes and slashes to spaces,
    `[CLS]` in front and no `[SEP]` behind.

    Args:
        tokenizer: fast, of BERT's vocabulary.
        max_length: longer texts are cut; 25 in pre-training.
    """
    words = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    words.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[,.'!?\"()*#:;~]"), ""),
            normalizers.Replace(Regex("[-/]"), " "),
            words.normalizer,
        ]
    )
    first = [(tokenizer.cls_token, tokenizer.cls_token_id)]
    words.post_processor = processors.TemplateProcessing(single=f"{tokenizer.cls_token} $A", special_tokens=first)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=max_length, **special)
