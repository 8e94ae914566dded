"""How much data a run has: told before training and evaluation, and kept as `data_report.json`.

A run that uses a fraction of its data, cuts half of its captions or evaluates on what it was trained on looks like any
other in its loss. These are the numbers that show it.
"""

import logging
from dataclasses import dataclass, field


logger = logging.getLogger(__name__)

REPORT = "data_report.json"
SAMPLE = 10_000  # captions that are tokenized, evenly spaced
WARN_ABOVE = 0.03


@dataclass(frozen=True)
class DataSummary:
    """One data set.

    Attributes:
        name: what the user called it.
        pairs, images: how many; of a stream unknown, None.
        captions_per_image: mean over the images.
        dropped: pairs that are not used, by reason.
        sampled: captions that the next two were measured on.
        truncated: fraction of captions cut at the tokenizer's limit.
        unknown_tokens: fraction of tokens that the vocabulary lacks.
    """

    name: str
    pairs: int | None
    images: int | None
    captions_per_image: float | None
    dropped: dict[str, int] = field(default_factory=dict)
    sampled: int = 0
    truncated: float = 0.0
    unknown_tokens: float = 0.0

    def __str__(self) -> str:
        if self.pairs is None:
            amount = "a stream, whose pairs are counted as they come"
        else:
            amount = f"{self.pairs:,} pairs, {self.images:,} images, {self.captions_per_image:.2f} captions per image"
        dropped = "".join(f"; {count:,} dropped: {reason}" for reason, count in self.dropped.items())
        return (
            f"{self.name}: {amount}{dropped}; of {self.sampled:,} captions {self.truncated:.1%} are cut at the limit, "
            f"{self.unknown_tokens:.1%} of their tokens are unknown"
        )

    def warnings(self) -> list[str]:
        """What is more than a few percent."""
        found = []
        if self.truncated > WARN_ABOVE:
            found.append(f"{self.name}: {self.truncated:.1%} of the captions are longer than the limit and are cut")
        if self.unknown_tokens > WARN_ABOVE:
            found.append(
                f"{self.name}: {self.unknown_tokens:.1%} of the tokens are unknown to the tokenizer; is it one for this "
                "language?"
            )
        return found


@dataclass(frozen=True)
class Overlap:
    """What of the evaluation data is in the training data.

    Attributes:
        captions: evaluation pairs whose caption, in lower case and without punctuation, is one of training.
        images: evaluation pairs whose image is the same file or has the same bytes as one of training.
        pairs: of all evaluation pairs.
    """

    captions: int
    images: int
    pairs: int

    def __str__(self) -> str:
        return (
            f"of {self.pairs:,} evaluation pairs {self.captions:,} have a caption and {self.images:,} an image of the "
            "training data"
        )

    def warnings(self) -> list[str]:
        """Told above a few percent, and if most images are the same as evaluation on training data."""
        if self.images > self.pairs / 2:
            return [f"evaluation on training data: {self}"]
        return [str(self)] if max(self.captions, self.images) > WARN_ABOVE * self.pairs else []
