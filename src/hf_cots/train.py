"""`python -m hf_cots.train` and `torchrun -m hf_cots.train`: train COTS, SIMLA or COOKIE on image-text pairs.

    python -m hf_cots.train --vision google/vit-base-patch16-384 --text google-bert/bert-base-uncased \\
        --image_tokenizer org/dvae --train_data my_folder --output_dir runs/mine
    python -m hf_cots.train recipe.yaml --learning_rate 1e-4

The model for inference is saved in `output_dir/model`, checkpoints with the full training state in
`output_dir/checkpoint-*`.
"""

from pathlib import Path

from transformers import set_seed

from .data.frozen_features import StoredFeaturePairs, StoredTexts
from .evaluation.rendering.tables import markdown_table
from .training.arguments import COTSTrainingArguments, DataArguments, ModelArguments, parse_arguments
from .training.build_data import (
    build_code_cache,
    build_collator,
    build_data,
    build_stored_features,
    build_views,
    prepare_for_clips,
)
from .training.build_model import build_model, build_processor, build_tokenizer
from .training.program import guarded_output, run_program
from .training.publish import prepare_push, push_folder, save_for_inference
from .training.recipe_file import write_recipe
from .training.trainer import COTSTrainer


def train(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train with these flags; returns both directions of the final evaluation, or an empty dict without
    `--eval_data`."""
    model_arguments, data_arguments, training = parse_arguments(argv)
    push = prepare_push(training)
    with guarded_output(training.output_dir):
        trainer = build_trainer(model_arguments, data_arguments, training)
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        pairs = trainer.eval_dataset
        result = None if pairs is None else trainer.rank(pairs)
        results = {} if result is None else result.metrics()
        if trainer.is_world_process_zero():
            if results:
                print(markdown_table(results), flush=True)  # before anything is written, which can fail
            write_recipe(Path(training.output_dir) / "model", argv)  # which the card names
        folder = save_for_inference(
            trainer, result, pairs, data_arguments.train_data, data_arguments.eval_data, model_arguments.license
        )
    if push and trainer.is_world_process_zero():
        push_folder(folder, training)
    return results


def build_trainer(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training: COTSTrainingArguments,
    trainer_class: type[COTSTrainer] | None = None,
) -> COTSTrainer:
    """Build a seeded trainer from the arguments, ready to start.

    Raises:
        OSError, ValueError: see `training/build_model.py` and `training/build_data.py`.
    """
    set_seed(training.seed)
    tokenizer = build_tokenizer(model_arguments)
    train_pairs, eval_pairs = build_data(data_arguments, training)
    model = build_model(model_arguments, tokenizer)
    processor = build_processor(model.config, tokenizer, model_arguments)
    prepare_for_clips(model, processor, model_arguments, data_arguments)
    code_cache = build_code_cache(model, data_arguments, training.seed)
    views = build_views(model.config, data_arguments, train_pairs)
    stored = build_stored_features(model, processor, train_pairs, model_arguments, data_arguments, training)
    frozen = stored if isinstance(stored, StoredFeaturePairs) else None
    texts = stored if isinstance(stored, StoredTexts) else None
    collator = build_collator(processor, model.config, data_arguments, code_cache, views, texts)
    return (trainer_class or COTSTrainer)(
        model=model,
        args=training,
        data_collator=collator if frozen is None else frozen.collate,
        train_dataset=train_pairs if frozen is None else frozen,
        eval_dataset=eval_pairs,
        processing_class=processor,
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    run_program(train, argv)


if __name__ == "__main__":
    main()
