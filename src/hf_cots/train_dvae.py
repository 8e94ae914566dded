"""`python -m hf_cots.train_dvae` and `torchrun -m hf_cots.train_dvae`: train an image tokenizer on pictures.

    python -m hf_cots.train_dvae --train_data my_pictures/ --eval_data more_pictures/ --output_dir runs/dvae \\
        --config '{"image_size": 192, "codebook_size": 8192, "reconstruction": "logit_laplace", "kl_weight": 0.034}'

Captions are not needed. The tokenizer is left in `output_dir/model`, reconstructions of each evaluation in
`output_dir/reconstructions-*.png`, checkpoints with all training state in `output_dir/checkpoint-*`.
"""

import dataclasses
import logging
import shutil
import sys
from pathlib import Path

from transformers import set_seed

from .data.augmentation import RandomCropFlip
from .data.collator import ImageCollator
from .data.sources import PairDataset, load_pairs
from .data.streams import PairStream, load_stream
from .models import COTSImageTokenizer, COTSImageTokenizerConfig
from .training.arguments import (
    DVAETrainingArguments,
    ImageArguments,
    ImageTokenizerArguments,
    fields_of,
    parse_flags,
)
from .training.checkpoints import last_checkpoint
from .training.image_tokenizer import DVAETrainer
from .training.model_card import write_image_tokenizer_card
from .training.publish import push_folder


logger = logging.getLogger(__name__)


def build_image_tokenizer(arguments: ImageTokenizerArguments) -> COTSImageTokenizer:
    """A new one of the sizes that the flags give, or a trained one to go on from.

    Raises:
        ValueError: if the flags name a field that the config lacks, both a model and a config, or a model without a
            decoder.
    """
    fields = fields_of("config", arguments.config)
    if arguments.model and fields:
        raise ValueError("--model has its own config: leave --config away")
    if arguments.model:
        model = COTSImageTokenizer.from_pretrained(arguments.model)
    else:
        unknown = sorted(set(fields or {}) - {field.name for field in dataclasses.fields(COTSImageTokenizerConfig)})
        if unknown:
            raise ValueError(f"--config names what is no field of COTSImageTokenizerConfig: {', '.join(unknown)}")
        model = COTSImageTokenizer(COTSImageTokenizerConfig(**(fields or {})))
    if model.decoder is None:
        raise ValueError("an image tokenizer without a decoder cannot be trained")
    return model


def build_pictures(
    arguments: ImageArguments, training: DVAETrainingArguments
) -> tuple[PairDataset | PairStream, PairDataset | None]:
    """Pictures for training and evaluation; broken ones are reported in `output_dir/broken_images.jsonl`.

    Raises:
        FileNotFoundError, ValueError: naming the file or column that is wrong, or data smaller than a batch.
    """
    columns = (arguments.image_column, None, None)
    report = Path(training.output_dir) / "broken_images.jsonl"
    source = (arguments.train_data, *columns, arguments.train_split, training.seed, report)
    train = load_stream(*source, arguments.shuffle_block) if arguments.streaming else load_pairs(*source)
    batch = training.train_batch_size * training.world_size
    if isinstance(train, PairDataset) and training.dataloader_drop_last and len(train) < batch:
        raise ValueError(
            f"{arguments.train_data} holds {len(train)} pictures, a batch {batch}: lower --per_device_train_batch_size"
        )
    if arguments.eval_data is None:
        return train, None
    return train, load_pairs(arguments.eval_data, *columns, arguments.eval_split)


def train(argv: list[str] | None = None) -> dict[str, float]:
    """Train as the flags say; returns the final evaluation, nothing without `--eval_data`."""
    kinds = (ImageTokenizerArguments, ImageArguments, DVAETrainingArguments)
    model_arguments, data_arguments, training = parse_flags(kinds, argv, "Train an image tokenizer on pictures.")
    set_seed(training.seed)
    model = build_image_tokenizer(model_arguments)
    train_pictures, eval_pictures = build_pictures(data_arguments, training)
    # What goes to the Hub is the tokenizer; Trainer itself would push the checkpoints.
    push, training.push_to_hub = training.push_to_hub, False
    augmentation = RandomCropFlip(model.config.image_size, data_arguments.min_scale, data_arguments.flip)
    trainer = DVAETrainer(
        model=model,
        args=training,
        data_collator=ImageCollator(augmentation),
        train_dataset=train_pictures,
        eval_dataset=eval_pictures,
    )
    checkpoint = training.resume_from_checkpoint
    if checkpoint in ("True", "true", "last"):
        checkpoint = last_checkpoint(training.output_dir)  # the first start of a run has none
    trainer.train(resume_from_checkpoint=checkpoint)

    results = trainer.evaluate(metric_key_prefix="final") if eval_pictures is not None else {}
    results = {name.removeprefix("final_"): value for name, value in results.items()}
    if trainer.is_world_process_zero():
        folder = Path(training.output_dir) / "model"
        trainer.accelerator.unwrap_model(trainer.model).eval().save_pretrained(folder)
        if results:
            picture = Path(training.output_dir) / f"reconstructions-{trainer.state.global_step:06d}.png"
            shutil.copy(picture, folder / "reconstructions.png")
        name = training.hub_model_id or Path(training.output_dir).resolve().name
        about = (
            f"Trained on `{data_arguments.train_data}` for {trainer.state.global_step} steps of "
            f"{training.train_batch_size * training.gradient_accumulation_steps * training.world_size} pictures."
        )
        write_image_tokenizer_card(folder, model.config, about, results, data_arguments.eval_data, name)
        logger.info("saved the image tokenizer in %s", folder)
        for measure, value in results.items():
            print(f"{measure:12} {value:.5g}")
        if push:
            push_folder(folder, training)
    return results


def main(argv: list[str] | None = None) -> None:
    """Entry point: errors that the user can mend are one line, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        train(argv)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
