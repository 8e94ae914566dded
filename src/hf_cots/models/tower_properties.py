"""What a tower offers: read off its transformers model, which runs once on a small input, and not guessed from names.

A tower runs with one layer and random weights where its depth can be cut, and else on the meta device, which computes
shapes alone. Of a text, which states change with a word shows whether the tower is causal. Each config is asked once
per process.

Importing this needs no torch, so that configs and processors are there without it; asking a tower does.
"""

from __future__ import annotations

import copy
import functools
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING
from transformers.utils import is_torch_available


if is_torch_available():
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from .patch_masking import add_mask_token

INPUTS = {"image": "pixel_values", "text": "input_ids"}
# A layer with more parameters is not made to be tried out; what its attention says of itself must do.
MAX_PROBE_PARAMETERS = 200_000_000
PROBE_WORDS = 64
# Linear layers that LoRA adapts in an attention that has one for each role; an attention that has them fused, or under
# other names, is adapted in all of its linear layers.
QUERIES_AND_VALUES = frozenset(
    f"{role}{suffix}" for role in ("q", "v", "query", "value") for suffix in ("", "_proj", "_lin", "_head")
)


@dataclass(frozen=True)
class TowerProperties:
    """What the models need to know of a tower.

    Args:
        name: the class of its model, for messages.
        hidden_size: width of its output states.
        default_pooling: `"cls"` where its first state sees all others and may stand for them, `"last"` for a causal
            tower, else `"mean"`.
        pooled_size: width of its own pooled output, None without one.
        patch_grid: rows and columns of an image tower's output states, without special tokens.
        num_special_tokens: how many stand in front of the patches; the first is the class token.
        can_mask_patches: whether masked patches can be replaced by a token, and each patch has a state.
        patch_convolution: of a tower that can mask patches without a mask token of its own, the name of the
            convolution that makes their embeddings.
        is_causal: whether a word's state depends on no later word.
        ignores_padding: whether no word's state depends on what the attention mask leaves out.
        takes: the arguments of its forward.
        max_positions: the longest text; None if there is no limit that its model knows.
        embedding_size: width of its word embeddings.
    """

    name: str
    hidden_size: int
    default_pooling: Literal["cls", "mean", "last"]
    pooled_size: int | None = None
    patch_grid: tuple[int, int] | None = None
    num_special_tokens: int = 0
    can_mask_patches: bool = False
    patch_convolution: str | None = None
    is_causal: bool = False
    ignores_padding: bool = True
    takes: frozenset[str] = frozenset()
    max_positions: int | None = None
    embedding_size: int | None = None

    def feature_size(self, pooling: str | None) -> int:
        """Width of the global feature that `pooling` makes of its output."""
        if pooling == "tower":
            return self.pooled_size  # type: ignore[return-value]  # checked with the config
        return self.hidden_size * (2 if pooling == "cls+mean" else 1)

    @property
    def has_class_token(self) -> bool:
        return self.num_special_tokens > 0

    def check_pooling(self, field: str, pooling: str, chosen: bool = True) -> None:
        """Check that the tower has what `pooling`, the value of the config's `field`, takes.

        Args:
            chosen: whether the config has a choice; else its model always takes this.

        Raises:
            ValueError: naming tower, value and what to write instead.
        """
        reason = None
        if pooling in ("cls", "cls+mean") and self.is_causal:
            reason = "is causal: its first state sees no other word, and would be equal for texts that begin alike"
        elif pooling in ("cls", "cls+mean") and self.patch_grid is not None and not self.has_class_token:
            reason = "has no class token: its first state is that of the top left patch"
        elif pooling == "last" and not self.is_causal:
            reason = "is not causal: its last state knows no more than the others"
        elif pooling == "tower" and self.pooled_size is None:
            reason = "has no pooled output of its own"
        if reason:
            instead = f'set {field}="{self.default_pooling}"' if chosen else "this model needs another tower"
            raise ValueError(f'{field}="{pooling}" does not fit {self.name}, which {reason}; {instead}')


