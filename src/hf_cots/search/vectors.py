"""Vectors in four precisions, and search over them.

`float32` stores vectors unchanged. `float16` rounds each number. `int8` stores 127 steps up to a vector's largest
number, and a scale that gives the decoded vector length 1 again. With each of them the search is exact over the stored
vectors: candidates are found in float32, with FAISS if it is installed, and sorted in float64. `binary` stores the
same as int8, but searches for candidates by the signs alone, one bit per number.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np


DTYPES = ("float32", "float16", "int8", "binary")
BLOCK = 65_536  # rows that are decoded or gathered at a time
MOST_CANDIDATES = 2_048  # FAISS is used up to this number; for more, numpy computes all scores


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    """Normalize (n, D) vectors to length 1, float32; computes in float64, so that the result of a vector does not
    depend on the others."""

    exact = np.asarray(vectors, dtype=np.float64)
    return (exact / np.maximum(np.linalg.norm(exact, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def row_type(dim: int, dtype: str) -> np.dtype:
    """Return the numpy dtype of one stored vector.

    Raises:
        ValueError: if the precision is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"the dtype of vectors must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if dtype in ("int8", "binary"):
        return np.dtype([("scale", "<f4"), ("values", "i1", (dim,))])
    return np.dtype(("<f4" if dtype == "float32" else "<f2", (dim,)))


def pack(embeds: np.ndarray, dtype: str) -> np.ndarray:
    """Convert (n, D) float32 vectors of length 1 to stored ones."""
    if dtype in ("float32", "float16"):
        return np.ascontiguousarray(embeds, dtype="<f4" if dtype == "float32" else "<f2")
    largest = np.abs(embeds).max(axis=1, keepdims=True, initial=1e-30)
    rows = np.empty(len(embeds), dtype=row_type(embeds.shape[1], dtype))
    rows["values"] = np.rint(embeds / largest * 127)
    rows["scale"] = 1 / np.maximum(np.linalg.norm(rows["values"].astype(np.float32), axis=1), 1)
    return rows


def unpack(rows: np.ndarray) -> np.ndarray:
    """Convert stored vectors to (n, D) float32; without a copy if they are float32."""
    if rows.dtype.names:
        return rows["values"].astype(np.float32) * rows["scale"][:, None]
    return rows if rows.dtype == np.float32 else rows.astype(np.float32)


def packing_error(embeds: np.ndarray, dtype: str) -> float:
    """Compute a bound on how much scores of stored vectors differ from float32 scores: the largest distance between a
    stored vector and the original.

    By the Cauchy-Schwarz inequality, it holds for every query of length 1.
    """
    if dtype == "float32" or len(embeds) == 0:
        return 0.0
    return float(np.linalg.norm(unpack(pack(embeds, dtype)) - embeds, axis=1).max())


@cache
def load_faiss():
    """Import FAISS; None if it is not installed, as numpy gives equal results in two to three times the time."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def nearest(
    rows: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows with the largest dot products, exactly, and all that tie with the last of them.

    Float32 scores of candidates differ from the exact ones by at most half of `margin`, so the candidates are complete
    once the last one is more than `margin` below the k-th.

    Args:
        rows: (n,) stored vectors of about length 1, in memory or memory-mapped.
        query: (D,) of about length 1.
        k: number of rows to find.
        allowed: (n,) bool, the rows to search; all if None.

    Returns:
        (m,) row numbers and (m,) float64 scores, best first; rows with equal scores are in ascending order.
    """
    total = len(rows) if allowed is None else int(allowed.sum())
    k = min(k, total)
    if k == 0:
        return np.empty(0, dtype=np.int64), np.empty(0)
    query = np.ascontiguousarray(query, dtype=np.float32)
    subset = np.flatnonzero(allowed) if allowed is not None and total < len(rows) // 4 else None
    count = total if subset is not None else len(rows)
    margin = 4 * len(query) * 2.0**-24
    fetch = k + 32
    while True:
        fetch = min(fetch, count)
        found, scores = _candidates(rows, query, fetch, subset)
        if allowed is not None and subset is None:
            kept = allowed[found]
            last, found, scores = scores[-1], found[kept], scores[kept]
        else:
            last = scores[-1]
        if fetch == count or (len(found) >= k and last < scores[k - 1] - margin):
            break
        fetch *= 4
    return rank(rows, query, found, k)


