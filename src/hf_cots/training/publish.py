"""The folder that users load and share: model, processor and card, and its upload to the Hub."""

import json
import logging
import re
import shutil
from pathlib import Path, PureWindowsPath

from huggingface_hub import create_repo, upload_folder
from transformers import PreTrainedModel, TrainingArguments

from ..models.cards import rename_in_card
from .check_folder import check_folder
from .image_tokenizer import DVAETrainer
from .model_card import write_image_tokenizer_card, write_model_card
from .pair_trainer import PairTrainer
from .trainer import COTSTrainer


logger = logging.getLogger(__name__)


def save_for_inference(
    trainer: COTSTrainer,
    results: dict[str, dict[str, float]],
    train_data: str,
    eval_data: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the encoder, its processor, its results and a model card to `output_dir/model`, and return that folder.
    Every process must call it; the main one writes.

    Args:
        trainer: a trainer that has finished.
        results: retrieval metrics for the card, empty if the model was not evaluated.
        train_data, eval_data: names of the data for the card; of a path on this machine only its last part is told.
        license: of the weights, as the Hub names it; without it the card says that none was chosen.
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
    encoder.save_pretrained(folder, state_dict=state)
    trainer.processing_class.save_pretrained(folder)
    if results:
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_model_card(
        folder,
        encoder.config,
        describe_training(trainer, train_data, "pairs"),
        results,
        data_name(eval_data) if eval_data else "held-out pairs",
        model_name(trainer.args),
        license,
        loadable_name(trainer.args, folder),
    )
    logger.info("saved the model in %s", folder)
    return folder


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
    model.save_pretrained(folder)
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
    logger.info("saved the image tokenizer in %s", folder)
    return folder


def describe_training(trainer: PairTrainer, train_data: str, unit: str) -> str:
    """The card's sentence on data and length of the training."""
    args = trainer.args
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    best = args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    steps = trainer.state.best_global_step if best else trainer.state.global_step
    return f"Trained on `{data_name(train_data)}` for {steps} steps of {batch_size} {unit}."


def model_name(args: TrainingArguments) -> str:
    """`--hub_model_id`, or the name of `output_dir`."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


def data_name(data: str) -> str:
    """The name of data for a card: a Hub id as it is; of a path or an address only the last part, because the rest
    tells about this machine."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not data.startswith(".") and not Path(data).exists()
    if is_id or not re.search(r"[/\\~.]", data):
        return data
    path = PureWindowsPath(data.partition("?")[0]) if "\\" in data else Path(data.partition("?")[0])
    return path.name if path.name not in ("", "..", "~") else Path(data).expanduser().resolve().name


def loadable_name(args: TrainingArguments, folder: Path) -> str:
    """What a card's reader passes to `from_pretrained`: `--hub_model_id`, or the folder as seen from here, or from the
    folder that holds it."""
    if args.hub_model_id:
        return args.hub_model_id
    here = Path.cwd()
    path = folder.resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


def push_folder(folder: Path, args: TrainingArguments) -> None:
    """Upload a saved model to `--hub_model_id`, or to a repository with the name of `output_dir`."""
    publish(folder, model_name(args), args.hub_private_repo, args.hub_token)


def publish(folder: Path, name: str, private: bool | None = None, token: str | None = None) -> str:
    """Check a saved model and upload it with all that lies beside it; its card then names the repository.

    Args:
        folder: of the model.
        name: of the repository, as `org/name`; it is made if it does not exist.
        private: whether a new one is private; None for the Hub's own choice.
        token: of the Hub; by default the one that is logged in.

    Returns:
        The address of the repository.

    Raises:
        OSError, ValueError: as [`check_folder`], before anything is uploaded.
    """
    for note in check_folder(folder):
        logger.warning("%s", note)
    repo = create_repo(name, private=private, token=token, exist_ok=True)
    card = folder / "README.md"
    card.write_text(rename_in_card(card.read_text(encoding="utf-8"), repo.repo_id), encoding="utf-8")
    upload_folder(repo_id=repo.repo_id, folder_path=folder, token=token, commit_message="Add model")
    return str(repo)
