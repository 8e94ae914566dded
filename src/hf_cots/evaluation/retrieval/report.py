"""A whole evaluation: figures with intervals, comparison, and what is needed to make the same again."""

import hashlib
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...data.images import BrokenImage
from ...data.sources import PairDataset
from ...search.encoders import EncodedPairs, Encoder, encode_pairs
from .directions import DIRECTIONS, DirectionResult, rank_both
from .metrics import rsum
from .protocols import split_folds
from .significance import LEVEL, PERMUTATIONS, RESAMPLES, bootstrap_samples, compare, intervals
from .transductive import Rescoring, dual_softmax, querybank


PACKAGES = ("hf-cots", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True)
class RetrievalResult:
    """One model on one data set.

    Args:
        model: its name, and `fingerprint` the hash of its weights.
        directions: results of both directions.
        parts: the encoded data, one for each fold; none for results that were read from a file.
    """

    model: str
    fingerprint: str
    directions: dict[str, DirectionResult]
    parts: list[EncodedPairs]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Of both directions."""
        return {name: direction.metrics() for name, direction in self.directions.items()}


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
        encoder: any of [`hf_cots.evaluation.load_encoder`].
        pairs: the data.
        folds: parts with a gallery each, whose figures are averaged.
        batch_size: pictures in a forward pass.
        progress: show a progress bar.
        split_queries: divide the queries among the processes of torchrun or accelerate, all of which must call.

    Raises:
        ValueError: if there is nothing to rank, or the pictures do not divide into folds.
    """
    encoded = encode_pairs(encoder, pairs, batch_size, progress)
    parts = split_folds(encoded, folds) if folds > 1 else [encoded]
    ranked = [rank_both(part, split_queries=split_queries) for part in parts]
    directions = {name: DirectionResult.joined([part[name] for part in ranked]) for name in DIRECTIONS}
    return RetrievalResult(encoder.name, encoder.fingerprint(), directions, parts)


def rescore(
    evaluated: RetrievalResult, beta: float, bank: EncodedPairs | None = None, split_queries: bool = False
) -> dict[str, Any]:
    """Both directions again under a transductive re-scoring, each row labelled.

    Args:
        evaluated: the plain results.
        beta: inverse temperature.
        bank: training pairs for querybank normalisation; dual softmax without.
        split_queries: as in [`evaluate_encoder`].

    Returns:
        `{"rescoring": label, "text_to_image": {..., "rescoring": label}, "image_to_text": ...}`.
    """

    def both(part: EncodedPairs) -> dict[str, Rescoring]:
        texts, images = part.text_embeds, part.image_embeds
        if bank is None:
            return {
                name: dual_softmax(*task, beta) for name, task in zip(DIRECTIONS, ((texts, images), (images, texts)))
            }
        return {
            "text_to_image": querybank(texts, images, bank.text_embeds, beta),
            "image_to_text": querybank(images, texts, bank.image_embeds, beta),
        }

    rescorings = [both(part) for part in evaluated.parts]
    ranked = [rank_both(part, how, split_queries) for part, how in zip(evaluated.parts, rescorings)]
    result: dict[str, Any] = {}
    for name in DIRECTIONS:
        label = rescorings[0][name].label
        result[name] = {"rescoring": label} | DirectionResult.joined([part[name] for part in ranked]).metrics()
    return result


def build_report(
    evaluated: RetrievalResult, other: RetrievalResult | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Figures, intervals and chance, and the comparison with another model if there is one.

    Args:
        evaluated: the model in question.
        other: another on the same data.
        resamples: of the bootstrap.
        seed: of bootstrap and randomisation test.

    Returns:
        For JSON: `text_to_image` and `image_to_text` with all metrics and their `intervals` (95%), `rsum` and
        `rsum_interval`, `chance`, `model`, `statistics`, and `comparison`.

    Raises:
        ValueError: if the two were not evaluated on the same data.
    """
    metrics = evaluated.metrics()
    spreads = intervals(bootstrap_samples(evaluated.directions, resamples, seed))
    report: dict[str, Any] = {name: metrics[name] | {"intervals": spreads[name]} for name in DIRECTIONS}
    report["rsum"], report["rsum_interval"] = rsum(metrics), spreads["total"]["rsum"]
    report["chance"] = {name: direction.chance() for name, direction in evaluated.directions.items()}
    report["model"] = {"name": evaluated.model, "fingerprint": evaluated.fingerprint}
    report["statistics"] = {
        "intervals": f"{LEVEL:.0%}, percentiles of the bootstrap over image ids, the gallery held fixed",
        "test": "paired randomisation test, outcomes exchanged by image id",
        "resamples": resamples,
        "permutations": PERMUTATIONS,
        "seed": seed,
    }
    if other is not None:
        differences = compare(evaluated.directions, other.directions, resamples, seed=seed)
        theirs = other.metrics()
        report["comparison"] = {
            "model": {"name": other.model, "fingerprint": other.fingerprint},
            **{name: theirs[name] for name in DIRECTIONS},
            "rsum": rsum(theirs),
            "differences": differences,
        }
    return report


def data_fingerprint(pairs: PairDataset) -> str:
    """32 hexadecimal digits: blake2b over the rows' image ids, captions and encoded pictures, in their order.

    Equal for equal data under any file name or data format, as long as the ids are equal, too.
    """
    digest = hashlib.blake2b(digest_size=16)
    captions = pairs.table[pairs.caption_column]
    for row in range(len(pairs.table)):
        texts = captions[row] if isinstance(captions[row], (list, tuple)) else [captions[row]]
        digest.update(f"{pairs.image_ids[row]}\0".encode())
        digest.update("".join(f"{text}\0" for text in texts).encode())
        digest.update(hashlib.blake2b(_encoded_picture(pairs, row)).digest())
    return digest.hexdigest()


def _encoded_picture(pairs: PairDataset, row: int) -> bytes:
    """The bytes of a row's picture file; nothing for a file that cannot be opened."""
    cell = pairs.table[row][pairs.image_column]
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes):
        return cell
    try:
        return (pairs.root / str(cell)).read_bytes()
    except OSError:
        return b""


def describe_data(pairs: PairDataset, fingerprint: str, broken: Sequence[BrokenImage]) -> dict[str, Any]:
    """What was evaluated on, for the report."""
    return {
        "name": pairs.name,
        "fingerprint": fingerprint,
        "rows": len(pairs.table),
        "captions": len(pairs),
        "image_column": pairs.image_column,
        "caption_column": pairs.caption_column,
        "left_out": [str(each) for each in broken],
    }


def environment(processes: int = 1) -> dict[str, Any]:
    """Command line, versions and machine, for the report."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": platform.platform(),
        "device": str(accelerator or "cpu"),
        "processes": processes,
    }
