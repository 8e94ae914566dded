"""A Trainer whose data order depends only on the seed, and which never resumes from an incomplete checkpoint.

Together these guarantee that a run that is killed at any moment and resumed equals the uninterrupted run.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from ..data.batches import PairBatches
from ..data.streams import PairStream, StreamBatches
from . import checkpoints, resuming
from .early_stopping import EarlyStopping
from .settings import PATIENCE, check_evaluations, check_settings


logger = logging.getLogger(__name__)


class ExactOrder(TrainerCallback):
    """Logs before each save, so that a restart does not split a logged mean."""

    def on_train_begin(self, args, state, control, **kwargs):
        check_evaluations(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class PassedOver(Sampler):
    """Batches preceded by `count` placeholders, which Trainer skips when it resumes in mid-epoch."""

    def __init__(self, batches: PairBatches | StreamBatches, count: int):
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[list]:
        yield from ([] for _ in range(self.count))
        yield from self.batches


class PairTrainer(Trainer):
    """transformers' Trainer with [`PairBatches`] or [`StreamBatches`] for the training data.

    - Each process takes its slice of a batch here; accelerate would fill an incomplete last batch with pairs of the
      epoch's beginning.
    - A checkpoint is valid only once all of it was written (`complete.json`); older ones are deleted after that.
    - `resume_from_checkpoint` may be "last"; resuming from an incomplete checkpoint is an error.
    - The position in the data is a number of pairs: a run can resume with another batch size, number of
      micro-batches per step, or number of processes.
    - A setting that would have no effect is an error, as is a resumed run that would silently differ.

    Args:
        As for `transformers.Trainer`. A `train_dataset` that has a length is indexed by `(epoch, index)`.
    """

    def __init__(self, *args, **kwargs):
        self.batches: PairBatches | StreamBatches | None = None
        self.resumed_from: Path | None = None
        self._run: dict[str, Any] = {}
        # Batches that were drawn since the epoch began, or was entered; whether the random state is yet to be loaded.
        self._drawn, self._loads_random_state = 0, False
        super().__init__(*args, **kwargs)
        check_settings(self.args, self.train_dataset, self.metric_names())
        self.add_callback(ExactOrder())
        patience = getattr(self.args, PATIENCE, None)
        if patience is not None:
            self.add_callback(EarlyStopping(patience))

    def metric_names(self) -> set[str] | None:
        """The metrics that `evaluate` reports, without the prefix; None if not known in advance."""
        return None

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any):
        """Train as in transformers.

        Args:
            resume_from_checkpoint: a folder; True for the last complete checkpoint in `output_dir`; "last" (or "true",
                as on the command line) for the same, or for a new run if there is none.

        Raises:
            ValueError: if the checkpoint is incomplete or from another run, or none is found.
        """
        self.resumed_from = self._find_checkpoint(resume_from_checkpoint)
        if self.resumed_from is not None or self.args.save_strategy != "no":
            self._run = resuming.describe_run(self)
        if self.resumed_from is not None:
            model = self.accelerator.unwrap_model(self.model)
            warning = resuming.check_checkpoint(self.resumed_from, self._run, model)
            if warning and self.is_world_process_zero():
                logger.warning(warning)
        checkpoint = str(self.resumed_from) if self.resumed_from else None
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

    # ------------------------------------------------------------------ the order of the data

    def get_train_dataloader(self) -> DataLoader:
        """Return the dataloader of this process; the order of the pairs depends only on the seed."""
        dataset, args = self.train_dataset, self.args
        process = {"rank": args.process_index, "world_size": args.world_size}
        seed = args.seed if args.data_seed is None else args.data_seed
        if isinstance(dataset, PairStream):
            self.batches = StreamBatches(dataset, self._train_batch_size, seed=args.data_seed, **process)
        else:
            self.batches = PairBatches(
                len(dataset), self._train_batch_size, seed, drop_last=args.dataloader_drop_last, **process
            )
        if self.resumed_from is not None:
            self.batches.load_state_dict(resuming.read_position(self.resumed_from, self.batches, self.args))
        return self._make_loader(self.batches)

    def _make_loader(self, batches: Sampler) -> DataLoader:
        args = self.args
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, after which a run that is resumed in mid-epoch has the random state of the uninterrupted one."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._drawn += len(batches)
        if self._loads_random_state:
            self._load_rng_state(self.resumed_from)
            self._loads_random_state = False
        return batches, num_items

    # ------------------------------------------------------------------ resuming at a number of pairs

    def set_initial_training_values(self, args, dataloader):
        """Trainer's, but the steps of a resumed run are those done and those that the remaining pairs make."""
        epochs, per_epoch, *rest, max_steps = super().set_initial_training_values(args, dataloader)
        if self.resumed_from is not None and isinstance(self.batches, PairBatches):
            done, epoch = checkpoints.read_state(self.resumed_from)["global_step"], self.batches.epoch
            left = done + math.ceil(self.batches.remaining() / args.gradient_accumulation_steps)
            if args.max_steps <= 0:
                max_steps = max(done, left + math.ceil((args.num_train_epochs - epoch - 1) * per_epoch))
            epochs = max(epoch + 1 + max(0, math.ceil((max_steps - left) / per_epoch)), 1)
        return epochs, per_epoch, *rest, max_steps

    def _init_training_state(self, *args, **kwargs) -> tuple[int, int]:
        """Trainer's, but where the checkpoint's position in pairs lies in batches of this run."""
        where = super()._init_training_state(*args, **kwargs)
        if self.resumed_from is None:
            return where
        self._find_best_checkpoint()
        accumulation = self.args.gradient_accumulation_steps
        if isinstance(self.batches, StreamBatches):
            return 0, self.state.global_step * accumulation
        # Any number of whole steps will do; this one keeps the fraction of the epoch that is logged.
        steps = self.batches.offset // (self.batches.global_size * accumulation)
        return self.batches.epoch, accumulation * max(steps, int(self.batches.offset > 0))

    def _run_epoch(self, *, epoch, resume_from_checkpoint=None, epochs_trained=0, **kwargs) -> None:
        """Trainer's, from the checkpoint's position in pairs on."""
        if self.control.should_training_stop:  # early stopping, before this run was resumed
            return
        if self.state.global_step >= self.state.max_steps:
            logger.warning(
                "nothing left to train: %d of %d steps are done", self.state.global_step, self.state.max_steps
            )
            self.control.should_training_stop = True
            return
        self._drawn = 0
        resumed = resume_from_checkpoint is not None and epoch == epochs_trained
        if isinstance(self.batches, PairBatches):
            self.batches.set_epoch(epoch, self.batches.offset if resumed else 0)
        passed = kwargs["steps_trained_in_current_epoch"]
        if resumed and passed and self.batches is not None:
            self._loads_random_state = True
            kwargs["train_dataloader"] = self._make_loader(PassedOver(self.batches, passed))
            if isinstance(self.batches, PairBatches):
                batches = passed + self.batches.remaining()
                kwargs["steps_in_epoch"] = batches
                kwargs["num_update_steps_per_epoch"] = math.ceil(batches / self.args.gradient_accumulation_steps)
        super()._run_epoch(
            epoch=epoch, resume_from_checkpoint=resume_from_checkpoint, epochs_trained=epochs_trained, **kwargs
        )

    def _load_rng_state(self, checkpoint) -> None:
        """Trainer would load it once more, after the first step has begun."""
        if self._drawn == 0 or self._loads_random_state:
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        """Trainer's.

        Raises:
            ValueError: if they cannot be read, or are of other parameters.
        """
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"cannot resume {checkpoint}: its optimizer or scheduler state is damaged or has other parameters "
                f"({reason})"
            ) from None
        problem = resuming.find_other_moments(self.optimizer) if checkpoint else None
        if problem:
            raise ValueError(f"cannot resume {checkpoint}: {problem}")

    def _find_best_checkpoint(self) -> None:
        """Find the best checkpoint again if the run's folder was moved.

        Raises:
            ValueError: if it must be loaded at the end but does not exist.
        """
        step = self.state.best_global_step
        if not self.args.load_best_model_at_end or not step or self.state.best_model_checkpoint is not None:
            return
        folder = self.resumed_from.parent / f"checkpoint-{step}"
        if not folder.is_dir():
            raise ValueError(
                f"cannot resume {self.resumed_from}: the best checkpoint so far, {folder}, is missing; restore it, or "
                "leave out --load_best_model_at_end"
            )
        self.state.best_model_checkpoint = str(folder)

    # ------------------------------------------------------------------ checkpoints

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
            if self.batches is not None:
                resuming.write_position(folder, self.batches, self._drawn)
            resuming.write_run(folder, self._run)
            self.save_beside(folder)
            if not self.args.save_only_model:  # what cannot be resumed from is not complete
                checkpoints.mark_complete(folder)
            rotate_checkpoints(self._get_output_dir(trial), limit, self.state.best_model_checkpoint, use_mtime=True)

    def save_beside(self, folder: Path) -> None:
        """Write additional checkpoint files beside those of transformers; called on one process."""