_KNOWN: dict[tuple[type, str], TowerProperties] = {}


def describe_tower(
    tower: PreTrainedConfig | PreTrainedModel, kind: Literal["image", "text"] | None = None
) -> TowerProperties:
    """What a tower offers, asked of its config or of the tower itself.

    Args:
        kind: what it is to be; by default whatever it reads.

    Raises:
        ValueError: naming its class and what is missing, if it cannot be one.
    """
    config = tower if isinstance(tower, PreTrainedConfig) else tower.config
    native = native_class(type(config))
    reads = native.main_input_name
    if reads not in INPUTS.values() or (kind and reads != INPUTS[kind]):
        raise ValueError(f"{native.__name__} reads {reads} and cannot be used as the {kind or 'image or text'} tower")
    key = (type(config), config.to_json_string(use_diff=False))
    if key not in _KNOWN:
        describe = _describe_image_tower if reads == INPUTS["image"] else _describe_text_tower
        _KNOWN[key] = describe(native, config)
    return _KNOWN[key]


def native_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The transformers model of a config; of an encoder-decoder such as T5 the encoder.

    `AutoModel` does not know the halves of most dual encoders (`SiglipTextModel`, `AlignVisionModel`), which
    transformers names after their configs.

    Raises:
        ValueError: if transformers has none, or it holds several towers or a decoder.
    """
    half = getattr(transformers, f"{config_class.__name__.removesuffix('Config')}Model", None)
    if config_class in MODEL_MAPPING:
        native = MODEL_MAPPING[config_class]
    elif getattr(half, "config_class", None) is config_class:
        native = half
    else:
        raise ValueError(f"transformers has no model for {config_class.__name__}; give a vision and a text encoder")
    native = native[0] if isinstance(native, tuple) else native
    if config_class.sub_configs:
        raise ValueError(f"{native.__name__} contains several towers; pass only the vision or the text encoder")
    if getattr(config_class, "is_encoder_decoder", False):
        if config_class not in MODEL_FOR_TEXT_ENCODING_MAPPING:
            raise ValueError(f"{native.__name__} has a decoder, and transformers has no model of only its encoder")
        native = MODEL_FOR_TEXT_ENCODING_MAPPING[config_class]
    return native


# ---------------------------------------------------------------------- image towers


def image_sides(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width in pixels of the images that a tower is made for.

    Raises:
        ValueError: if its config names none, or its patches do not tile them.
    """
    size = getattr(config, "image_size", None)
    if size is None:
        raise ValueError(f"{type(config).__name__} has no image size; give one (--image_size)")
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"vision_config.image_size must be one whole number (square images), got {size}")
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and any(side % patch for side in sides):
        raise ValueError(f"vision_config.image_size={size} is not divisible by patch_size={patch}")
    return sides  # type: ignore[return-value]


def square_side(config: PreTrainedConfig) -> int:
    """Side in pixels of the square images that a tower is made for.

    Raises:
        ValueError: if its images are not square.
    """
    rows, columns = image_sides(config)
    if rows != columns:
        raise ValueError(
            f"vision_config.image_size must be one whole number (square images), got {[rows, columns]}; use an image "
            "tower for square images"
        )
    return rows


