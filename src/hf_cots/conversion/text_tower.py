"""Another text tower in place of a model's own: that of a student which was distilled from it."""

import json
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._errors import naming
from ..data.hashes import weights_fingerprint
from ..models import COTSModel
from ..models.towers import copy_tower, load_tower


DISTILLATION = "distillation.json"


def tower_fingerprint(tower: nn.Module) -> str:
    """Hash a text tower's weights but for its pooler, which the mean over tokens does not use."""
    kept = nn.Module()
    for name, child in tower.named_children():
        if name != "pooler":
            kept.add_module(name, child)
    return weights_fingerprint(kept)


def replace_text_tower(model: COTSModel, folder: Path) -> COTSModel:
    """A model with a distilled text tower in place of its own, and all else as it is: its images' embeddings do not
    change, and those of texts are as near to the old ones as the student is to its teacher.

    Args:
        model: whose text tower is the teacher.
        folder: of the student, as `hf-cots distill-text` writes it.

    Raises:
        FileNotFoundError: if the folder does not say from which tower it was distilled.
        ValueError: if that is not the model's, or their tokens are pooled in another way.
    """
    path = folder / DISTILLATION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {DISTILLATION}: name the folder that `hf-cots distill-text` wrote")
    with naming(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        teacher, fingerprint, pooling = (record[name] for name in ("teacher", "teacher_fingerprint", "pooling"))
    if model.config.text_pooling != pooling:
        raise ValueError(f'the model\'s text_pooling is "{model.config.text_pooling}", that of {folder} "{pooling}"')
    if tower_fingerprint(model.text_model) != fingerprint:
        raise ValueError(
            f"the model's text tower is not {teacher}, the teacher of {folder}, or was trained since: distill it "
            "itself, with hf-cots distill-text --teacher and the model's folder"
        )
    student = load_tower(str(folder), "text")
    config = type(model.config).from_dict(model.config.to_dict() | {"text_config": student.config.to_dict()})
    replaced = type(model)(config)
    kept = {name: rows for name, rows in model.state_dict().items() if not name.startswith("text_model.")}
    replaced.load_state_dict(kept, strict=False)
    copy_tower(replaced.text_model, student)
    return replaced.eval()


def fit_tokenizer(student: PreTrainedTokenizerBase, before: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The student's tokenizer, which cuts texts where the model's own did."""
    student.model_max_length = before.model_max_length
    return student
