"""`hf_cots.train` that can be told to die: `killed.py '{"moment": count}' FLAGS...`.

It kills itself with SIGKILL at the count-th time that it reaches the moment; `{}` runs to the end, or until somebody
else kills it. What it is doing at any time, and what each step saw, is left in files beside the checkpoints.
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
    """Counts how often each moment was reached, says so in a file, and kills at the planned one."""

    def __init__(self, plan: dict[str, int], output_dir: str):
        self.plan, self.reached = dict(plan), dict.fromkeys(MOMENTS, 0)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self.phase = Path(output_dir) / "phase"
        self.now("start")

    def now(self, moment: str) -> bool:
        """Whether to die here, if it is not done at once."""
        self.phase.write_text(moment)
        self.reached[moment] += 1
        return self.reached[moment] == self.plan.get(moment)

    def here(self, moment: str) -> None:
        if self.now(moment):
            os.kill(os.getpid(), signal.SIGKILL)


def install(death: Death) -> None:
    """Put the moments into the code that reaches them."""
    forward, save, complete = COTSForPreTraining.forward, torch.save, checkpoints.complete
    epoch_begin, rotate = pair_trainer.ExactOrder.on_epoch_begin, pair_trainer.rotate_checkpoints

    def dying_forward(self, *args, **kwargs):
        death.here("forward")
        return forward(self, *args, **kwargs)

    def dying_save(state, path, *args, **kwargs):
        last = death.now("half_a_file")
        save(state, path, *args, **kwargs)
        if last:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_complete(folder):
        death.here("before_the_mark")
        complete(folder)

    def dying_rotation(*args, **kwargs):
        death.here("rotation")
        rotate(*args, **kwargs)

    def dying_epoch_begin(self, *args, **kwargs):
        death.here("between_epochs")
        epoch_begin(self, *args, **kwargs)

    COTSForPreTraining.forward, torch.save, checkpoints.complete = dying_forward, dying_save, dying_complete
    pair_trainer.rotate_checkpoints = dying_rotation
    pair_trainer.ExactOrder.on_epoch_begin = dying_epoch_begin


class WitnessTrainer(COTSTrainer):
    """Writes down a hash of every batch, by step: order, augmentation, words and masks."""

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
