"""Load encoders, re-rankers and training checkpoints by Hub id or folder. No code that comes with a model is run.

A model whose file lacks weights is refused: they would be random, and so would every number computed with them.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from ..models import CookieConfig, COTSConfig, COTSProcessor, SimlaConfig, SimlaModel
from ..models.model_files import named_damage
from ..models.pretraining import PreTrainingModel
from .encoders import BlipRetrieval, DualEncoder, DualTower, Encoder, SentenceEncoder, TextEncoder


NO_REMOTE_CODE = {"trust_remote_code": False}


def default_device() -> torch.device:
    """The machine's accelerator, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def load_encoder(name: str, device: str | torch.device | None = None) -> Encoder:
    """Load an encoder by Hub id or folder.

    A folder or repository with a `modules.json` is opened by sentence-transformers. All else is opened by
    transformers: a dual encoder (COTS, CLIP, SigLIP, ...) with its processor, or a text-only model with mean pooling
    ([`TextEncoder`]).

    Args:
        name: Hub id or folder.
        device: where it computes; [`default_device`] if None.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is neither a dual encoder nor a text model, or if the file lacks weights of it.
        ModuleNotFoundError: for a sentence-transformers model without that package; names the extra to install.

    Example:
        >>> encoder = load_encoder("runs/demo/model")  # doctest: +SKIP
        >>> texts = encoder.encode_texts(["a red circle", "a dog"])  # doctest: +SKIP
        >>> texts.shape == (2, encoder.dim)  # doctest: +SKIP
        True
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"no such model folder: {name}")
    try:
        load = _load_sentence_encoder if _has_file(name, "modules.json") else _load_transformers_encoder
        with named_damage(name):
            return load(name, device)
    except OSError as error:
        raise OSError(f"cannot load the model '{name}': {str(error).splitlines()[0]}") from error


def load_reranker(name: str, device: str | torch.device | None = None) -> tuple[SimlaModel, COTSProcessor]:
    """Load a SIMLA model and its processor by Hub id or folder, for [`Reranker`].

    Args:
        name: Hub id or folder.
        device: where it computes; [`default_device`] if None.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is a model of another kind, or lacks weights.
    """
    config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE)
    if not isinstance(config, SimlaConfig):
        raise ValueError(f"{name} is '{config.model_type}' and cannot re-rank: name a SIMLA model")
    with named_damage(name):
        return _load_complete(AutoModel, name, device), AutoProcessor.from_pretrained(name, **NO_REMOTE_CODE)


def load_for_pretraining(
    name: str, device: str | torch.device | None = None
) -> tuple[PreTrainingModel, COTSProcessor]:
    """Load a training checkpoint of COTS, COOKIE or SIMLA with all its heads, and the processor.

    Args:
        name: Hub id or folder, such as `output_dir/checkpoint-1000`.
        device: where it computes; [`default_device`] if None.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is a model of another kind, or a deployable one without the heads.
    """
    config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE)
    if not isinstance(config, (COTSConfig, CookieConfig, SimlaConfig)):
        raise ValueError(f"{name} is '{config.model_type}': name a checkpoint of COTS, COOKIE or SIMLA")
    advice = ". Name a checkpoint of its pre-training, such as output_dir/checkpoint-1000, not a model to deploy"
    with named_damage(name):
        model = _load_complete(AutoModelForPreTraining, name, device, advice)
        return model, AutoProcessor.from_pretrained(name, **NO_REMOTE_CODE)


def _load_complete(auto_class: Any, name: str, device: str | torch.device | None, advice: str = "") -> PreTrainedModel:
    """The model in evaluation mode on its device, or an error that names weights that its file lacks."""
    try:
        model, loading = auto_class.from_pretrained(name, output_loading_info=True, **NO_REMOTE_CODE)
    except RuntimeError as error:  # transformers has just logged which weights have another shape
        raise ValueError(f"{name}: the weights do not fit the config: {str(error).splitlines()[0]}") from error
    unused = "pooler." if _is_text_only(model) else None  # we pool its tokens ourselves
    missing = sorted(key for key in loading["missing_keys"] if unused is None or not key.startswith(unused))
    if missing:
        kind, names = type(model).__name__, ", ".join(missing[:3])
        raise ValueError(f"{name}: {kind} needs weights that the file lacks: {names}{advice}")
    return model.eval().to(default_device() if device is None else device)


def _is_text_only(model: PreTrainedModel) -> bool:
    return model.input_modalities in ("text", ("text",))


def _load_transformers_encoder(name: str, device: str | torch.device | None) -> DualEncoder | TextEncoder:
    config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE)
    is_blip_retrieval = "BlipForImageTextRetrieval" in (config.architectures or ())
    model = _load_complete(BlipRetrieval if is_blip_retrieval else AutoModel, name, device)
    if _is_text_only(model):
        return TextEncoder(model, AutoTokenizer.from_pretrained(name, **NO_REMOTE_CODE), name)
    if not isinstance(model, DualTower):
        raise ValueError(
            f"{name}: {type(model).__name__} has no separate embeddings for images and texts (get_image_features, "
            f"get_text_features); name a dual encoder or a text model"
        )
    return DualEncoder(model, AutoProcessor.from_pretrained(name, **NO_REMOTE_CODE), name)


def _load_sentence_encoder(name: str, device: str | torch.device | None) -> SentenceEncoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is a sentence-transformers model; to use it: pip install 'hf-cots[sentence-transformers]'"
        ) from None
    return SentenceEncoder(SentenceTransformer(name, device=str(device or default_device())).eval(), name)


def _has_file(name: str, file: str) -> bool:
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    try:
        return cached_file(name, file) is not None
    except OSError:
        return False  # an unknown name is reported by the loading itself
