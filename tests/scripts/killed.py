"""`hf_cots.train` that kills itself as planned: `killed.py '{"moment": count}' FLAGS...`.

It sends itself SIGKILL when it reaches the moment for the count-th time; `{}` runs to the end, or until another
process kills it. Its current moment and a hash of each step's batch are written to files beside the checkpoints.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

import hf_cots.train
from hf_cots import COTSForPreTraining
from hf_cots.training import checkpoints, pair_trainer
from hf_cots.training.trainer import COTSTrainer


MOMENTS = ("start", "forward", "half_a_file", "before_the_mark", "rotation", "between_epochs")


class Death:
    """Counts how often each moment is reached, writes the last one to a file, and kills the process as planned."""

    def __init__(self, plan: dict[str, int], output_dir: str):
        self.plan, self.reached = dict(plan), dict.fromkeys(MOMENTS, 0)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self.phase = Path(output_dir) / "phase"
        self.now("start")

    def now(self, moment: str) -> bool:
        """Record the moment; returns whether the process is to be killed here."""
        self.phase.write_text(moment)
        self.reached[moment] += 1
        return self.reached[moment] == self.plan.get(moment)

    def here(self, moment: str) -> None:
        if self.now(moment):
            os.kill(os.getpid(), signal.SIGKILL)


def install(death: Death) -> None:
    """Patch the functions that reach the moments."""
    save = torch.save

    def dying(moment, function):
        def reach_moment(*args, **kwargs):
            death.here(moment)
            return function(*args, **kwargs)

        return reach_moment

    def dying_save(state, path, *args, **kwargs):
        last = death.now("half_a_file")
        save(state, path, *args, **kwargs)
        if last:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = dying_save
    COTSForPreTraining.forward = dying("forward", COTSForPreTraining.forward)
    checkpoints.mark_complete = dying("before_the_mark", checkpoints.mark_complete)
    pair_trainer.rotate_checkpoints = dying("rotation", pair_trainer.rotate_checkpoints)
    pair_trainer.ExactOrder.on_epoch_begin = dying("between_epochs", pair_trainer.ExactOrder.on_epoch_begin)


class WitnessTrainer(COTSTrainer):
    """Writes a hash of every batch, by step: order, augmentation, tokens and masks."""

    def get_batch_samples(self, *args, **kwargs):
        batches, count = super().get_batch_samples(*args, **kwargs)
        digest = hashlib.sha256()
        for batch in batches:
            for name in ("pixel_values", "input_ids", "image_ids", "bool_masked_pos", "masked_input_ids"):
                digest.update(batch[name].numpy().tobytes())
        with open(Path(self.args.output_dir) / "batches.jsonl", "a") as file:
            file.write(json.dumps([self.state.global_step, digest.hexdigest()]) + "\n")
        return batches, count


def main() -> None:
    plan, flags = json.loads(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    install(Death(plan, flags[flags.index("--output_dir") + 1]))
    hf_cots.train.COTSTrainer = WitnessTrainer
    hf_cots.train.train(flags)


if __name__ == "__main__":
    main()
