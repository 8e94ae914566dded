"""Reports the size of a run's data before its first step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..data.frozen_features import StoredFeaturePairs
from ..data.report import DATA_REPORT, report_data
from ..data.sources import PairDataset
from ..data.streams import PairStream


if TYPE_CHECKING:
    from .pair_trainer import PairTrainer


class DataReport(TrainerCallback):
    """Reports pairs, images, captions and overlap of a trainer's data before the first step, on the first process.

    The report is logged, and written to `output_dir/data_report.json`; see [`report_data`].
    """

    def __init__(self, trainer: "PairTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        train, evaluation = self.trainer.train_dataset, self.trainer.eval_dataset
        train = train.pairs if isinstance(train, StoredFeaturePairs) else train
        report_data(
            train if isinstance(train, (PairDataset, PairStream)) else None,
            evaluation if isinstance(evaluation, PairDataset) else None,
            getattr(self.trainer.processing_class, "tokenizer", None),
            Path(args.output_dir) / DATA_REPORT,
        )


def check_step(pairs: int, dataset: Any, step: int) -> None:
    """Check that an optimizer step has at least one pair.

    Args:
        pairs: usable pairs of the step, over all processes.
        dataset: the data set they come from.
        step: number of the step, counted from 0.

    Raises:
        ValueError: naming the data, a pair that cannot be used, and the file that lists the others.
    """
    if pairs > 0:
        return
    message = f"step {step + 1} has no usable pair"
    report = dataset.report if isinstance(dataset, (PairDataset, PairStream)) else None
    if isinstance(dataset, (PairDataset, PairStream)):
        message = f"{dataset.name}: {message}"
    if report is not None:
        message += f", such as {report.last_skipped()}; see {report.path}"
    raise ValueError(message)
