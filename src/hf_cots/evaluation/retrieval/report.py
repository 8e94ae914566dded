"""The report of an evaluation: metrics with intervals, comparison, and everything needed to reproduce it."""

import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers.utils import is_torch_available

from ...data.images import BrokenImage
from ...data.sources import PairDataset
from ...search.encoders import DIRECTIONS, EncodedPairs, Encoder, encode_pairs
from ...search.loading import default_device
from .directions import DirectionResult, rank_both
from .metrics import rsum
from .protocols import split_folds
from .significance import LEVEL, PERMUTATIONS, RESAMPLES, bootstrap_samples, compare, intervals
from .transductive import Rescoring, dual_softmax, querybank


PACKAGES = ("hf-cots", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True)
class RetrievalResult:
    """The retrieval result of one model on one data set.

    Args:
        model: name of the model.
        fingerprint: hash of its weights.
        directions: results of both directions.
        parts: the encoded data, one part per fold; empty for results that were read from a file.
    """

    model: str
    fingerprint: str
    directions: dict[str, DirectionResult]
    parts: list[EncodedPairs]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Compute the metrics of each direction."""
        return {name: direction.metrics() for name, direction in self.directions.items()}

    def chance(self) -> dict[str, dict[str, float]]:
        """Compute the same metrics for guessing."""
        return {name: direction.chance() for name, direction in self.directions.items()}

    def to_dict(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
        """Convert to JSON types: `text_to_image` and `image_to_text` with all metrics and their `intervals` (95%),
        `rsum`, `rsum_interval`, `chance` and `model`.

        Args:
            resamples, seed: number of bootstrap resamples and their random seed.
        """
        metrics, spreads = self.metrics(), intervals(bootstrap_samples(self.directions, resamples, seed))
        return {name: metrics[name] | {"intervals": spreads[name]} for name in DIRECTIONS} | {
            "rsum": rsum(metrics),
            "rsum_interval": spreads["total"]["rsum"],
            "chance": self.chance(),
            "model": {"name": self.model, "fingerprint": self.fingerprint},
        }


def evaluate_encoder(
    encoder: Encoder,
    pairs: PairDataset,
    folds: int = 1,
    batch_size: int = 64,
    progress: bool = False,
    split_queries: bool = False,
) -> RetrievalResult:
    """Encode a data set and rank it in both directions.

    Args:
        encoder: see [`hf_cots.search.loading.load_encoder`].
        pairs: the data.
        folds: number of parts with a gallery each, whose metrics are averaged.
        batch_size: images per forward pass.
        progress: show a progress bar.
        split_queries: divide images and queries among the processes of torchrun or accelerate, all of which must call.

    Raises:
        ValueError: if there is nothing to rank, or the images do not divide into folds.
    """
    encoded = encode_pairs(encoder, pairs, batch_size, progress, split_queries)
    parts = split_folds(encoded, folds) if folds > 1 else [encoded]
    ranked = [rank_both(part, split_queries=split_queries) for part in parts]
    directions = {name: DirectionResult.from_folds([part[name] for part in ranked]) for name in DIRECTIONS}
    return RetrievalResult(encoder.name, encoder.fingerprint(), directions, parts)


def rescore(
    result: RetrievalResult, beta: float, bank: EncodedPairs | None = None, split_queries: bool = False
) -> dict[str, Any]:
    """Rank both directions again under a transductive re-scoring.

    Args:
        result: the result without re-scoring.
        beta: inverse temperature.
        bank: training pairs for querybank normalization; dual softmax if None.
        split_queries: as in [`evaluate_encoder`].

    Returns:
        `{"text_to_image": {"rescoring": label, ...}, "image_to_text": ...}` with all metrics.
    """

    def rescoring(part: EncodedPairs, direction: str) -> Rescoring:
        queries, gallery, *_ = part.side(direction)
        if bank is None:
            return dual_softmax(queries, gallery, beta)
        return querybank(queries, gallery, bank.side(direction).query_embeds, beta)

    rescorings = [{name: rescoring(part, name) for name in DIRECTIONS} for part in result.parts]
    ranked = [rank_both(part, by_direction, split_queries) for part, by_direction in zip(result.parts, rescorings)]
    return {
        name: {"rescoring": rescorings[0][name].label}
        | DirectionResult.from_folds([part[name] for part in ranked]).metrics()
        for name in DIRECTIONS
    }


def build_report(
    result: RetrievalResult, other: RetrievalResult | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Report metrics, intervals and chance, and the comparison with another model if there is one.

    Args:
        result: result of the model.
        other: result of another model on the same data.
        resamples: number of bootstrap resamples.
        seed: random seed of bootstrap and randomization test.

    Returns:
        JSON types: the entries of [`RetrievalResult.to_dict`], `statistics`, and `comparison` if there is another
        model.

    Raises:
        ValueError: if the two were not evaluated on the same data.
    """
    report = result.to_dict(resamples, seed)
    report["statistics"] = {
        "intervals": f"{LEVEL:.0%}, percentiles of the bootstrap over image ids, the gallery held fixed",
        "test": "paired randomisation test, outcomes exchanged by image id",
        "resamples": resamples,
        "permutations": PERMUTATIONS,
        "seed": seed,
    }
    if other is not None:
        report["comparison"] = compare_results(result, other, resamples, seed)
    return report


def compare_results(
    result: RetrievalResult, other: RetrievalResult, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Build the entry `comparison` of a report; arguments and errors as for [`build_report`]."""
    metrics = other.metrics()
    return {
        "model": {"name": other.model, "fingerprint": other.fingerprint},
        **{name: metrics[name] for name in DIRECTIONS},
        "rsum": rsum(metrics),
        "differences": compare(result.directions, other.directions, resamples, seed=seed),
    }


def describe_data(pairs: PairDataset, fingerprint: str, broken: Sequence[BrokenImage]) -> dict[str, Any]:
    """Describe name, fingerprint and sizes of the data for the report."""
    frames = {} if pairs.num_frames is None else {"num_frames": pairs.num_frames}
    return {
        "name": pairs.name,
        "fingerprint": fingerprint,
        "rows": len(pairs.table),
        "captions": len(pairs),
        "video_column" if frames else "image_column": pairs.image_column,
        **frames,
        "caption_column": pairs.caption_column,
        "left_out": [str(each) for each in broken],
    }


def environment(processes: int = 1) -> dict[str, Any]:
    """Describe command line, versions and machine for the report."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": installed_versions(PACKAGES),
        "machine": platform.platform(),
        "device": str(default_device()) if is_torch_available() else "cpu",
        "processes": processes,
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
