"""Single steps of a trainer, timed: reading data apart from the model."""

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .trainer import COTSTrainer


class StepTime(NamedTuple):
    """Seconds of one optimizer step: in total, and spent waiting for data."""

    total: float
    data: float


class Stepper:
    """Runs a trainer step by step, as its `train` does: data, `begin_step`, forward, backward, optimizer, `end_step`.

    Args:
        trainer: a trainer before training; its data is repeated if it ends.
    """

    def __init__(self, trainer: COTSTrainer):
        self.trainer, self.waited = trainer, 0.0
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        self.optimizer = trainer.create_optimizer()
        # Puts autocast around forward, as training does.
        self.model = trainer.accelerator.prepare_model(trainer.model)
        self.batches = self._timed(itertools.chain.from_iterable(itertools.repeat(trainer.get_train_dataloader())))

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch

    def step(self) -> StepTime:
        """Run one optimizer step."""
        trainer, start = self.trainer, time.perf_counter()
        self.waited = 0.0
        count = trainer.args.gradient_accumulation_steps
        batches, items = trainer.get_batch_samples(self.batches, count, trainer.args.device)
        for batch in batches:
            trainer.training_step(self.model, batch, items)
        if trainer.args.max_grad_norm:
            trainer.accelerator.clip_grad_norm_(self.model.parameters(), trainer.args.max_grad_norm)
        self.optimizer.step()
        self.model.zero_grad()
        trainer.model.end_step()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        return StepTime(time.perf_counter() - start, self.waited)
