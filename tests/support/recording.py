"""A COTSTrainer that keeps what the exactness tests compare, in float64 if wanted."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import hf_cots.train
from hf_cots.training.trainer import COTSTrainer


def queue_hash(model) -> str:
    """Of every buffer that all ranks must hold alike, and of the momentum encoder."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "queue" in name or "_seen" in name or name.startswith("momentum_encoder"):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            digest.update(name.encode() + whole.numpy().tobytes())
    return digest.hexdigest()


def train_and_leave(trainer: type, runs: list[str]) -> None:
    """Train with each JSON list of flags, and end the process at once: gloo aborts now and then while the interpreter
    shuts down, and the files are written by then."""
    torch.set_num_threads(1)
    hf_cots.train.COTSTrainer = trainer
    for flags in runs:
        hf_cots.train.train(json.loads(flags))
    sys.stdout.flush()
    os._exit(0)


class Recorder(TrainerCallback):
    """The gradients before each optimizer step; the state's hash after it, in a file per rank."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = {n: p.grad.clone() for n, p in self.trainer.model.named_parameters() if p.grad is not None}
        self.trainer.gradients.append(gradients)

    def on_step_end(self, args, state, control, **kwargs):
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"hashes-{args.process_index}.jsonl", "a") as file:
            file.write(json.dumps(queue_hash(self.trainer.model)) + "\n")


class RecordingTrainer(COTSTrainer):
    """As in `hf_cots.train`; without clipping, which would make a gradient depend on all others."""

    last = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.add_callback(Recorder(self))
        type(self).last = self


class DoubleTrainer(RecordingTrainer):
    """The same in float64, where rounding hides nothing."""

    def __init__(self, *args, model, **kwargs):
        super().__init__(*args, model=model.double(), **kwargs)

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        return inputs | {"pixel_values": inputs["pixel_values"].double()}
