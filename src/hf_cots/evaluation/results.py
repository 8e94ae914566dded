"""The protocol of evaluation results."""

from typing import Any, Protocol


class EvaluationResult(Protocol):
    """The result of an evaluator: retrieval, zero-shot classification, image retrieval, text similarity."""

    def metrics(self) -> dict[str, Any]:
        """Metrics by name, or by direction and name."""

    def chance(self) -> dict[str, Any]:
        """The same metrics for guessing."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: metrics with their `intervals`, and `chance`."""
