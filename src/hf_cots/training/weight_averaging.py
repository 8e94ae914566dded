"""An exponential moving average of the deployed model's weights (Polyak and Juditsky 1992), `--ema_decay`.

This is not COTS's momentum encoder, although both average the model: the momentum encoder computes the keys of the
contrast, its momentum is chosen for that, and it is not deployed.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..data.shards import replace_file


logger = logging.getLogger(__name__)

EMA = "ema.safetensors"


class WeightAverage:
    """The average of a module's trained parameters, in float32. Frozen parameters and buffers are not averaged.

    After step t, counted from 1, `average <- d * average + (1 - d) * weights` with d = min(decay, (1 + t) / (10 + t)).
    Until d reaches `decay` (0.99 at step 890, 0.999 at 8,990) half of the weight is on the last 7% of the steps.

    Args:
        module: the deployed module; the average starts as its weights.
        decay: the largest d.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self._in_use = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after this many steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [parameter.detach().float() for parameter in self.parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self.averages.values()), weights, None)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the module has the averaged weights."""
        if self._in_use:
            yield
            return
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._in_use = True
        self._put(self.averages)
        try:
            yield
        finally:
            self._put(weights)
            self._in_use = False

    def keep(self) -> None:
        """Replace the module's weights by the averaged ones."""
        self._put(self.averages)

    @torch.no_grad()
    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def save(self, folder: Path) -> None:
        """Write `ema.safetensors`."""
        averages = {name: average.cpu().contiguous() for name, average in self.averages.items()}
        replace_file(folder / EMA, partial(save_file, averages))

    def load(self, folder: Path) -> None:
        """Read what [`save`] wrote.

        Raises:
            ValueError: if the folder has none, or it belongs to other parameters.
        """
        problem = find_other_average(folder, self.parameters)
        if problem:
            raise ValueError(problem)
        for name, average in load_file(folder / EMA).items():
            self.averages[name].copy_(average)


def find_other_average(folder: Path, parameters: dict[str, nn.Parameter]) -> str | None:
    """Say why a checkpoint has no average of these parameters, or None."""
    if not (folder / EMA).is_file():
        return f"{folder} has no {EMA}: its run averaged no weights; leave out --ema_decay"
    saved = load_file(folder / EMA)
    other = saved.keys() ^ parameters.keys()
    other |= {name for name in saved.keys() & parameters.keys() if saved[name].shape != parameters[name].shape}
    return f"{folder / EMA} is of another model: it differs in {min(other)}" if other else None


class AverageWeights(TrainerCallback):
    """Keeps `trainer.average` from the first step to the last, and ends with the averaged weights in the model.

    Args:
        trainer: a [`COTSTrainer`].
        decay: as for [`WeightAverage`].
    """

    def __init__(self, trainer: Any, decay: float):
        self.trainer, self.decay = trainer, decay

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.average = WeightAverage(self.trainer.model.encoder, self.decay)
        if self.trainer.resumed_from is not None:
            try:
                self.trainer.average.load(self.trainer.resumed_from)
            except ValueError as error:
                raise ValueError(f"cannot resume: {error}") from None
        if self.trainer.is_world_process_zero():
            logger.info("evaluations and the saved model use weights averaged with decay %s", self.decay)

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.average.update(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.average.keep()
        self.trainer.average = None