def _describe_image_tower(native: type[PreTrainedModel], config: PreTrainedConfig) -> TowerProperties:
    arguments = inspect.signature(native.forward).parameters
    _check_only_needs(native, arguments, "pixel_values")
    sides = image_sides(config)
    shallow = copy.deepcopy(config)
    alike = isinstance(getattr(config, "num_hidden_layers", None), int) and not hasattr(config, "depths")
    if alike:
        shallow.num_hidden_layers = 1  # layers that are all alike change no shape
    with _examined(native, f"takes no images of {sides[0]} x {sides[1]} pixels"), torch.no_grad():
        # What BEiT computes on the meta device stays in a cache, and would be found there on a real one.
        model = _build(native, shallow, real=alike)
        convolutions, inputs = _record_patches(model)
        pixels = torch.zeros(1, getattr(config, "num_channels", 3), *sides, device=model.device, dtype=model.dtype)
        with model.device:
            output = model(pixel_values=pixels, return_dict=True)
    grids = [grid for _, grid in convolutions]
    states = output.get("last_hidden_state")
    pooled = output.get("pooler_output")
    pooled_size = None if pooled is None else pooled[0].numel()
    if states is not None and states.ndim == 4 and states.shape[1] != states.shape[3]:  # a map of a convolutional net
        grid, width, special, merged = tuple(states.shape[2:]), states.shape[1], 0, True
    elif states is not None and states.ndim == 3:
        patch = getattr(config, "patch_size", None)
        known = grids or ([(sides[0] // patch, sides[1] // patch)] if isinstance(patch, int) else [])
        grid, special, merged = _locate_patches(native, known, states.shape[1], [states.shape[1] for states in inputs])
        width = states.shape[2]
    else:
        raise ValueError(f"{native.__name__} does not output patch states and cannot be used as the image tower")
    own_token = "bool_masked_pos" in arguments
    maskable = None
    if not own_token and not merged and len(convolutions) == 1 and grids[0] == grid:
        with pixels.device, torch.no_grad():  # on the device which from_pretrained sets to another one
            maskable = _maskable_convolution(model, convolutions[0][0], pixels, inputs, special)
    return TowerProperties(
        name=native.__name__,
        hidden_size=width,
        default_pooling="cls" if special else "mean",
        pooled_size=pooled_size,
        patch_grid=grid,
        num_special_tokens=special,
        can_mask_patches=not merged and (own_token or maskable is not None),
        patch_convolution=maskable,
        takes=frozenset(arguments),
    )


def _record_patches(model: nn.Module) -> tuple[list[tuple[str, tuple[int, int]]], list[torch.Tensor]]:
    """Lists that a forward pass fills: the convolutions before the first layer by name, each with its grid, of which
    the last makes the patches; and what the first layer gets, (1, tokens, hidden)."""
    convolutions: list[tuple[str, tuple[int, int]]] = []
    inputs: list[torch.Tensor] = []

    def convolved(name: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if not inputs:
            convolutions.append((name, tuple(output.shape[2:])))

    def entered(module: nn.Module, args: Any) -> None:
        if not inputs and args and isinstance(args[0], torch.Tensor) and args[0].ndim == 3:
            inputs.append(args[0])

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(functools.partial(convolved, name))
        elif isinstance(module, nn.ModuleList) and len(module):
            module[0].register_forward_pre_hook(entered)
    return convolutions, inputs


def _maskable_convolution(
    model: PreTrainedModel, name: str, pixels: torch.Tensor, inputs: list[torch.Tensor], special: int
) -> str | None:
    """`name`, if a mask token in place of one of this convolution's patches changes what the first layer gets of that
    patch, and nothing else; None if it does not.

    Args:
        model: to be tried out; it is left with a mask token.
        pixels, inputs: its input, and where [`_record_patches`] keeps what the first layer gets.
        special: how many tokens stand in front of the patches.
    """
    patches: Any = model.get_submodule(name)
    if pixels.device.type == "meta" or type(patches) is not nn.Conv2d or patches.kernel_size != patches.stride:
        return None
    add_mask_token(model, name)
    patches.mask_token.copy_(torch.arange(patches.out_channels))
    masked = pixels.new_zeros(1, (pixels.shape[2] // patches.stride[0]) * (pixels.shape[3] // patches.stride[1]))
    position, states = min(1, masked.shape[1] - 1), []  # the second patch of the first row
    for value in (0, 1):
        masked[0, position] = value
        inputs.clear()
        try:
            model(pixel_values=pixels, bool_masked_pos=masked, return_dict=True)
        except (ValueError, RuntimeError, TypeError):  # it looks at the number of channels
            return None
        states += inputs
    if len(states) != 2:
        return None
    changed = (states[0] != states[1]).any(dim=-1)[0].nonzero().flatten().tolist()
    return name if changed == [special + position] else None


def _locate_patches(
    native: type[PreTrainedModel], grids: list[tuple[int, int]], tokens: int, inputs: list[int]
) -> tuple[tuple[int, int], int, bool]:
    """Rows and columns of the patches among `tokens` states, the special tokens in front of them, and whether later
    layers merged patches, as Swin does.

    Raises:
        ValueError: if patches were dropped, as ViT-MAE does at random, or none can be found.
    """
    if grids:
        rows, columns = grids[-1]
        if inputs and inputs[0] < rows * columns:
            raise ValueError(
                f"{native.__name__} drops patches: of {rows} x {columns} it keeps {inputs[0]} tokens; use a model "
                "that keeps them all, such as ViTModel for ViT-MAE's weights"
            )
        for factor in range(1, min(rows, columns) + 1):
            grid = (-(-rows // factor), -(-columns // factor))
            special = tokens - grid[0] * grid[1]
            if factor > 1 and special > 1:  # GroupViT's states are groups
                break
            if special >= 0:
                return grid, special, factor > 1
    raise ValueError(f"{native.__name__} outputs {tokens} states, which do not form a grid of patches")


# ---------------------------------------------------------------------- text towers


def _describe_text_tower(native: type[PreTrainedModel], config: PreTrainedConfig) -> TowerProperties:
    arguments = inspect.signature(native.forward).parameters
    _check_only_needs(native, arguments, "input_ids")
    if "attention_mask" not in arguments:
        raise ValueError(
            f"{native.__name__} does not accept an attention mask, so padding would change a text's embedding"
        )
    with _examined(native, "cannot be the text tower"):
        model = _small_text_model(native, config)
        sees_later, sees_earlier, padding, width, pooled_size = _measure_context(model, arguments)
    words = _word_embeddings(model)
    causal = sees_earlier and not sees_later
    return TowerProperties(
        name=native.__name__,
        hidden_size=width,
        default_pooling="last" if causal else "mean" if config.is_encoder_decoder else "cls",
        pooled_size=pooled_size,
        is_causal=causal,
        ignores_padding=not padding,
        takes=frozenset(arguments),
        max_positions=_count_positions(model, config, words),
        embedding_size=None if words is None else words.weight.shape[1],
    )


def _small_text_model(native: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model with one layer and few words; on the meta device if even that is large. All widths are as they are."""
    small = copy.deepcopy(config)
    words = min(PROBE_WORDS, getattr(config, "vocab_size", PROBE_WORDS))
    for name, value in vars(config).items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= words:
            setattr(small, name, words - 1)
    small.vocab_size, small.use_cache = words, False
    try:
        small.num_hidden_layers = 1
        model = _build(native, small)
    except (NotImplementedError, IndexError, KeyError, ValueError, TypeError):  # a depth that cannot be cut
        small.num_hidden_layers = config.num_hidden_layers
        model = _build(native, small)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.device.type == "cpu":
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def _measure_context(model: PreTrainedModel, arguments: Any) -> tuple[bool, bool, bool, int, int | None]:
    """Whether states of a text change with a later word, with an earlier one, and with one that the attention mask
    leaves out; their width, and that of the text's pooled output, if there is one.

    Raises:
        ValueError: if there is not one state for each word.
    """
    options = {"use_cache": False} if "use_cache" in arguments else {}
    words = model.config.vocab_size
    ids = torch.arange(words // 2, words // 2 + 8, device=model.device)[None] % words
    other_last, other_first = ids.clone(), ids.clone()
    other_last[0, -1], other_first[0, 0] = ids[0, 1], ids[0, 2]
    full = torch.ones_like(ids)
    without_last = full.clone()
    without_last[0, -1] = 0
    with torch.no_grad(), model.device:
        outputs = [
            model(input_ids=x, attention_mask=mask, return_dict=True, **options)
            for x, mask in (
                (ids, full),
                (other_last, full),
                (other_first, full),
                (ids, without_last),
                (other_last, without_last),
            )
        ]
    states, late, early, cut, late_cut = (output.last_hidden_state for output in outputs)
    pooled = outputs[0].get("pooler_output")
    pooled_size = None if pooled is None else pooled.shape[-1]
    if states.shape[:2] != ids.shape:
        raise ValueError(f"it outputs {states.shape[1]} states for {ids.shape[1]} words")
    if states.device.type == "meta":
        causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
        return not (causal and all(causal)), True, False, states.shape[-1], pooled_size
    smallest = 1e-4 * states.abs().max()

    def changed(difference: torch.Tensor) -> bool:
        return bool(difference.abs().max() > smallest)

    later_word, earlier_word = changed((late - states)[0, :-1]), changed((early - states)[0, 1:])
    return later_word, earlier_word, changed((late_cut - cut)[0, :-1]), states.shape[-1], pooled_size


def _word_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _count_positions(model: PreTrainedModel, config: PreTrainedConfig, words: nn.Module | None) -> int | None:
    """The longest text that has a position for each word. RoBERTa and its like count from behind the padding id, so
    that their first positions are never used."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for module in model.modules():
        counted = isinstance(module, nn.Embedding) and module is not words and module.num_embeddings == limit
        if counted and module.padding_idx is not None:
            padding = getattr(config, "pad_token_id", None)
            return limit - (module.padding_idx if padding is None else padding) - 1
    return limit


# ---------------------------------------------------------------------- both


def _build(native: type[PreTrainedModel], config: PreTrainedConfig, real: bool = True) -> PreTrainedModel:
    """A model to be tried out, in evaluation mode: on the CPU in float32, or on the meta device if it is large or need
    not be `real`. Random streams stay as they are, and its attention needs no kernel that the machine may lack."""

    def make() -> PreTrainedModel:
        return native._from_config(copy.deepcopy(config), attn_implementation="eager").eval()

    with torch.device("meta"):
        model = make()
    if not real or model.num_parameters() > MAX_PROBE_PARAMETERS:
        return model
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return make().float()


def _check_only_needs(native: type[PreTrainedModel], arguments: Any, given: str) -> None:
    """Check that a forward needs nothing but its main input.

    Raises:
        ValueError: naming what else it needs.
    """
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        name
        for name, argument in arguments.items()
        if argument.default is argument.empty and argument.kind not in kinds and name not in ("self", given)
    ]
    if needed:
        raise ValueError(f"{native.__name__} needs {', '.join(needed)} in addition to {given}, which is not supported")


@contextmanager
def _examined(native: type[PreTrainedModel], problem: str):
    """Turn what a model raises on an input that it should take into one line that names it and the problem."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{native.__name__} {problem}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), repr(error))


def attention_layers(tower: nn.Module) -> list[str]:
    """Names of the linear layers of a tower's attention that LoRA adapts, in order; none if there is no attention."""
    names: list[str] = []
    for name, module in tower.named_modules():
        # torch's own attention reads the weights of its layers and would pass adapters by.
        if "Attention" not in type(module).__name__ or isinstance(module, nn.MultiheadAttention):
            continue
        linear = [part for part, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))]
        roles = [part for part in linear if part in QUERIES_AND_VALUES]
        names += [f"{name}.{part}" for part in (roles or linear if _projects(linear) else [])]
    return names


def _projects(linear: list[str]) -> bool:
    """Whether an attention module makes queries, keys and values: BERT's has a second one for the output around it,
    which has a single linear layer called `dense`."""
    return linear != ["dense"]


__all__ = ["TowerProperties", "attention_layers", "describe_tower", "image_sides", "native_class", "square_side"]
