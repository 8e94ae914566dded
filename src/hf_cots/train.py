"""`python -m hf_cots.train` and `torchrun -m hf_cots.train`: train COTS, SIMLA or COOKIE on image-text pairs.

    python -m hf_cots.train --vision google/vit-base-patch16-384 --text google-bert/bert-base-uncased \\
        --image_tokenizer org/dvae --train_data my_folder --output_dir runs/mine
    python -m hf_cots.train recipe.yaml --learning_rate 1e-4

The deployable model is left in `output_dir/model`, checkpoints with all training state in `output_dir/checkpoint-*`.
"""

import logging
import sys

from transformers import set_seed

from .evaluation.rendering.tables import markdown_table
from .training.arguments import COTSTrainingArguments, DataArguments, ModelArguments, parse_arguments
from .training.checkpoints import last_checkpoint
from .training.publish import push_folder, save_deployable
from .training.setup import (
    build_code_cache,
    build_collator,
    build_data,
    build_frozen_pairs,
    build_model,
    build_processor,
    build_tokenizer,
    build_views,
)
from .training.trainer import COTSTrainer


logger = logging.getLogger(__name__)


def train(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train as the flags say; returns both directions of the final evaluation, nothing without `--eval_data`."""
    model_arguments, data_arguments, training = parse_arguments(argv)
    # What goes to the Hub is the deployable model; Trainer itself would push the checkpoints.
    push, training.push_to_hub = training.push_to_hub, False
    trainer = build_trainer(model_arguments, data_arguments, training)
    eval_pairs = trainer.eval_dataset
    checkpoint = training.resume_from_checkpoint
    if checkpoint in ("True", "true", "last"):
        checkpoint = last_checkpoint(training.output_dir)  # the first start of a run has none
    trainer.train(resume_from_checkpoint=checkpoint)

    results = trainer.retrieval(eval_pairs) if eval_pairs is not None else {}
    state = trainer.full_state_dict()
    if trainer.is_world_process_zero():
        folder = save_deployable(trainer, data_arguments.train_data, data_arguments.eval_data, results, state)
        if results:
            print(markdown_table(results))
        if push:
            push_folder(folder, training)
    return results


def build_trainer(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training: COTSTrainingArguments,
    trainer_class: type[COTSTrainer] | None = None,
) -> COTSTrainer:
    """A trainer that is ready to start, with everything seeded; the errors are those of `training/setup.py`."""
    set_seed(training.seed)
    tokenizer = build_tokenizer(model_arguments)
    train_pairs, eval_pairs = build_data(data_arguments, training)
    model = build_model(model_arguments, tokenizer)
    processor = build_processor(model.config, tokenizer)
    code_cache = build_code_cache(model, data_arguments, training.seed)
    views = build_views(model.config, data_arguments, train_pairs)
    frozen = build_frozen_pairs(model, processor, train_pairs, model_arguments, data_arguments, training)
    collator = build_collator(processor, model.config, data_arguments, code_cache, views)
    return (trainer_class or COTSTrainer)(
        model=model,
        args=training,
        data_collator=collator if frozen is None else frozen.collate,
        train_dataset=train_pairs if frozen is None else frozen,
        eval_dataset=eval_pairs,
        processing_class=processor,
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point: errors that the user can mend are one line, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        train(argv)
    except (OSError, ModuleNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
