"""A Trainer whose data are a pure function of the seed, and whose checkpoints are whole.

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
    """Tells the batches which epoch begins, and logs before each save, so that no half-collected mean is lost."""

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

    - The batches are cut into the ranks' shares here, not by accelerate, which would fill a ragged last batch with
      pairs of the epoch's beginning.
    - A checkpoint counts only when all of it was written (`complete.json`); older ones are deleted after that.
    - `resume_from_checkpoint=True` takes the newest whole checkpoint; one that is cut off is refused by name.

    Args:
        As for `transformers.Trainer`. A `train_dataset` that has a length is asked for `(epoch, index)`.
    """

    def __init__(self, *args, **kwargs):
        self.batches: PairBatches | StreamBatches | None = None
        self._resumed_from: Path | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(ExactOrder(self))

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any):
        """As in transformers.

        Raises:
            ValueError: if the checkpoint to resume from is not whole, or none is found.
        """
        self._resumed_from = None
        if resume_from_checkpoint is True:
            self._resumed_from = checkpoints.last_checkpoint(self.args.output_dir)
            if self._resumed_from is None:
                raise ValueError(f"no whole checkpoint in {self.args.output_dir}")
        elif resume_from_checkpoint:
            self._resumed_from = Path(resume_from_checkpoint)
            missing = checkpoints.find_problem(self._resumed_from)
            if missing:
                raise ValueError(f"cannot resume: {missing}")
        return super().train(resume_from_checkpoint=str(self._resumed_from or "") or None, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Batches in an order that the seed alone decides; this rank's share of each."""
        dataset, args = self.train_dataset, self.args
        share = {"rank": args.process_index, "world_size": args.world_size}
        if isinstance(dataset, PairStream):
            self.batches = StreamBatches(dataset, self._train_batch_size, **share)
            if self._resumed_from is not None:
                self.batches.load_state_dict(json.loads((self._resumed_from / STREAM_POSITION).read_text()))
        else:
            seed = args.seed if args.data_seed is None else args.data_seed
            self.batches = PairBatches(
                len(dataset), self._train_batch_size, seed, drop_last=args.dataloader_drop_last, **share
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
            checkpoints.begin(folder)
        # transformers deletes older checkpoints before this one can be called whole.
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
            checkpoints.complete(folder)
            rotate_checkpoints(self._get_output_dir(trial), limit, self.state.best_model_checkpoint, use_mtime=True)
