"""Processor of COTS: an image processor and a tokenizer in one object."""

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin


class COTSProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    # Texts are cut at the tokenizer's model_max_length: a long caption must not stop a run.
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "return_token_type_ids": False}}


class COTSProcessor(ProcessorMixin):
    """`processor(images=..., text=..., return_tensors="pt")` gives `pixel_values`, `input_ids`, `attention_mask`.

    Args:
        image_processor ([`COTSImageProcessor`] or any other).
        tokenizer (any fast tokenizer): texts are padded to the longest of the batch and cut at `model_max_length`.
    """

    valid_processor_kwargs = COTSProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns. A tokenizer's own list may name token types, which no call asks it for."""
        return [name for name in super().model_input_names if name != "token_type_ids"]


__all__ = ["COTSProcessor"]
