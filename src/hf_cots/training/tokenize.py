"""`hf-cots tokenize`: precompute the image tokenizer's codes for the crops of a training run."""

from pathlib import Path

from ..data.code_cache import write_codes
from ..data.sources import PairDataset
from .arguments import COTSTrainingArguments, DataArguments, ModelArguments
from .build_data import build_augmentation, build_data
from .build_model import build_model, build_tokenizer


def tokenize_training_data(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training: COTSTrainingArguments,
    output: Path,
    epochs: int = 1,
    batch_size: int = 32,
    shard_size: int = 16_384,
    workers: int = 0,
) -> tuple[int, int]:
    """Write the codes of the crops that a training run with these arguments sees, for its `--code_cache`.

    Args:
        model_arguments, data_arguments, training: the run's arguments; its model defines the normalization of pixels.
        output, epochs, batch_size, shard_size, workers: as for [`write_codes`].

    Returns:
        The number of crops that were tokenized now, and of those that were already there.

    Raises:
        ValueError: if the model has no image tokenizer or the data is a stream, and as [`write_codes`] says.
    """
    data_arguments.eval_data = None
    pairs, _ = build_data(data_arguments, training)
    if not isinstance(pairs, PairDataset):
        raise ValueError("codes can only be written for a data set of known length: leave out --streaming")
    model = build_model(model_arguments, build_tokenizer(model_arguments))
    if model.config.tokenizer_loss is None or model.image_tokenizer is None:
        raise ValueError("this model has no image tokenizer: codes are only used for masked image modeling")
    done = write_codes(
        pairs,
        model.image_tokenizer.float().eval().to(training.device),
        output,
        build_augmentation(model.config, data_arguments),
        epochs,
        model.config.image_mean,
        model.config.image_std,
        batch_size,
        shard_size,
        workers,
        progress=not training.disable_tqdm,
    )
    return done, epochs * len(pairs) - done
