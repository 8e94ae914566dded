"""The towers of the models: pretrained encoders of transformers, and the pooling of their outputs."""

import contextlib
import copy
import copyreg
import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .model_files import named_damage
from .patch_masking import MaskablePatches, add_mask_token
from .tower_properties import describe_tower, image_sides, native_class


@functools.cache
def tower_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """A thin subclass of the transformers model that belongs to a config: ours by module, theirs in everything else.

    transformers saves its native models under their older key names, which Trainer's resume does not translate back:
    native ViT layers would come back re-initialized, with a warning only. A class of this module is left alone.

    Raises:
        ValueError: if transformers has no plain model for this config.
    """
    return own_class(native_class(config_class))  # type: ignore[arg-type]


class TowerType(type):
    """The type of the classes that [`tower_class`] makes, which pickle cannot find by their names."""


@functools.cache
def own_class(native: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The thin subclass of a transformers model; the same one for the same class."""

    def _init_weights(self: PreTrainedModel, module: nn.Module) -> None:
        native._init_weights(self, module)
        if isinstance(module, MaskablePatches):
            init.zeros_(module.mask_token)

    return TowerType(f"COTS{native.__name__}", (native,), {"__module__": __name__, "_init_weights": _init_weights})


def reduce_tower_type(cls: TowerType) -> tuple | str:
    """What pickle writes of such a class, and so of a tower or a model: the transformers class, from which the reading
    process makes the subclass again; of a user's own subclass the name, as usual."""
    return (own_class, cls.__bases__) if cls.__module__ == __name__ else cls.__qualname__


copyreg.pickle(TowerType, reduce_tower_type)


def build_tower(config: PreTrainedConfig, **options: bool) -> PreTrainedModel:
    """A randomly initialized tower; of `options`, those that its constructor knows are given to it.

    BEiT is told by its config, not its constructor, to have a mask token. A tower that has none of its own, such as
    CLIP's, is given one ([`add_mask_token`]).
    """
    cls = tower_class(type(config))  # type: ignore[arg-type]
    if options.get("use_mask_token") and not describe_tower(config).can_mask_patches:
        raise ValueError(
            f"{cls.__name__} cannot mask patches, which masked vision modeling needs; use another vision tower, or "
            "set mvm_weight=0"
        )
    known = inspect.signature(cls.__init__).parameters
    if options.get("use_mask_token") and getattr(config, "use_mask_token", True) is False:
        config = copy.copy(config)
        config.use_mask_token = True
    tower = cls._from_config(config, **{name: value for name, value in options.items() if name in known})
    for module in tower.modules():  # DINOv3's encoder is a native model of its own, whose keys would be translated
        if isinstance(module, PreTrainedModel) and module is not tower:
            module.__class__ = own_class(type(module))  # type: ignore[arg-type, assignment]
    if options.get("use_mask_token") and (convolution := describe_tower(config).patch_convolution):
        add_mask_token(tower, convolution)
    return tower


HALVES = {"image": "vision", "text": "text"}


def tower_config(config: PreTrainedConfig, kind: Literal["image", "text"] | None) -> PreTrainedConfig:
    """The config of the image or text half, if a config is that of a dual encoder such as CLIP; else itself."""
    halves = {half: f"{prefix}_config" for half, prefix in HALVES.items()}
    if kind is None or not set(halves.values()) <= set(config.sub_configs):
        return config
    return getattr(config, halves[kind])


def load_tower(source: str | PreTrainedModel, kind: Literal["image", "text"] | None = None) -> PreTrainedModel:
    """A pretrained tower from a Hub id, a folder or a model in memory, loaded through its native class.

    Args:
        kind: which half to take of a dual encoder (CLIP, SigLIP, ALIGN, VisionTextDualEncoder, COTS, ...).

    Raises:
        OSError: naming the file, if one is damaged or a git-lfs pointer.
        ValueError: if it is a model of several modalities and no dual encoder, or lacks weights of the half.
    """
    if not isinstance(source, str):
        half = tower_config(source.config, kind)
        native_class(type(half))
        return source if half is source.config else _take_half(source, kind, type(source).__name__)
    with named_damage(source):
        config = AutoConfig.from_pretrained(source)
        half = tower_config(config, kind)
        native = native_class(type(half))
        if half is not config:
            model, info = AutoModel.from_pretrained(source, output_loading_info=True)
            return _take_half(model, kind, source, info["missing_keys"])
        unlisted = config.is_encoder_decoder or type(config) not in MODEL_MAPPING
        return (native if unlisted else AutoModel).from_pretrained(source)


def _take_half(
    model: PreTrainedModel, kind: Literal["image", "text"] | None, name: str, missing: Iterable[str] = ()
) -> PreTrainedModel:
    """The image or text tower of a dual encoder.

    Args:
        name: of the dual encoder, for messages.
        missing: parameters that its file lacks.

    Raises:
        ValueError: if it has no such tower, or the file lacks some of its weights.
    """
    attribute = f"{HALVES[kind]}_model"  # type: ignore[index]
    tower = getattr(model, attribute, None)
    if not isinstance(tower, native_class(type(tower_config(model.config, kind)))):
        raise ValueError(
            f"{name}: the {kind} half of {type(model).__name__} is not a separate tower; use another model"
        )
    lacking = sorted(key for key in missing if key.startswith(f"{attribute}."))
    if lacking:
        raise ValueError(f"{name}: the file is missing weights of the {kind} tower: {', '.join(lacking[:3])}")
    return tower


def copy_tower(target: PreTrainedModel, source: PreTrainedModel) -> None:
    """Copy pretrained weights into one of our towers; position embeddings are interpolated to its image size. The
    pooler is left behind unless it has one, the mask token may be new.

    Raises:
        ValueError: naming the parameters, if anything else is missing, or depends on the image size.
    """
    state = source.state_dict()
    if getattr(target.config, "image_size", None) != getattr(source.config, "image_size", None):
        state |= interpolate_positions(source, target)
    result = target.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("mask_token")]
    if missing:
        raise ValueError(f"{type(source).__name__} does not fit {type(target).__name__}; missing: {missing[:5]}")


