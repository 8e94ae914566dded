"""Checks settings of transformers' Trainer: those that have no effect here are errors before training starts."""

from dataclasses import MISSING, Field, fields
from typing import Any

from transformers import SchedulerType, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..data.streams import PairStream


_OWN_ORDER = "the order of the data is a permutation that the seed gives"
_OWN_EVALUATION = "evaluation here is not that of transformers"

# What each would be for, where another value than the default changes nothing.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "there are no class labels to smooth",
    "train_sampling_strategy": _OWN_ORDER,
    "length_column_name": _OWN_ORDER,
    "dataloader_in_order": "batches that overtake one another would make the order of the data random",
    "ignore_data_skip": "a resumed run enters the data where the checkpoint stopped, and reads nothing before it",
    "auto_find_batch_size": "a run that starts again after an error would count its first steps twice",
    "remove_unused_columns": "items are pairs, not columns",
    "ddp_broadcast_buffers": "every process keeps its queues equal to the others'",
    "parallelism_config": "data is divided among all processes",
    "use_cache": "nothing is generated",
    "use_liger_kernel": "there are no such kernels for this model",
    "liger_kernel_config": "there are no such kernels for this model",
    "do_predict": "nothing is predicted",
}
WITHOUT_EFFECT_ON_PAIRS = dict.fromkeys(
    (
        *("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
        *("batch_eval_metrics", "include_for_metrics", "bf16_full_eval", "fp16_full_eval"),
    ),
    _OWN_EVALUATION,
)
WITHOUT_EFFECT_ON_STREAMS = {"dataloader_drop_last": "batches of a stream run on from one pass to the next"}
PATIENCE = "early_stopping_patience"
OF_UPLOADED_CHECKPOINTS = ("hub_strategy", "hub_always_push", "hub_revision")
OF_ACCELERATE = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking")


def prepare_early_stopping(args: TrainingArguments) -> None:
    """If early stopping is on, load the best model at the end. Must be called before transformers and
    [`choose_best_by`] check the settings that this needs.

    Raises:
        ValueError: if there are no evaluations to count.
    """
    if getattr(args, PATIENCE) is None:
        return
    if str(args.eval_strategy).rpartition(".")[2].lower() == "no":
        raise ValueError(
            f"--{PATIENCE} counts evaluations: give --eval_data, and set --eval_strategy and --save_strategy to steps "
            "or epoch"
        )
    args.load_best_model_at_end = True


def check_early_stopping(args: TrainingArguments) -> None:
    """Check that every evaluated model is also saved, so that the best one can be loaded.

    Raises:
        ValueError: if some evaluated models are not saved.
    """
    by_steps = args.eval_strategy == args.save_strategy == "steps"
    if getattr(args, PATIENCE) is not None and by_steps and args.eval_steps != args.save_steps:
        raise ValueError(
            f"--{PATIENCE} loads the best model at the end: --save_steps {args.save_steps:g} must equal --eval_steps "
            f"{args.eval_steps:g}, or set --save_strategy best"
        )


def check_settings(args: TrainingArguments, train_data: Any, metrics: set[str] | None) -> None:
    """Check that every setting has an effect, and that evaluation reports the metric for the best model.

    Args:
        args: the trainer's arguments.
        train_data: the data set to train on.
        metrics: names that evaluation reports, without `eval_`; None if they are not known.

    Raises:
        ValueError: naming the setting.
    """
    ignored = dict(WITHOUT_EFFECT)
    ignored |= WITHOUT_EFFECT_ON_STREAMS if isinstance(train_data, PairStream) else {}
    ignored |= WITHOUT_EFFECT_ON_PAIRS if metrics is not None else {}
    for field in fields(args):
        if field.name in ignored and getattr(args, field.name) != default_of(field):
            raise ValueError(f"--{field.name} would have no effect: {ignored[field.name]}; leave it out")
    usual = AcceleratorConfig()
    for name in OF_ACCELERATE:
        if getattr(args.accelerator_config, name) != getattr(usual, name):
            raise ValueError(f"--accelerator_config: {name} would have no effect: {_OWN_ORDER}; leave it out")
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("--fp16 has no effect on a CPU; leave it out, or use --bf16")
    if metrics is not None:
        check_metric(args, metrics)


def check_upload(args: TrainingArguments) -> None:
    """Check the upload settings of the programs, which upload the finished model but no checkpoints.

    Raises:
        ValueError: naming a setting that would have no effect.
    """
    for field in fields(args):
        if field.name in OF_UPLOADED_CHECKPOINTS and getattr(args, field.name) != default_of(field):
            raise ValueError(f"--{field.name} would have no effect: the model is uploaded once, at the end")


def default_of(field: Field) -> Any:
    """The default of a field of a dataclass."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def check_metric(args: TrainingArguments, metrics: set[str]) -> None:
    """Check the metric for the best model.

    Raises:
        ValueError: if evaluation does not report it, with the names of what it reports.
    """
    if args.metric_for_best_model is None or args.eval_strategy == "no":
        return
    name = args.metric_for_best_model.removeprefix("eval_")
    if name not in metrics:
        raise ValueError(
            f"--metric_for_best_model {args.metric_for_best_model} is not an evaluation metric; choose one of "
            f"{', '.join(sorted(metrics))}"
        )


def check_evaluations(args: TrainingArguments, state: TrainerState) -> None:
    """Check that a run that loads its best model evaluates at least once.

    Raises:
        ValueError: if the run ends before its first evaluation.
    """
    wanted = args.load_best_model_at_end or args.save_strategy == "best"
    if wanted and args.eval_strategy == "steps" and state.eval_steps > state.max_steps:
        raise ValueError(
            f"--eval_steps {state.eval_steps} exceeds the {state.max_steps} steps of the run: without an "
            "evaluation there is no best model"
        )


def choose_best_by(args: TrainingArguments, metric: str, smaller_is_better: tuple[str, ...]) -> None:
    """Set the metric for the best model, and whether smaller is better, unless the user did. Must be called before
    transformers chooses the loss, which evaluation does not report here.

    Args:
        args: arguments that are being initialized.
        metric: default metric.
        smaller_is_better: suffixes of the names of metrics for which smaller is better.

    Raises:
        ValueError: if the best model is wanted and evaluations and checkpoints do not coincide.
    """
    best, evaluated, saved = args.load_best_model_at_end, str(args.eval_strategy), str(args.save_strategy)
    evaluated, saved = (value.rpartition(".")[2].lower() for value in (evaluated, saved))
    if best and saved != "best" and evaluated != saved:
        flag = "load_best_model_at_end" if getattr(args, PATIENCE, None) is None else PATIENCE
        raise ValueError(
            f"--{flag} needs evaluations where checkpoints are saved, but --eval_strategy is "
            f"{evaluated} and --save_strategy {saved}"
        )
    on_plateau = args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
    if args.metric_for_best_model is None and (best or saved == "best" or on_plateau):
        args.metric_for_best_model = metric
    if args.metric_for_best_model is not None and args.greater_is_better is None:
        args.greater_is_better = not args.metric_for_best_model.endswith(("loss", *smaller_is_better))


def watch_in_the_right_direction(args: TrainingArguments) -> None:
    """Tell schedulers that follow a metric whether larger is better; torch assumes that smaller is."""
    if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        mode = {"mode": "max" if args.greater_is_better else "min"}
        args.lr_scheduler_kwargs = mode | (args.lr_scheduler_kwargs or {})