def rank(rows: np.ndarray, query: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Select the k best of some rows, and all that tie with the last, by float64 dot products; returns the same as
    [`nearest`].

    Args:
        rows, query: as for [`nearest`].
        found: (m,) distinct row numbers, in any order.
        k: number of rows to select.
    """
    found = np.sort(found)
    # Each row is summed on its own, so that equal vectors have equal scores.
    exact = (unpack(rows[found]).astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    order = np.argsort(-exact, kind="stable")
    found, exact = found[order], exact[order]
    keep = exact >= exact[min(k, len(exact)) - 1] if len(exact) else slice(0)
    return found[keep], exact[keep]


def sign_bits(rows: np.ndarray) -> np.ndarray:
    """Return the signs of stored vectors as (n, D / 8) uint8, one bit per number: whether it is above 0."""
    values = rows["values"] if rows.dtype.names else rows
    parts = [np.packbits(values[start : start + BLOCK] > 0, axis=1) for start in range(0, len(values), BLOCK)]
    return np.concatenate(parts) if parts else np.packbits(np.empty(values.shape, dtype=bool), axis=1)


def nearest_by_signs(
    rows: np.ndarray, bits: np.ndarray, query: np.ndarray, k: int, candidates: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find (approximately) the k rows with the largest dot products: among the rows whose signs differ least from the
    query's, the best by exact scores. Returns the same as [`nearest`].

    Args:
        rows, query, k, allowed: as for [`nearest`].
        bits: signs of the rows; see [`sign_bits`].
        candidates: number of rows that are scored exactly.
    """
    width = next(size for size in (8, 4, 2, 1) if bits.shape[1] % size == 0)  # bytes compared at a time
    words, (asked,) = (each.view(f"u{width}") for each in (bits, np.packbits(query > 0)[None]))
    differing = np.zeros(len(rows), dtype=np.int32)
    for column, word in zip(words.T, asked):  # numpy adds up long columns faster than short rows
        differing += np.bitwise_count(column ^ word)
    if allowed is not None:
        differing[~allowed] = 8 * bits.shape[1] + 1
    count = min(max(candidates, k), len(rows))
    found = np.argpartition(differing, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    return rank(rows, query, found if allowed is None else found[allowed[found]], k)


def _candidates(
    rows: np.ndarray, query: np.ndarray, count: int, subset: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers and scores of the `count` best rows by float32 dot products, best first."""
    found, scores = zip(*(_best_of(vectors, query, count, numbers) for numbers, vectors in _blocks(rows, subset)))
    merged, merged_scores = np.concatenate(found), np.concatenate(scores)
    order = np.argsort(-merged_scores, kind="stable")[:count]
    return merged[order], merged_scores[order]


def _blocks(rows: np.ndarray, subset: np.ndarray | None) -> Iterator[tuple[np.ndarray | int, np.ndarray]]:
    """Yield row numbers (or the first, if they are consecutive) and float32 vectors, block by block; float32 rows are
    one block."""
    if subset is None and rows.dtype == np.float32:
        yield 0, rows
        return
    for start in range(0, len(rows) if subset is None else len(subset), BLOCK):
        if subset is None:
            yield start, unpack(rows[start : start + BLOCK])
        else:
            yield subset[start : start + BLOCK], unpack(rows[subset[start : start + BLOCK]])


def _best_of(
    vectors: np.ndarray, query: np.ndarray, count: int, numbers: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    count = min(count, len(vectors))
    faiss = load_faiss()
    if faiss is not None and count <= MOST_CANDIDATES:
        scores, found = (each[0] for each in faiss.knn(query[None], vectors, count, faiss.METRIC_INNER_PRODUCT))
    else:
        products = vectors @ query
        found = np.argpartition(-products, count - 1)[:count]
        scores = products[found]
    return (found + numbers if isinstance(numbers, int) else numbers[found]), scores
