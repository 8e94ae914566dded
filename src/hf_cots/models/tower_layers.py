"""The layers of a tower by their depth, read off its modules, whatever its architecture."""

from itertools import takewhile

from torch import nn

from .tower_properties import describe_tower
from .towers import is_frozen


def find_layers(tower: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of a tower's layers: the longest `nn.ModuleList` that lies in no other. Of a net of stages (Swin,
    ConvNeXt, ResNet) these are the stages.

    Raises:
        ValueError: naming the tower, if it has no two layers, or runs the same one several times as ALBERT does.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    longest = max(lists, key=lambda name: len(lists[name]), default=None)
    if longest is None or len(lists[longest]) < 2:
        name = describe_tower(tower).name  # type: ignore[arg-type]
        raise ValueError(f"{name} has no list of layers ordered by depth")
    return longest, lists[longest]


def parameter_depths(tower: nn.Module) -> dict[str, int]:
    """The depth of each parameter of a tower by name: 0 for embeddings and what else stands before the layers, i for
    the i-th of L layers, counted from 1, and L + 1 for what stands behind them.

    An `nn.Embedding` behind them, as of DeBERTa's and MPNet's relative positions, is one that the layers read: 0.

    Raises:
        ValueError: naming the tower, if it has no layers of different depth.
    """
    path, layers = find_layers(tower)
    embeddings = {f"{name}.weight" for name, module in tower.named_modules() if isinstance(module, nn.Embedding)}
    depths, behind = {}, False
    for name, _ in tower.named_parameters():
        if name.startswith(f"{path}."):
            depths[name], behind = int(name[len(path) + 1 :].partition(".")[0]) + 1, True
        else:
            depths[name] = len(layers) + 1 if behind and name not in embeddings else 0
    return depths


def freeze_layers(tower: nn.Module, count: int) -> None:
    """Exclude a tower's embeddings and its first `count` layers from training.

    Raises:
        ValueError: if it has no layers, or not so many.
    """
    depths, layers = parameter_depths(tower), find_layers(tower)[1]
    if not 1 <= count <= len(layers):
        name = describe_tower(tower).name  # type: ignore[arg-type]
        raise ValueError(f"{name} has {len(layers)} layers: freeze 1 to {len(layers)} of them, not {count}")
    for name, parameter in tower.named_parameters():
        if depths[name] <= count:
            parameter.requires_grad_(False)


def frozen_modules(tower: nn.Module) -> list[nn.Module]:
    """What of a tower is not trained and needs no dropout: all of it, or what stands before its first trained layer.

    A tower whose layers have adapters is trained from the first one on.
    """
    if is_frozen(tower):
        return [tower]
    if next(tower.parameters()).requires_grad:
        return []
    try:
        path, layers = find_layers(tower)
    except ValueError:  # not frozen by depth
        return []
    frozen: list[nn.Module] = list(takewhile(is_frozen, layers))
    if not frozen:
        return []
    parent = tower
    for part in path.split("."):
        for name, module in parent.named_children():
            if name == part:
                break
            frozen += [module] if is_frozen(module) else []
        parent = parent.get_submodule(part)
    return frozen
