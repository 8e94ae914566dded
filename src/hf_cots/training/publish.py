"""The deployable model: saved with its processor and card, and uploaded."""

import logging
from pathlib import Path

import torch
import transformers
from huggingface_hub import create_repo, upload_folder

from .arguments import COTSTrainingArguments
from .model_card import write_model_card
from .trainer import COTSTrainer


logger = logging.getLogger(__name__)


def save_deployable(
    trainer: COTSTrainer,
    train_data: str,
    eval_data: str | None,
    results: dict[str, dict[str, float]],
    state: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write the deployable part, the processor and a model card to `output_dir/model`, and return that folder.

    Args:
        trainer: after training.
        train_data, eval_data, results: what the card says.
        state: of [`COTSTrainer.full_state_dict`], where parameters are sharded.
    """
    model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    # LoRA's adapters become part of the weights.
    encoder = (model if isinstance(model, transformers.PreTrainedModel) else model.merge_and_unload()).encoder
    folder = Path(args.output_dir) / "model"
    if state is not None:
        prefix = f"{encoder.base_model_prefix}."
        state = {name.removeprefix(prefix): rows for name, rows in state.items() if name.startswith(prefix)}
    encoder.save_pretrained(folder, state_dict=state)
    trainer.processing_class.save_pretrained(folder)
    write_model_card(
        folder,
        encoder.config,
        f"Trained on `{train_data}` for {trainer.state.global_step} steps of "
        f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} pairs.",
        results,
        data_name=eval_data or "held-out pairs",
        model_name=args.hub_model_id or Path(args.output_dir).resolve().name,
    )
    logger.info("saved the deployable model in %s", folder)
    return folder


def push_folder(folder: Path, args: COTSTrainingArguments) -> None:
    """Upload the deployable model to `--hub_model_id`, or to a repository named like `output_dir`."""
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    repo = create_repo(name, private=args.hub_private_repo, token=args.hub_token, exist_ok=True)
    upload_folder(repo_id=repo.repo_id, folder_path=folder, token=args.hub_token, commit_message="Add model")