@torch.no_grad()
def interpolate_positions(source: PreTrainedModel, target: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The parameters of an image tower that depend on the image size, interpolated from `source`'s size to `target`'s
    as the tower itself does under `interpolate_pos_encoding`.

    Raises:
        ValueError: naming those of which that is not known.
    """
    size = image_sides(target.config)
    made, ours = {}, target.state_dict()
    for name, tensor in source.state_dict().items():
        if name not in ours or ours[name].shape == tensor.shape:
            continue
        parts, new, width = name.split("."), None, tensor.shape[-1]
        owners = (source.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) - 1, -1, -1))
        owner = next((module for module in owners if hasattr(module, "interpolate_pos_encoding")), None)
        if name.endswith("relative_position_bias_table"):
            new = _interpolate_relative_positions(tensor, ours[name], target.config)
        elif owner is not None and width == ours[name].shape[-1]:
            with contextlib.suppress(RuntimeError):  # positions of a grid that is not square
                new = owner.interpolate_pos_encoding(tensor.new_zeros(1, ours[name].numel() // width, width), *size)
        if new is None or new.numel() != ours[name].numel():
            raise ValueError(
                f"{type(source).__name__} does not support image_size={size[0]}: its {name} is made for "
                f"{getattr(source.config, 'image_size', 'another size')} pixels"
            )
        made[name] = new.reshape(ours[name].shape)
    return made


def _interpolate_relative_positions(
    table: torch.Tensor, wanted: torch.Tensor, config: PreTrainedConfig
) -> torch.Tensor | None:
    """BEiT's bias of each distance between two patches, (2 rows - 1) (2 columns - 1) of them, and three more for the
    class token, which stay as they are; None for a table of another kind."""
    rows, columns = (2 * (side // config.patch_size) - 1 for side in image_sides(config))
    before = round((len(table) - 3) ** 0.5)
    if len(wanted) != rows * columns + 3 or before**2 != len(table) - 3:
        return None
    distances = table[:-3].T.reshape(1, -1, before, before)
    distances = nn.functional.interpolate(distances, (rows, columns), mode="bilinear")
    return torch.cat([distances.flatten(2)[0].T, table[-3:]])


def every_parameter(module: nn.Module) -> Iterator[nn.Parameter]:
    """What `parameters()` yields, which names each one on its way: that takes longer than many a step on stored
    features, and a step asks several times."""
    modules, seen = [module], set()
    while modules:
        module = modules.pop()
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter
        modules += [child for child in reversed(module._modules.values()) if child is not None]


def is_same_in_training(tower: PreTrainedModel) -> bool:
    """Whether a tower computes in training what it computes in evaluation: without dropout, stochastic depth and batch
    normalization."""
    if any("drop" in name and isinstance(rate, int | float) and rate > 0 for name, rate in vars(tower.config).items()):
        return False
    dropout, norm = nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase
    return not any(isinstance(m, norm) or (isinstance(m, dropout) and m.p > 0) for m in tower.modules())


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """A context in which all of a module computes what it does in evaluation. It is for passes without gradient."""
    switched = [part for part in module.modules() if part.training]
    try:
        for part in switched:
            part.training = False
        yield
    finally:
        for part in switched:
            part.training = True
        if switched:  # else autocast, in PyTorch 2.8, gives no gradient to weights that it has converted here
            torch.clear_autocast_cache()


def is_frozen(tower: nn.Module) -> bool:
    """Whether no parameter of a tower is trained."""
    return not any(parameter.requires_grad for parameter in every_parameter(tower))


def pooled(
    pooling: str | None, first: torch.Tensor, mean: torch.Tensor, own: torch.Tensor | None = None
) -> torch.Tensor:
    """A stream's global feature (n, [`feature_size`]) of its first token's state and its tokens' mean, (n, hidden).

    Args:
        own: the tower's own pooled output, which `"tower"` takes, or the last word's state, which `"last"` takes.
    """
    if pooling == "cls+mean":
        return torch.cat([first, mean], dim=-1)
    if pooling in ("tower", "last") and own is not None:
        return own
    return first if pooling == "cls" else mean


def last_words(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The states (n, hidden) of the last words that are no padding, wherever the padding stands.

    Args:
        hidden: (n, length, hidden).
        attention_mask: (n, length), 0 on padding.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = ((attention_mask != 0) * positions).argmax(dim=1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def feature_size(tower_config: PreTrainedConfig, pooling: str | None) -> int:
    """Width of a stream's global feature."""
    return describe_tower(tower_config).feature_size(pooling)


def at_least_one_row(rows: torch.Tensor) -> torch.Tensor:
    """A blank row in place of none. A rank may have no pair of a ragged last batch; the towers cannot reshape an empty
    one, and every parameter must take part in each rank's backward pass."""
    # `len` would make a constant of a batch that torch.export is told to leave open.
    return rows if rows.shape[0] else rows.new_zeros(1, *rows.shape[1:])
