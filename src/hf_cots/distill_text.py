"""`python -m hf_cots.distill_text`: distill a multilingual text tower from translation pairs.

    python -m hf_cots.distill_text --teacher sentence-transformers/all-MiniLM-L6-v2 --train_data pairs.tsv \\
        --output_dir runs/multilingual --max_steps 1000

`pairs.tsv` has the columns `english`, `translation` and `language`. The student is saved in `output_dir/model`. It is
a text tower for training's `--text`, and for `hf-cots convert text-tower`, which puts it into a model whose text tower
is the teacher.
"""

import logging

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .conversion.text_tower import tower_fingerprint
from .data.translations import TranslationPairs, load_translations
from .models import COTSConfig
from .models.towers import load_tower
from .search.loading import default_device, named_errors
from .search.torch_encoders import text_options
from .training.arguments import (
    DistillationTrainingArguments,
    TeacherArguments,
    TranslationArguments,
    parse_distillation_arguments,
)
from .training.distillation import (
    POOLING,
    DistillationTrainer,
    TextCollator,
    embed_texts,
    save_student,
)
from .training.names import data_name
from .training.program import guarded_output, run_program
from .training.vocabulary import add_embeddings, extend_tokenizer


logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 256  # of the teacher


def train(argv: list[str] | None = None) -> dict[str, float]:
    """Train with these flags; returns the metrics of the final evaluation, empty without `--eval_data`."""
    teacher_arguments, data_arguments, training = parse_distillation_arguments(argv)
    with guarded_output(training.output_dir):
        trainer, fingerprint = build_trainer(teacher_arguments, data_arguments, training)
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        results = trainer.evaluate(metric_key_prefix="final") if trainer.eval_dataset is not None else {}
        results = {name.removeprefix("final_"): value for name, value in results.items()}
        if trainer.is_world_process_zero():
            for measure, value in results.items():
                print(f"{measure:16} {value:.5g}", flush=True)
        save_student(trainer, data_name(teacher_arguments.teacher), fingerprint)
    return results


def load_teacher(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a text tower and its tokenizer, or the text half of a dual encoder.

    Raises:
        OSError: if it does not exist.
        ValueError: if it cannot be used, or is a COTS whose text pooling is not the mean.
    """
    with named_errors(source):
        config = AutoConfig.from_pretrained(source)
        if isinstance(config, COTSConfig) and config.text_pooling != POOLING:
            raise ValueError(f'its text_pooling is "{config.text_pooling}", but a teacher needs "{POOLING}"')
        return load_tower(source, "text"), AutoTokenizer.from_pretrained(source)


def build_trainer(
    teacher_arguments: TeacherArguments, data_arguments: TranslationArguments, training: DistillationTrainingArguments
) -> tuple[DistillationTrainer, str]:
    """Build a seeded trainer from the arguments, ready to start.

    Returns:
        The trainer, and the teacher's fingerprint.

    Raises:
        OSError, ValueError: as [`load_teacher`], [`load_translations`] and [`extend_tokenizer`].
    """
    set_seed(training.seed)
    pairs = load_translations(
        data_arguments.train_data,
        data_arguments.train_split,
        **data_arguments.columns,
        languages=data_arguments.languages,
    )
    eval_pairs = load_eval_data(data_arguments)
    model, tokenizer = load_teacher(teacher_arguments.teacher)
    fingerprint = tower_fingerprint(model)
    model.to(default_device() if not training.use_cpu else "cpu")
    max_length = text_options(model, tokenizer)["max_length"] or data_arguments.max_text_length
    max_length = min(max_length, data_arguments.max_text_length)
    collator = TextCollator(tokenizer, max_length)
    targets = embed_texts(model, collator, pairs.sources, TEXTS_AT_ONCE)
    eval_targets = None if eval_pairs is None else embed_texts(model, collator, eval_pairs.sources, TEXTS_AT_ONCE)
    extended = extend_tokenizer(tokenizer, pairs.translations, teacher_arguments.vocab_size)
    add_embeddings(model, tokenizer, extended, pairs.english(), pairs.translations)
    students = TextCollator(extended, max_length)
    cut = collator.count_cut(pairs.sources) + students.count_cut(pairs.translations)
    if cut:
        logger.warning("%s: %d texts have more than %d tokens and are truncated", pairs.name, cut, max_length)
    trainer = DistillationTrainer(
        model=model,
        args=training,
        data_collator=students,
        train_dataset=pairs.with_sources(),
        eval_dataset=eval_pairs,
        processing_class=extended,
        targets=targets,
        eval_targets=eval_targets,
    )
    return trainer, fingerprint


def load_eval_data(arguments: TranslationArguments) -> TranslationPairs | None:
    """Load the evaluation data in all languages, if `--eval_data` is set.

    Raises:
        OSError, ValueError: as [`load_translations`].
    """
    if arguments.eval_data is None:
        return None
    return load_translations(arguments.eval_data, arguments.eval_split, **arguments.columns)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    run_program(train, argv)


if __name__ == "__main__":
    main()
