"""The towers of the models: pretrained encoders of transformers, and the pooling of their outputs."""

import copy
import copyreg
import functools
import inspect

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .model_files import named_damage


@functools.cache
def tower_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """A thin subclass of the transformers model that belongs to a config: ours by module, theirs in everything else.

    transformers saves its native models under their older key names, which Trainer's resume does not translate back:
    native ViT layers would come back re-initialized, with a warning only. A class of this module is left alone.

    Raises:
        ValueError: if transformers has no plain model for this config.
    """
    if config_class not in MODEL_MAPPING:
        raise ValueError(
            f"no transformers model is known for {config_class.__name__}; give a vision and a text encoder"
        )
    return subclass_in_this_module(MODEL_MAPPING[config_class])


class TowerType(type):
    """The type of the classes that [`tower_class`] makes, which pickle cannot find by their names."""


@functools.cache
def subclass_in_this_module(native: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The thin subclass of a model's class; the same one for the same class."""
    return TowerType(f"COTS{native.__name__}", (native,), {"__module__": __name__})


def reduce_tower_type(cls: TowerType) -> tuple | str:
    """What pickle writes of such a class, and so of a tower or a whole model: the transformers class, from which the
    reading process makes the subclass anew; of a user's own subclass the name, as usual."""
    return (subclass_in_this_module, cls.__bases__) if cls.__module__ == __name__ else cls.__qualname__


copyreg.pickle(TowerType, reduce_tower_type)


def build_tower(config: PreTrainedConfig, **options: bool) -> PreTrainedModel:
    """A randomly initialized tower; of `options`, those that its constructor knows are given to it.

    BEiT is told by its config, not its constructor, to have a mask token.
    """
    cls = tower_class(type(config))  # type: ignore[arg-type]
    if options.get("use_mask_token") and "bool_masked_pos" not in inspect.signature(cls.forward).parameters:
        raise ValueError(
            f"{cls.__name__} cannot mask patches, which masked vision modelling needs; take another vision tower, or "
            "set mvm_weight=0"
        )
    known = inspect.signature(cls.__init__).parameters
    if options.get("use_mask_token") and getattr(config, "use_mask_token", True) is False:
        config = copy.copy(config)
        config.use_mask_token = True
    return cls._from_config(config, **{name: value for name, value in options.items() if name in known})


def load_tower(source: str | PreTrainedModel) -> PreTrainedModel:
    """A pretrained tower from a Hub id, a folder or a model in memory, loaded through its native class.

    Raises:
        OSError: naming the file, if one is damaged or a git-lfs pointer.
        ValueError: if it is a model of several modalities; its towers must be named one by one.
    """
    with named_damage(source if isinstance(source, str) else ""):
        tower = AutoModel.from_pretrained(source) if isinstance(source, str) else source
    if tower.config.sub_configs:
        raise ValueError(f"{type(tower).__name__} holds several towers; pass the vision or the text encoder alone")
    return tower


def copy_tower(target: PreTrainedModel, source: PreTrainedModel) -> None:
    """Copy pretrained weights into one of our towers. The pooler is left behind, the mask token may be new.

    Raises:
        ValueError: naming the parameters, if anything else is missing.
    """
    result = target.load_state_dict(source.state_dict(), strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("mask_token")]
    if missing:
        raise ValueError(f"{type(source).__name__} does not fit {type(target).__name__}; missing: {missing[:5]}")


def is_frozen(tower: nn.Module) -> bool:
    """Whether no parameter of a tower is trained."""
    return not any(parameter.requires_grad for parameter in tower.parameters())


def pooled(pooling: str, first: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """A stream's global feature (n, [`feature_size`]) of its first token's state and its tokens' mean, (n, hidden)."""
    if pooling == "cls+mean":
        return torch.cat([first, mean], dim=-1)
    return first if pooling == "cls" else mean


def feature_size(tower_config: PreTrainedConfig, pooling: str) -> int:
    """Width of a stream's global feature."""
    return tower_config.hidden_size * (2 if pooling == "cls+mean" else 1)


def at_least_one_row(rows: torch.Tensor) -> torch.Tensor:
    """A blank row in place of none. A rank may have no pair of a ragged last batch; the towers cannot reshape an empty
    one, and every parameter must take part in each rank's backward pass."""
    # `len` would make a constant of a batch that torch.export is told to leave open.
    return rows if rows.shape[0] else rows.new_zeros(1, *rows.shape[1:])
