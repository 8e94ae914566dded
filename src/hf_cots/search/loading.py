"""Load encoders, re-rankers and training checkpoints by Hub id or folder. Code that comes with a model is never run.

Models with missing weights are refused, since randomly initialized weights would make every result random.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_torch_available

from .._errors import describe_hub_fault
from ..models import CookieConfig, COTSConfig, COTSProcessor, SimlaConfig, fit_text_limit
from ..models.configuration_two_tower import TwoTowerConfig
from ..models.image_processing_cots import output_sides
from ..models.model_files import named_damage
from .encoders import Encoder, set_precision
from .exported import is_exported, load_exported


if TYPE_CHECKING:
    import torch

    from ..models import SimlaModel
    from ..models.pretraining import PreTrainingModel
    from .torch_encoders import DualEncoder, SentenceEncoder, TextEncoder

Device: TypeAlias = Union[str, "torch.device", None]
NO_REMOTE_CODE = {"trust_remote_code": False}


def default_device() -> "torch.device":
    """Return the machine's accelerator, or the CPU if it has none."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def check_source(name: str | Path) -> None:
    """Check that the name of a model or tokenizer is a file or folder, or has the form of a Hub id.

    Raises:
        FileNotFoundError: if it is neither.
    """
    if str(name).strip() and Path(name).exists():
        return
    if str(name).startswith((".", "/", "~")):
        raise FileNotFoundError(f"no such model folder: {name}")
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        raise FileNotFoundError(f"no such folder, and not a valid Hub id: {name}") from None


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn any loading error into one line that names the model, tokenizer or config.

    Raises:
        OSError: if it cannot be found or read.
        ValueError: if it cannot be used.
    """
    check_source(name)
    try:
        yield
    except Exception as error:
        fault = None if Path(name).exists() else describe_hub_fault(error)
        if fault is not None or isinstance(error, OSError):
            place = "" if Path(name).exists() else "no such folder, and on the Hub: "
            reason = fault or " ".join(str(error).split())
            raise OSError(f"cannot load the model '{name}': {place}{reason}") from error
        if not isinstance(error, ValueError) or name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error


def check_torch(name: str) -> None:
    """Check that torch is installed, as models that were not exported need it.

    Raises:
        ModuleNotFoundError: saying what to do.
    """
    if not is_torch_available():
        raise ModuleNotFoundError(
            "torch is not installed, and only exported models run without it: pip install torch, or run `hf-cots "
            f"export` on {name} where torch is installed"
        )


def _folder_or_id(name: str | Path) -> str:
    if Path(name).is_file():
        raise NotADirectoryError(f"{name} is a file: give the model's folder")
    return str(name)


def load_encoder(
    name: str | Path,
    device: Device = None,
    revision: str | None = None,
    token: str | bool | None = None,
    precision: str = "float32",
) -> Encoder:
    """Load an encoder by Hub id or folder.

    Folders written by `hf-cots export` are loaded with their runtime, and folders or repositories with a
    `modules.json` with sentence-transformers. All others are loaded with transformers: a dual encoder (COTS, CLIP,
    SigLIP, ...) with its processor, or a text-only model with mean pooling ([`TextEncoder`]).

    Args:
        name: Hub id or folder.
        device: device to run on; [`default_device`] if None.
        revision: branch, tag or commit on the Hub; the main branch if None.
        token: for a private or gated repository; that of `hf auth login` or HF_TOKEN if None.
        precision: precision to compute in: "float32" (as the weights), "bfloat16", or "auto", which is bfloat16 on
            GPUs that support it. The weights are not converted.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is neither a dual encoder nor a text model, if weights are missing, if the tokenizer or image
            processor does not fit, or if an exported model is to run on another device than the CPU.
        ModuleNotFoundError: naming the extra to install, if a package for exported or sentence-transformers models is
            missing; or if torch is missing and the model is not an exported one.

    Example:
        >>> encoder = load_encoder("runs/demo/model")  # doctest: +SKIP
        >>> texts = encoder.encode_texts(["a red circle", "a dog"])  # doctest: +SKIP
        >>> texts.shape == (2, encoder.dim)  # doctest: +SKIP
        True
    """
    name, hub = _folder_or_id(name), hub_options(revision, token)
    with named_errors(name), named_damage(name):
        if is_exported(name):
            if device is not None and str(device).partition(":")[0] != "cpu":
                raise ValueError(f"{name} is an exported model, which only runs on the CPU, not on {device}")
            return set_precision(load_exported(name), precision)
        check_torch(name)
        load = _load_sentence_encoder if _has_file(name, "modules.json", hub) else _load_transformers_encoder
        return set_precision(load(name, device, hub), precision)


def load_reranker(
    name: str | Path,
    device: Device = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> "tuple[SimlaModel, COTSProcessor]":
    """Load a SIMLA model and its processor by Hub id or folder, for [`Reranker`].

    Args:
        name: Hub id or folder.
        device: device to run on; [`default_device`] if None.
        revision: branch, tag or commit on the Hub; the main branch if None.
        token: for a private or gated repository; that of `hf auth login` or HF_TOKEN if None.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is another kind of model, or weights are missing.
    """
    name, hub = _folder_or_id(name), hub_options(revision, token)
    with named_errors(name), named_damage(name):
        check_torch(name)
        config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE, **hub)
        if not isinstance(config, SimlaConfig):
            raise ValueError(f"{name} has model_type '{config.model_type}' and cannot re-rank: use a SIMLA model")
        model = _load_complete(AutoModel, name, device, hub)
        return model, _load_fitting_processor(name, model, hub)


def load_for_pretraining(
    name: str | Path,
    device: Device = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> "tuple[PreTrainingModel, COTSProcessor]":
    """Load a training checkpoint of COTS, COOKIE or SIMLA with all its heads, and the processor.

    Args:
        name: Hub id or folder, such as `output_dir/checkpoint-1000`.
        device: device to run on; [`default_device`] if None.
        revision: branch, tag or commit on the Hub; the main branch if None.
        token: for a private or gated repository; that of `hf auth login` or HF_TOKEN if None.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is another kind of model, or a saved model without the pre-training heads.
    """
    name, hub = _folder_or_id(name), hub_options(revision, token)
    with named_errors(name), named_damage(name):
        check_torch(name)
        config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE, **hub)
        if not isinstance(config, (COTSConfig, CookieConfig, SimlaConfig)):
            raise ValueError(f"{name} has model_type '{config.model_type}': use a checkpoint of COTS, COOKIE or SIMLA")
        advice = ". Name a checkpoint of its pre-training, such as output_dir/checkpoint-1000, not a model to deploy"
        model = _load_complete(AutoModelForPreTraining, name, device, hub, advice)
        return model, _load_fitting_processor(name, model, hub)


def _load_fitting_processor(name: str, model: PreTrainedModel, hub: dict[str, Any]) -> Any:
    """Load the processor saved with a model.

    Raises:
        ValueError: if its tokenizer or its image size does not fit the model.
    """
    processor = AutoProcessor.from_pretrained(name, **NO_REMOTE_CODE, **hub)
    check_tokenizer(name, processor.tokenizer, model.config.get_text_config().vocab_size)
    if isinstance(model.config, TwoTowerConfig):
        fit_text_limit(processor.tokenizer, model.config)
        side = getattr(model.config.vision_config, "image_size", None)
        sides = output_sides(processor.image_processor)
        if isinstance(side, int) and (sides is None or set(sides) != {side}):
            made = "images of many sizes" if sides is None else f"{sides[0]} x {sides[1]} pixels"
            raise ValueError(f"{name}: the image processor outputs {made}, but the image tower needs {side} x {side}")
    return processor


def check_tokenizer(
    name: str | Path | None, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> None:
    """Check that a tokenizer has a vocabulary, and no more tokens than the text tower has embeddings.

    Args:
        name: name of the model for error messages.
        tokenizer: the tokenizer to check.
        vocab_size: number of embeddings of the text tower, if there is one to compare with.

    Raises:
        ValueError: saying what does not fit.
    """
    vocabulary = tokenizer.get_vocab()
    if not set(vocabulary) - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{name}: the tokenizer has no vocabulary, so every word would be unknown: is tokenizer.json or the "
            "vocabulary file missing?"
        )
    tokens = 1 + max(vocabulary.values())
    if vocab_size is not None and tokens > vocab_size:
        raise ValueError(f"{name}: the tokenizer has {tokens} tokens, but the text tower only {vocab_size}")


def hub_options(revision: str | None = None, token: str | bool | None = None) -> dict[str, Any]:
    """Return the Hub options of `from_pretrained` that are not None."""
    options = {"revision": revision, "token": token}
    return {name: value for name, value in options.items() if value is not None}


def _load_complete(
    auto_class: Any, name: str, device: Device, hub: dict[str, Any], advice: str = ""
) -> PreTrainedModel:
    """Load a model in evaluation mode to its device; raises a ValueError that names missing weights."""
    try:
        model, loading = auto_class.from_pretrained(name, output_loading_info=True, **NO_REMOTE_CODE, **hub)
    except RuntimeError as error:  # transformers has already logged which weights have another shape
        raise ValueError(f"{name}: the weights do not fit the config: {str(error).splitlines()[0]}") from error
    unused = "pooler." if _is_text_only(model) else None  # `TextEncoder` pools the tokens itself
    missing = sorted(key for key in loading["missing_keys"] if unused is None or not key.startswith(unused))
    if missing:
        kind, names = type(model).__name__, ", ".join(missing[:3])
        raise ValueError(f"{name}: {kind} needs weights that are missing from the file: {names}{advice}")
    return model.eval().to(default_device() if device is None else device)


def _is_text_only(model: PreTrainedModel) -> bool:
    return model.input_modalities in ("text", ("text",))


def _load_transformers_encoder(name: str, device: Device, hub: dict[str, Any]) -> "DualEncoder | TextEncoder":
    from .torch_encoders import BlipRetrieval, DualEncoder, DualTower, TextEncoder

    config = AutoConfig.from_pretrained(name, **NO_REMOTE_CODE, **hub)
    is_blip_retrieval = "BlipForImageTextRetrieval" in (config.architectures or ())
    model = _load_complete(BlipRetrieval if is_blip_retrieval else AutoModel, name, device, hub)
    if _is_text_only(model):
        tokenizer = AutoTokenizer.from_pretrained(name, **NO_REMOTE_CODE, **hub)
        check_tokenizer(name, tokenizer, config.vocab_size)
        return TextEncoder(model, tokenizer, name)
    if not isinstance(model, DualTower):
        raise ValueError(
            f"{name}: {type(model).__name__} has no separate embeddings for images and texts (get_image_features, "
            f"get_text_features); use a dual encoder or a text model"
        )
    return DualEncoder(model, _load_fitting_processor(name, model, hub), name)


def _load_sentence_encoder(name: str, device: Device, hub: dict[str, Any]) -> "SentenceEncoder":
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is a sentence-transformers model; to use it, pip install 'hf-cots[sentence-transformers]'"
        ) from None
    from .torch_encoders import SentenceEncoder

    return SentenceEncoder(SentenceTransformer(name, device=str(device or default_device()), **hub).eval(), name)


def _has_file(name: str, file: str, hub: dict[str, Any]) -> bool:
    """Whether a model's folder or repository has a file.

    Raises:
        OSError: if the Hub cannot be asked; guessing "no" would load the model in another way, with other embeddings.
    """
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    try:
        hf_hub_download(name, file, **hub)
    except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError):
        return False  # an unknown name is reported by the loading itself
    except Exception as error:
        files = (try_to_load_from_cache(name, each, revision=hub.get("revision")) for each in (file, "config.json"))
        here, is_cached = (isinstance(path, str) for path in files)
        if not is_cached and (describe_hub_fault(error) is not None or not isinstance(error, OSError)):
            raise
        return here
    return True
