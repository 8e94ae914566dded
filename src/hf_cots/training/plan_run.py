"""Estimate the parameters, memory and time of a training run from a few real steps."""

import resource
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.streams import PairStream
from .timed_steps import Stepper, StepTime
from .trainer import COTSTrainer


WARM_UP = 2  # steps that pay for allocations, and do not count


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a run.

    Args:
        parameters: number of parameters of each part of the model, and how many of them are trained.
        pairs: number of training pairs; None for a stream.
        batch: pairs per optimizer step.
        steps: optimizer steps of the whole run.
        seconds: median time of one step.
        data_share: fraction of the steps' time spent waiting for data.
        gib: peak memory so far, of the accelerator or, without one, of the process.
    """

    parameters: dict[str, tuple[int, int]]
    pairs: int | None
    batch: int
    steps: int
    seconds: float
    data_share: float
    gib: float

    @property
    def bottleneck(self) -> str:
        """Describe what limits the speed."""
        if self.data_share > 0.5:
            return "reading data: raise --dataloader_num_workers, or store smaller images"
        return f"the model; {100 * self.data_share:.0f}% of a step waits for data"

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        parts = {name: {"all": total, "trained": trained} for name, (total, trained) in self.parameters.items()}
        names = ("pairs", "batch", "steps", "seconds", "data_share", "gib", "bottleneck")
        return {"parameters": parts} | {name: getattr(self, name) for name in names}


def plan_run(trainer: COTSTrainer, tried: int = 6) -> Plan:
    """Run a few real training steps and measure them; the trainer cannot be used afterwards.

    Args:
        trainer: the run's trainer, before training.
        tried: number of steps to time.
    """
    stepper = Stepper(trainer)
    times = [stepper.step() for _ in range(WARM_UP + tried)][WARM_UP:]
    args, data = trainer.args, trainer.train_dataset
    pairs = None if isinstance(data, PairStream) else len(data)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    # A stream has --max_steps.
    steps = args.max_steps if args.max_steps > 0 else round(args.num_train_epochs * -(-(pairs or 0) // batch))
    return Plan(
        parameters=count_parameters(trainer.model),
        pairs=pairs,
        batch=batch,
        steps=steps,
        seconds=statistics.median(each.total for each in times),
        data_share=share_of_data(times),
        gib=peak_memory(args.device),
    )


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Count the parameters, total and trained, of each direct part and of the parts of the deployed encoder."""
    encoder = model.encoder
    parts = {name: part for name, part in model.named_children() if part is not encoder}
    counts = {}
    for name, part in (dict(encoder.named_children()) | parts).items():
        sizes = [(each.numel(), each.requires_grad) for each in part.parameters()]
        if sizes:
            counts[name] = (sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))
    return counts


def share_of_data(times: list[StepTime]) -> float:
    """The fraction of all steps' time spent waiting for data."""
    return sum(each.data for each in times) / sum(each.total for each in times)


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB, of the GPU or, without one, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
