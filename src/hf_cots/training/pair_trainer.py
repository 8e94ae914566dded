"""A Trainer whose data order depends on the seed alone, and whose checkpoints are complete or not used.

Both serve one promise: a run that is killed at any moment and resumed equals the uninterrupted run.
"""

import json
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from ..data.batches import PairBatches
from ..data.streams import PairStream, StreamBatches
from . import checkpoints


STREAM_POSITION = "stream_position.json"


class ExactOrder(TrainerCallback):
    """Sets the epoch of the batches, and logs before each save, so that no mean is cut in two by a restart."""

    def __init__(self, trainer: "PairTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.trainer.batches, PairBatches):
            self.trainer.batches.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class PairTrainer(Trainer):
    """transformers' Trainer with [`PairBatches`] or [`StreamBatches`] for the training data.

    - Each process takes its slice of a batch here; accelerate would fill an incomplete last batch with pairs of the
      epoch's beginning.
    - A checkpoint counts only when all of it was written (`complete.json`); older ones are deleted after that.
    - `resume_from_checkpoint` may be "last"; an incomplete checkpoint is refused by name.

    Args:
        As for `transformers.Trainer`. A `train_dataset` that has a length is indexed by `(epoch, index)`.
    """

    def __init__(self, *args, **kwargs):
        self.batches: PairBatches | StreamBatches | None = None
        self._resumed_from: Path | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(ExactOrder(self))

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any):
        """Train as in transformers.

        Args:
            resume_from_checkpoint: a folder; True for the last complete checkpoint in `output_dir`; "last" (or "true",
                as on the command line) for the same, or for a new run if there is none.

        Raises:
            ValueError: if the checkpoint to resume from is incomplete, or none is found.
        """
        self._resumed_from = self._find_checkpoint(resume_from_checkpoint)
        checkpoint = str(self._resumed_from) if self._resumed_from else None
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _find_checkpoint(self, name: str | Path | bool | None) -> Path | None:
        if not name:
            return None
        if name is True or name in ("last", "true", "True"):
            checkpoint = checkpoints.last_checkpoint(self.args.output_dir)
            if checkpoint is None and name is True:
                raise ValueError(f"no complete checkpoint in {self.args.output_dir}")
            return checkpoint
        problem = checkpoints.find_problem(Path(name))
        if problem:
            raise ValueError(f"cannot resume: {problem}")
        return Path(name)

    def get_train_dataloader(self) -> DataLoader:
        """The dataloader of this process; the order of the pairs depends on the seed alone."""
        dataset, args = self.train_dataset, self.args
        process = {"rank": args.process_index, "world_size": args.world_size}
        if isinstance(dataset, PairStream):
            self.batches = StreamBatches(dataset, self._train_batch_size, **process)
            if self._resumed_from is not None:
                self.batches.load_state_dict(json.loads((self._resumed_from / STREAM_POSITION).read_text()))
        else:
            seed = args.seed if args.data_seed is None else args.data_seed
            self.batches = PairBatches(
                len(dataset), self._train_batch_size, seed, drop_last=args.dataloader_drop_last, **process
            )
        return DataLoader(
            dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.invalidate(folder)
        # transformers would delete older checkpoints before this one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if isinstance(self.batches, StreamBatches):
                taken = self.state.global_step * self.args.gradient_accumulation_steps
                (folder / STREAM_POSITION).write_text(json.dumps(self.batches.state_dict(taken)) + "\n")
            checkpoints.mark_complete(folder)
            rotate_checkpoints(self._get_output_dir(trial), limit, self.state.best_model_checkpoint, use_mtime=True)
