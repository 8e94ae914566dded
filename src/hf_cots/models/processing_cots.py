"""Processor of COTS: an image processor and a tokenizer in one object."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .image_processing_cots import COTSImageProcessor
from .processing_dual_encoder import as_cots_image_processor, load_dual_processor, pads_to_full_length, text_limit
from .video_processing_cots import COTSVideoProcessor


# Options of a call that a tokenizer may carry along, from its file or its constructor. ProcessorMixin lets them win
# over everything else, so that a processor would cut texts at another length than its own tokenizer does.
CARRIED_OPTIONS = ("max_length", "truncation", "padding", "stride", "truncation_strategy", "pad_to_multiple_of")
NO_LIMIT = 10**9  # tokenizers without a limit of their own say 10**30


def as_texts(texts: Any) -> list[str]:
    """List the texts of one text, or of any ordered collection of them (list, tuple, array, generator, column).

    Raises:
        ValueError: naming the first that is no text.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, dict, set, frozenset)):
        raise ValueError(f"texts must be a text or a list of texts, not {type(texts).__name__}")
    found = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
    for i, text in enumerate([found] if isinstance(found, str) else found):
        if not isinstance(text, str):
            raise ValueError(f"text number {i} must be a str, got {str(text)[:40]!r} ({type(text).__name__})")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"text number {i} is not valid Unicode: {text[:40]!r}")
    return [found] if isinstance(found, str) else found


def fit_text_limit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Lower a tokenizer's `model_max_length`, the one limit of all texts, to the positions of a model's text tower."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < tokenizer.model_max_length:
        tokenizer.model_max_length = positions


class COTSProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    # Texts are cut at the tokenizer's model_max_length: a long caption must not stop a run.
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "return_token_type_ids": False}}


