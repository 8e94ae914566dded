"""The optimizer's groups of parameters: learning rates by tower and by layer, weight decay where it is usual."""

import logging
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ..models.tower_layers import find_layers, parameter_depths
from ..models.towers import is_frozen


logger = logging.getLogger(__name__)

TOWERS = {"vision": "vision_model", "text": "text_model"}


def group_parameters(
    model: nn.Module, encoder: nn.Module, args: TrainingArguments, decayed: Collection[str]
) -> list[dict[str, Any]] | None:
    """Build parameter groups for an optimizer, each with `params`, `lr` and `weight_decay`; None if every
    parameter has the same rate.

    With `args.layer_decay` = d, layer i of a tower's L layers has the tower's rate times d^(L + 1 - i) (Clark et al.
    2020, ELECTRA; Bao et al. 2022, BEiT): its embeddings d^(L + 1), its last layer d; everything after the
    layers, such as projections and heads, has the rate itself.

    Args:
        model: its trained parameters are grouped.
        encoder: the part of the model that contains the towers.
        args: with `learning_rate`, `weight_decay`, and any of `vision_learning_rate`, `text_learning_rate` and
            `layer_decay`.
        decayed: names of the parameters with weight decay.

    Raises:
        ValueError: naming the flag that would have no effect, or the tower that has no layers.
    """
    own: dict[str, float | None] = {tower: getattr(args, f"{tower}_learning_rate", None) for tower in TOWERS}
    decay = getattr(args, "layer_decay", None)
    if decay is None and all(rate is None for rate in own.values()):
        return None
    towers: dict[str, nn.Module] = {name: getattr(encoder, attribute) for name, attribute in TOWERS.items()}
    for name, rate in own.items():
        if rate is not None and is_frozen(towers[name]):
            raise ValueError(f"--{name}_learning_rate would have no effect: the {name} tower is frozen")
    if decay is not None and all(map(is_frozen, towers.values())):
        raise ValueError("--layer_decay would have no effect: both towers are frozen")
    rates: dict[int, float] = {}
    for name, tower in towers.items():
        if not is_frozen(tower):
            chosen = own[name]
            full = args.learning_rate if chosen is None else chosen
            rates.update(
                _rates_by_layer(name, tower, full, decay) if decay else {id(p): full for p in tower.parameters()}
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own_rate = rates.get(id(parameter), args.learning_rate)
            groups[own_rate, args.weight_decay if name in decayed else 0.0].append(parameter)
    # The log shows the first group's rate: of many, the highest.
    order = sorted(groups, reverse=True) if decay else groups
    return [{"params": groups[rate, weight], "lr": rate, "weight_decay": weight} for rate, weight in order]


def _rates_by_layer(name: str, tower: nn.Module, rate: float, decay: float) -> dict[int, float]:
    """The learning rate of each parameter of a tower, by the parameter's id."""
    try:
        depths, layers = parameter_depths(tower), len(find_layers(tower)[1])
    except ValueError as error:
        raise ValueError(f"--layer_decay: {error}; leave it out, or freeze that tower with --freeze {name}") from None
    rates = {id(p): rate * decay ** (layers + 1 - depths[n]) for n, p in tower.named_parameters()}
    trained = [rates[id(p)] for p in tower.parameters() if p.requires_grad]
    logger.info("%s tower: learning rates from %.3g to %.3g over %d layers", name, min(trained), max(trained), layers)
    return rates
