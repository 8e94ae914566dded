"""`python -m hf_cots.train_dvae` and `torchrun -m hf_cots.train_dvae`: train an image tokenizer on images.

    python -m hf_cots.train_dvae --train_data my_images/ --eval_data more_images/ --output_dir runs/dvae \\
        --config '{"image_size": 192, "codebook_size": 8192, "reconstruction": "logit_laplace", "kl_weight": 0.034}'

Captions are not needed. The image tokenizer is saved in `output_dir/model`, the reconstructions of each evaluation in
`output_dir/reconstructions-*.png`, and checkpoints with the full training state in `output_dir/checkpoint-*`.
"""

import dataclasses

from transformers import set_seed

from .data.augmentation import RandomCropFlip
from .data.collator import ImageCollator
from .models import COTSImageTokenizer, COTSImageTokenizerConfig
from .search.loading import named_errors
from .training.arguments import (
    DVAETrainingArguments,
    ImageArguments,
    ImageTokenizerArguments,
    parse_image_tokenizer_arguments,
)
from .training.build_data import load_eval_data, load_train_data
from .training.image_tokenizer import DVAETrainer
from .training.program import guarded_output, run_program
from .training.publish import prepare_push, push_folder, save_image_tokenizer


def train(argv: list[str] | None = None) -> dict[str, float]:
    """Train with these flags; returns the metrics of the final evaluation, empty without `--eval_data`."""
    model_arguments, data_arguments, training = parse_image_tokenizer_arguments(argv)
    push = prepare_push(training)
    with guarded_output(training.output_dir):
        trainer = build_trainer(model_arguments, data_arguments, training)
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        results = trainer.evaluate(metric_key_prefix="final") if trainer.eval_dataset is not None else {}
        results = {name.removeprefix("final_"): value for name, value in results.items()}
        if trainer.is_world_process_zero():
            for measure, value in results.items():
                print(f"{measure:12} {value:.5g}", flush=True)  # before anything is written, which can fail
        folder = save_image_tokenizer(
            trainer, results, data_arguments.train_data, data_arguments.eval_data, model_arguments.license
        )
    if push and trainer.is_world_process_zero():
        push_folder(folder, training)
    return results


def build_trainer(
    model_arguments: ImageTokenizerArguments, data_arguments: ImageArguments, training: DVAETrainingArguments
) -> DVAETrainer:
    """Build a seeded trainer from the arguments, ready to start.

    Raises:
        OSError, ValueError: as [`build_image_tokenizer`], [`load_train_data`] and [`load_eval_data`].
    """
    set_seed(training.seed)
    model = build_image_tokenizer(model_arguments)
    augmentation = RandomCropFlip(
        model.config.image_size, data_arguments.min_scale, data_arguments.flip, recolor=data_arguments.recolor
    )
    return DVAETrainer(
        model=model,
        args=training,
        data_collator=ImageCollator(augmentation),
        train_dataset=load_train_data(data_arguments, training),
        eval_dataset=load_eval_data(data_arguments),
    )


def build_image_tokenizer(arguments: ImageTokenizerArguments) -> COTSImageTokenizer:
    """Build a new image tokenizer from `--config`, or load the one to continue training.

    Raises:
        ValueError: if `--config` names an unknown field or is combined with `--model`, or if the model has no decoder.
    """
    fields = dict(arguments.config or {})  # type: ignore[arg-type]  # JSON is parsed
    if arguments.model and fields:
        raise ValueError("--model has its own config: leave out --config")
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(COTSImageTokenizerConfig)})
    if unknown:
        raise ValueError(f"--config: COTSImageTokenizerConfig has no field {', '.join(unknown)}")
    if arguments.model:
        with named_errors(arguments.model):
            model = COTSImageTokenizer.from_pretrained(arguments.model)
    else:
        model = COTSImageTokenizer(COTSImageTokenizerConfig(**fields))
    if model.decoder is None:
        raise ValueError("this image tokenizer has no decoder and cannot be trained")
    return model


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    run_program(train, argv)


if __name__ == "__main__":
    main()
