"""The protocol of evaluation results."""

from typing import Any, Protocol


class EvaluationResult(Protocol):
    """The interface of results: of retrieval, zero-shot classification, image retrieval and text similarity."""

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name, or by direction and name."""

    def chance(self) -> dict[str, Any]:
        """Return the same metrics for guessing."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types: metrics with their `intervals`, and `chance`."""
