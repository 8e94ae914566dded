"""Keep-masks: small JSON files that say which pairs of a data set training should skip."""

import json
from pathlib import Path

import numpy as np

from .sources import PairDataset


def write_keep_mask(path: Path, pairs: PairDataset, kept: np.ndarray) -> None:
    """Write a mask that [`apply_keep_mask`] accepts for the same data.

    The file holds `{"pairs": int, "fingerprint": str, "left_out": [index, ...]}` and may be edited by hand.

    Args:
        path: the file.
        pairs: the data, before any pairs are dropped.
        kept: (len(pairs),) bool.
    """
    mask = {"pairs": len(pairs), "fingerprint": pairs.fingerprint(), "left_out": np.flatnonzero(~kept).tolist()}
    path.write_text(json.dumps(mask) + "\n")


def apply_keep_mask(pairs: PairDataset, path: Path | str) -> None:
    """Drop the pairs that a mask names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not a mask, was made for other data, or names a pair that does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such keep-mask: {path}")
    try:
        mask = json.loads(path.read_text())
        count, fingerprint = mask["pairs"], mask["fingerprint"]
        left_out = np.asarray(mask["left_out"], dtype=np.int64)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a keep-mask of `hf-cots audit`: {type(error).__name__}: {error}") from None
    if count != len(pairs):
        raise ValueError(f"{path} was made for {count} pairs, but {pairs.name} has {len(pairs)}")
    if fingerprint != pairs.fingerprint():
        raise ValueError(
            f"{path} was made for other data than {pairs.name}: captions, file names or their order differ; run "
            "`hf-cots audit` on this data"
        )
    if len(left_out) and not (left_out.min() >= 0 and left_out.max() < count):
        raise ValueError(f"{path} leaves out pair {left_out.max()}, but pairs are numbered from 0 to {count - 1}")
    kept = np.ones(count, dtype=bool)
    kept[left_out] = False
    pairs.keep(kept, f"keep mask {path.name}")
