"""Save the folder that users load and share (model, processor and card), and upload it to the Hub."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import RepoUrl, create_repo, upload_folder
from transformers import PreTrainedModel, TrainingArguments

from .._errors import describe_hub_fault
from ..data.sources import PairDataset
from ..evaluation.retrieval.report import RetrievalResult
from ..models.cards import RECORDS, rename_in_card
from .check_folder import check_folder
from .image_tokenizer import DVAETrainer
from .model_card import RECIPE, RESULTS, refresh_results, write_image_tokenizer_card, write_model_card
from .names import data_name, loadable_name, model_name
from .pair_trainer import PairTrainer
from .record import write_queries, write_record
from .trainer import COTSTrainer


logger = logging.getLogger(__name__)


def save_for_inference(
    trainer: COTSTrainer,
    result: RetrievalResult | None,
    pairs: PairDataset | None,
    train_data: str,
    eval_data: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the encoder, its processor, the records of training and evaluation, and a model card to
    `output_dir/model`, and return that folder. Every process must call it; the main process writes.

    Args:
        trainer: a trainer that has finished.
        result, pairs: result and data of the final evaluation; None if there was none.
        train_data, eval_data: names of the data for the card; of a local path only the last part is used.
        license: license of the weights, as a Hub identifier; if None, the card says that none was chosen.
    """
    folder = Path(trainer.args.output_dir) / "model"
    state = trainer.full_state_dict()  # gathered from all processes
    if not trainer.is_world_process_zero():
        return folder
    model = trainer.accelerator.unwrap_model(trainer.model)
    # LoRA's adapters become part of the weights.
    encoder = (model if isinstance(model, PreTrainedModel) else model.merge_and_unload()).encoder
    if state is not None:
        prefix = f"{encoder.base_model_prefix}."
        state = {name.removeprefix(prefix): rows for name, rows in state.items() if name.startswith(prefix)}
    forget_origin(encoder, folder)
    encoder.save_pretrained(folder, state_dict=state)
    trainer.processing_class.save_pretrained(folder)
    write_record(folder, trainer, data_name(train_data))
    if result is not None and pairs is not None:
        write_results(
            folder, model_name(trainer.args), result, data_name(eval_data) if eval_data else "held-out pairs"
        )
        write_queries(folder, result, pairs)
    write_model_card(
        folder,
        encoder.config,
        describe_training(trainer, train_data, "pairs"),
        model_name(trainer.args),
        license,
        loadable_name(trainer.args, folder),
    )
    logger.info("saved the model to %s", folder)
    return folder


def forget_origin(model: PreTrainedModel, folder: Path) -> None:
    """Make sure that a model is saved without the card and records of the checkpoint it was trained from, and without
    those of an earlier training in the same folder, except for the recipe, which has just been written."""
    model.name_or_path = ""
    for name in set(RECORDS) - {RECIPE}:
        (folder / name).unlink(missing_ok=True)


def write_results(folder: Path, model: str, result: RetrievalResult, eval_data: str) -> None:
    """Write `results.json`: a report like that of `hf-cots evaluate`, with public names."""
    report = result.to_dict() | {"model": {"name": model}, "data": {"name": eval_data}}
    (folder / RESULTS).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_image_tokenizer(
    trainer: DVAETrainer,
    results: dict[str, float],
    train_data: str,
    eval_data: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the image tokenizer and its card to `output_dir/model`, and return that folder. The main process writes.

    Args:
        trainer: a trainer that has finished.
        results: metrics of [`evaluate_image_tokenizer`] for the card, empty if it was not evaluated.
        train_data, eval_data, license: as for [`save_for_inference`].
    """
    output_dir = Path(trainer.args.output_dir)
    folder = output_dir / "model"
    if not trainer.is_world_process_zero():
        return folder
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    forget_origin(model, folder)
    model.save_pretrained(folder)
    write_record(folder, trainer, data_name(train_data))
    if results:
        reconstructions = output_dir / f"reconstructions-{trainer.state.global_step:06d}.png"
        shutil.copy(reconstructions, folder / "reconstructions.png")
    write_image_tokenizer_card(
        folder,
        model.config,
        describe_training(trainer, train_data, "images"),
        results,
        data_name(eval_data) if eval_data else None,
        model_name(trainer.args),
        license,
        loadable_name(trainer.args, folder),
    )
    logger.info("saved the image tokenizer to %s", folder)
    return folder


def describe_training(trainer: PairTrainer, train_data: str, unit: str) -> str:
    """The card's sentence about the training data and its length."""
    args = trainer.args
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    best = args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    steps = trainer.state.best_global_step if best else trainer.state.global_step
    return f"Trained on `{data_name(train_data)}` for {steps} steps of {batch_size} {unit}."


def prepare_push(args: TrainingArguments) -> bool:
    """Whether to upload the model at the end. If so, its repository is created now, so that a wrong token or name is
    reported before training; and the flag is turned off, because Trainer would upload the checkpoints.

    Raises:
        OSError: if the Hub cannot be reached or refuses.
    """
    push, args.push_to_hub = args.push_to_hub, False
    if push and args.process_index == 0:
        make_repository(model_name(args), args.hub_private_repo, args.hub_token)
    return push


def push_folder(folder: Path, args: TrainingArguments) -> None:
    """Upload a saved model to `--hub_model_id`, or to a repository with the name of `output_dir`."""
    publish(folder, model_name(args), args.hub_private_repo, args.hub_token)


def publish(folder: Path, name: str, private: bool | None = None, token: str | None = None) -> str:
    """Check a saved model and upload its folder.

    The card is updated with the folder's results and the name of the repository.

    Args:
        folder: the model's folder.
        name: name of the repository, as `org/name`; created if it does not exist.
        private: whether a new repository is private; None for the Hub's default.
        token: Hub token; by default the one that is logged in.

    Returns:
        The URL of the repository.

    Raises:
        OSError, ValueError: as [`check_folder`], before anything is uploaded; or with the Hub's answer. Either the
            whole folder is uploaded or nothing.
    """
    for note in check_folder(folder):
        logger.warning("%s", note)
    refresh_results(folder)
    repo = make_repository(name, private, token)
    card = folder / "README.md"
    card.write_text(rename_in_card(card.read_text(encoding="utf-8"), repo.repo_id), encoding="utf-8")
    with publishing(f"{folder} was not published as {repo.repo_id}, nothing of it is there"):
        upload_folder(repo_id=repo.repo_id, folder_path=folder, token=token, commit_message="Add model")
    return str(repo)


def make_repository(name: str, private: bool | None = None, token: str | None = None) -> RepoUrl:
    """Create a repository if it does not exist.

    Args:
        name, private, token: as for [`publish`].

    Raises:
        OSError: if the Hub cannot be reached or refuses.
    """
    with publishing(f"cannot write to the repository {name}"):
        return create_repo(name, private=private, token=token, exist_ok=True)


@contextmanager
def publishing(failed: str) -> Iterator[None]:
    """Report failures in this context in one line, with the Hub's answer.

    Raises:
        OSError: for any error on the way to the Hub or from it.
    """
    try:
        yield
    except Exception as error:
        reason = describe_hub_fault(error)
        if reason is None:
            raise
        raise OSError(f"{failed}: {reason}") from error