class COTSProcessor(ProcessorMixin):
    """`processor(images=..., text=..., return_tensors="pt")` gives `pixel_values`, `input_ids`, `attention_mask`;
    `processor(videos=..., num_frames=8)` gives `pixel_values_videos` and `frame_mask`.

    Texts are padded to the longest of the batch and cut at the tokenizer's `model_max_length`, which is the limit in
    training, evaluation and search alike. Another length that the tokenizer carries, in its file or constructor,
    counts only if it has no `model_max_length`.

    Args:
        image_processor ([`COTSImageProcessor`] or any other).
        tokenizer (any fast tokenizer).
        padding (`"longest"` or `"max_length"`, defaults to `"longest"`): what texts are padded to whenever they
            are: the longest of the batch, or `model_max_length`, whatever else a call asks for. A text tower that does
            not ignore padding, such as SigLIP's, needs the length that it was trained with.
        video_processor ([`COTSVideoProcessor`], *optional*): by default the one that gives 8 frames of a clip the
            pixels that the image processor gives images; a file names it only if it is another.
    """

    valid_processor_kwargs = COTSProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        padding: Literal["longest", "max_length"] = "longest",
        video_processor: COTSVideoProcessor | None = None,
    ):
        if video_processor is None:
            video_processor = COTSVideoProcessor.from_image_processor(image_processor)
        super().__init__(image_processor, tokenizer, video_processor)
        if padding not in ("longest", "max_length"):
            raise ValueError(f'padding must be "longest" or "max_length", got {padding!r}')
        self.padding = padding
        carried = {name: tokenizer.init_kwargs.pop(name, None) for name in CARRIED_OPTIONS}
        if tokenizer.model_max_length > NO_LIMIT and isinstance(carried["max_length"], int):
            tokenizer.model_max_length = carried["max_length"]
        if tokenizer.is_fast:  # the next call sets them again; until then a saved file should not carry others
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()

    def check_argument_for_proper_class(self, argument_name, argument):
        """As in transformers, whose own class of video processors is hidden without torchvision."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, COTSVideoProcessor):
            raise TypeError(f"video_processor must be a COTSVideoProcessor, got a {type(argument).__name__}")
        return COTSVideoProcessor

    @property
    def model_input_names(self) -> list[str]:
        """What a call of images and texts returns. A tokenizer's own list may name token types, which no call asks it
        for."""
        videos = self.video_processor.model_input_names
        return [name for name in super().model_input_names if name not in ("token_type_ids", *videos)]

    @classmethod
    def from_dual_encoder(cls, source: str | Path, **hub: Any) -> "COTSProcessor":
        """The processor of another dual encoder, such as CLIP or SigLIP. It gives the same pixels of 8-bit RGB
        images, to 1e-6, and the same tokens as the source's with `truncation=True` and the padding of its training.

        Images of other kinds are read as everywhere here: turned upright, transparency composited on white, 16-bit
        grayscale scaled. transformers' own does the second by itself since 5.24, and the others not.

        Args:
            source: Hub id or folder of the dual encoder; sentence-transformers' folders of a CLIP too.
            hub: `revision` (branch, tag or commit) and `token`.

        Raises:
            OSError: if it is not there.
            ValueError: naming what its processor does that cannot be expressed.
            ModuleNotFoundError: naming the package that its tokenizer needs.
        """
        theirs, config = load_dual_processor(str(source), **hub)
        tokenizer = theirs.tokenizer
        tokenizer.model_max_length = text_limit(theirs, config)
        padding: Literal["longest", "max_length"] = "longest"
        if pads_to_full_length(theirs, config):
            padding = "max_length"
        return cls(as_cots_image_processor(theirs.image_processor), tokenizer, padding)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a tokenizer without any limit gets that of the text tower in the same place."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = processor.tokenizer
        if tokenizer.model_max_length > NO_LIMIT:
            try:
                fields, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            except OSError:  # a processor without a model
                fields = {}
            positions = fields.get("text_config", {}).get("max_position_embeddings")
            tokenizer.model_max_length = positions or tokenizer.model_max_length
        return processor

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """As in transformers, but without torchvision, and from files that name no video processor too."""
        image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        fields = (processor_dict or {}).get("video_processor")
        if fields is None:
            fields = COTSVideoProcessor.from_image_processor(image_processor).to_dict()
        known = COTSVideoProcessor.valid_kwargs.__annotations__.keys() & kwargs.keys()
        video_processor = COTSVideoProcessor.from_dict(fields, **{name: kwargs[name] for name in known})
        return [image_processor, tokenizer, video_processor]

    @classmethod
    def from_args_and_dict(cls, args, processor_dict, **kwargs):
        """As in transformers, which hands over all parts by their position; here `padding` stands before the last."""
        *parts, video_processor = args
        return super().from_args_and_dict(parts, processor_dict, video_processor=video_processor, **kwargs)

    def __call__(self, images=None, text=None, videos=None, *args, **kwargs):
        """As in transformers; besides, texts may be any collection, and images and clips all that the image and the
        video processor read.

        Raises:
            OSError, ValueError: naming the text, image or clip that is none, or if there is none at all.
        """
        # By name: without the package, the Auto classes load each file's classes apart.
        bases = {base.__name__ for base in type(self.image_processor).__mro__}
        if videos is not None and COTSImageProcessor.__name__ not in bases:
            raise ValueError(f"clips need a COTSImageProcessor, but this processor has {self.image_processor!r}")
        if text is not None:
            texts = as_texts(text)
            if not texts:
                raise ValueError("text is empty: give at least one text")
            text = texts[0] if isinstance(text, str) else texts
        return super().__call__(images, text, videos, *args, **kwargs)

    def _merge_kwargs(self, *args, tokenizer_init_kwargs=None, **kwargs):
        """As in transformers, but for options that the tokenizer was made with, see `CARRIED_OPTIONS`, and for the
        length that texts are padded to."""
        merged = super()._merge_kwargs(*args, **kwargs)
        if self.padding == "max_length" and merged["text_kwargs"].get("padding"):
            merged["text_kwargs"]["padding"] = "max_length"
        return merged

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, but the default padding and video processor are not written, as in older files."""
        fields = super().to_dict()
        if fields.get("padding") == "longest":
            del fields["padding"]
        usual = COTSVideoProcessor.from_image_processor(self.image_processor).to_dict()
        found = dict(fields.get("video_processor") or {})
        found.pop("auto_map", None)
        if found == usual:
            fields.pop("video_processor", None)
        return fields
