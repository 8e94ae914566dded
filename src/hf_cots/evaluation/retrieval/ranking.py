"""Exact ranks of each query's correct answers in the gallery, computed block by block.

The embeddings are first rounded to 26 fraction bits. Dot products of such numbers are exact in float64 in any order of
their terms, so that a score depends on its two vectors alone: equal gallery entries tie at any position in a matrix
product, and neither the block size nor the number of processes can change a rank. The rounding error is 7e-9 in a
component of a normalized vector, less than that of a float32 dot product.

Nothing here imports the rest of the package, since this file and `metrics.py` are also used in the `evaluate` Space.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from .metrics import TieGroups, concatenate, per_query_metrics


BLOCK = 1024  # queries compared at a time, with four times as many gallery entries: 32 MiB of scores
FRACTION_BITS = 26
FEW_LEVELS = 8  # up to this number, comparing each score with each level is faster than a binary search


def slices(length: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size` that cover `length`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def as_array(values: Any) -> np.ndarray:
    """Convert an array or a torch tensor on any device to an array; bfloat16, which numpy lacks, becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


class FixedPoint:
    """Embeddings as integers whose dot products are exact in float64; converted on access.

    The exponents are such that a scaled vector's norm is at most 2^0.49; its integers then have a norm of at most
    2^26.49, and every partial sum of a dot product stays below 2^53.

    Args:
        embeds: (n, D) of any floating dtype, in memory or memory-mapped.
        name: name of the embeddings in errors.
        common: use one unit for all vectors, as the gallery needs for comparable scores; else one for each.

    Raises:
        ValueError: if an embedding is not finite (NaN would win every comparison).
    """

    def __init__(self, embeds: np.ndarray, name: str, common: bool = False):
        self.embeds = embeds = as_array(embeds)
        # Filled in place: small arrays allocated between large temporaries would fragment the heap.
        norms = np.empty(len(embeds))
        for part in slices(len(embeds), BLOCK):
            norms[part] = np.linalg.norm(embeds[part].astype(np.float64), axis=1)
        broken = np.flatnonzero(~np.isfinite(norms))
        if len(broken):
            raise ValueError(f"{len(broken)} {name} embeddings are not finite, the first is number {int(broken[0])}")
        if common and len(norms):
            norms = np.full_like(norms, norms.max())
        self.exponents = np.ceil(np.log2(np.where(norms > 0, norms, 1.0)) - 0.49)  # (n,)

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Return (b, D) integers as float64."""
        # Multiplying by a float64 factor promotes any narrower dtype.
        integers = self.embeds[index] * np.exp2(FRACTION_BITS - self.exponents[index])[:, None]
        return np.rint(integers, out=integers)

    def unit(self, index: slice | np.ndarray) -> np.ndarray:
        """Return the (b,) float64 values of the integer 1, which are powers of two."""
        return np.exp2(self.exponents[index] - FRACTION_BITS)


class Scores:
    """Similarities of queries and gallery entries, exact except for the rounding of the embeddings.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings.
        bias: (m,) float64 subtracted from the similarities with each gallery entry, or None.
        biased: (n,) bool, the queries for which it is subtracted; all by default.

    Raises:
        ValueError: if there is nothing to compare or an embedding is not finite.
    """

    def __init__(
        self,
        query_embeds: np.ndarray,
        gallery_embeds: np.ndarray,
        bias: np.ndarray | None = None,
        biased: np.ndarray | None = None,
    ):
        if len(query_embeds) == 0 or len(gallery_embeds) == 0:
            raise ValueError(f"nothing to compare: {len(query_embeds)} queries, {len(gallery_embeds)} gallery entries")
        self.queries = FixedPoint(query_embeds, "query")
        self.gallery = FixedPoint(gallery_embeds, "gallery", common=True)
        self.bias = bias
        self.weights = np.ones(len(self.queries)) if biased is None else biased.astype(np.float64)

    def tiles(self, part: slice, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield, for the queries of `part`, slices of at most `size` gallery entries and their (queries, size)
        scores."""
        queries, unit = self.queries[part], self.queries.unit(part)[:, None]
        for columns in slices(len(self.gallery), size):
            scores = queries @ self.gallery[columns].T
            scores *= unit * self.gallery.unit(columns)[:1]
            if self.bias is not None:
                scores -= self.weights[part, None] * self.bias[None, columns]
            yield columns, scores

    def pairs(self, query: np.ndarray, entry: np.ndarray) -> np.ndarray:
        """Compute the (p,) scores of pairs of a query and an entry; equal to those in the tiles."""
        scores = np.empty(len(query))
        for part in slices(len(query), BLOCK):
            q, g = query[part], entry[part]
            dots = (self.queries[q] * self.gallery[g]).sum(axis=1)
            scores[part] = dots * (self.queries.unit(q) * self.gallery.unit(g))
        return scores if self.bias is None else scores - self.weights[query] * self.bias[entry]


class Positives:
    """The correct answers of each query: the gallery entries with the same id.

    Args:
        query_ids, gallery_ids: (n,) and (m,) int64.

    Raises:
        ValueError: if a query has no correct answer in the gallery.
    """

    def __init__(self, query_ids: np.ndarray, gallery_ids: np.ndarray):
        query_ids, gallery_ids = as_array(query_ids), as_array(gallery_ids)
        self.order = np.argsort(gallery_ids, kind="stable")
        sorted_ids = gallery_ids[self.order]
        self.start = np.searchsorted(sorted_ids, query_ids)
        self.count = np.searchsorted(sorted_ids, query_ids, side="right") - self.start  # (n,)
        missing = np.flatnonzero(self.count == 0)
        if len(missing):
            raise ValueError(f"query {missing[0]} has no correct answer in the gallery")

    def lookup(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the correct answers of a slice of queries: (p,) query within the slice, ascending, and (p,) gallery
        entry."""
        row, position = _enumerate_within_rows(self.count[part])
        return row, self.order[self.start[part][row] + position]


def _enumerate_within_rows(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each entry and its position in the row, for rows with `count` entries."""
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) - (np.cumsum(count) - count)[row]


def count_above(scores: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the scores of each row above, and at or above, each of the row's levels.

    Args:
        scores: (b, m).
        levels: (b, p) in descending order, padded in front with +inf.

    Returns:
        Two (b, p) int64.
    """
    if levels.shape[1] <= FEW_LEVELS:
        columns = [levels[:, j : j + 1] for j in range(levels.shape[1])]
        sums = [
            [_count_true(compare(scores, level)) for level in columns] for compare in (np.greater, np.greater_equal)
        ]
        return np.stack(sums[0], axis=1), np.stack(sums[1], axis=1)
    ascending, bins = levels[:, ::-1], levels.shape[1] + 1

    def count(side: Literal["left", "right"]) -> np.ndarray:
        # For each row, the number of levels that each score has passed.
        below = [np.searchsorted(row, values, side=side) for row, values in zip(ascending, scores)]
        histogram = np.stack([np.bincount(passed, minlength=bins) for passed in below])
        return np.cumsum(histogram[:, 1:][:, ::-1], axis=1)

    return count("left"), count("right")


def _count_true(mask: np.ndarray) -> np.ndarray:
    """Count the true values of each row, (b,) int64; packed bits are counted many times faster than booleans."""
    return np.bitwise_count(np.packbits(mask, axis=1)).sum(axis=1, dtype=np.int64)


def group_ties(row: np.ndarray, positive_scores: np.ndarray, tiles: Iterable[np.ndarray]) -> TieGroups:
    """Group the correct answers of each query by score, and count the gallery entries that score higher or the same.

    Args:
        row: (p,) int64, ascending from 0: the query of each correct answer; every query has at least one.
        positive_scores: (p,) float64, the finite scores of the correct answers.
        tiles: (queries, size) scores with parts of the gallery, which together cover it; -inf for entries that are not
            in a query's gallery.
    """
    count = np.bincount(row)
    _, position = _enumerate_within_rows(count)
    levels = np.full((len(count), int(count.max())), np.inf)
    levels[row, position] = positive_scores
    levels = -np.sort(-levels, axis=1)
    above, at_least = np.zeros((2, *levels.shape), dtype=np.int64)
    for tile in tiles:
        for total, counted in zip((above, at_least), count_above(tile, levels)):
            total += counted
    is_positive = np.isfinite(levels)
    first = is_positive & np.c_[np.ones(len(levels), dtype=bool), levels[:, 1:] != levels[:, :-1]]
    correct = np.bincount(np.cumsum(first[is_positive]) - 1)
    return TieGroups(np.nonzero(first)[0], above[first], (at_least - above)[first], correct)


def _tie_groups(scores: Scores, positives: Positives, queries: slice, block: int) -> Iterator[tuple[int, TieGroups]]:
    """Yield the number of queries and their tie groups, for at most `block` queries at a time; query indices start at
    0 each time."""
    start = queries.start
    while start < queries.stop:
        size = min(block, queries.stop - start)
        # Levels must not take more memory than scores: a query with many answers shares its block with few others.
        while size > 1 and size * int(positives.count[start : start + size].max()) > 4 * block**2:
            size //= 2
        part = slice(start, start + size)
        row, entry = positives.lookup(part)
        tiles = (tile for _, tile in scores.tiles(part, 4 * block))
        yield size, group_ties(row, scores.pairs(start + row, entry), tiles)
        start += size


def rank_queries(
    query_embeds: np.ndarray,
    gallery_embeds: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    block: int = BLOCK,
    bias: np.ndarray | None = None,
    biased: np.ndarray | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
    """Compute each query's metrics in one direction.

    Memory beyond the embeddings: a few numbers per query, and a block of `block` x 4 `block` scores.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings, arrays or tensors; memory-mapped ones,
            such as `np.load(path, mmap_mode="r")`, are read block by block.
        query_ids, gallery_ids: (n,) and (m,) int64; equal ids belong together.
        block: queries compared at a time.
        bias, biased: as in [`Scores`].
        shard: (i, s) ranks the i-th of s consecutive shards of the queries, counted from 0, for s processes.

    Returns:
        The columns of [`per_query_metrics`], float64, one row for each query of the shard. Concatenated in order, the
        shards are bit for bit what (0, 1) returns.

    Raises:
        ValueError: if there is nothing to compare, an embedding is not finite, or a query has no correct answer in
            the gallery.
    """
    scores, positives = Scores(query_embeds, gallery_embeds, bias, biased), Positives(query_ids, gallery_ids)
    first, last = (len(query_embeds) * i // shard[1] for i in (shard[0], shard[0] + 1))
    columns = {name: np.empty(last - first) for name in concatenate([])}
    done = 0
    for n, groups in _tie_groups(scores, positives, slice(first, last), block):
        for name, values in per_query_metrics(groups, n).items():
            columns[name][done : done + n] = values
        done += n
    return columns


def nearest(
    query_embeds: np.ndarray,
    gallery_embeds: np.ndarray,
    k: int = 1,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k best gallery entries of each query; returns scores and indices, (n, min(k, m)) float64 and int64.

    Entries with equal scores are ordered by index.
    """
    scores = Scores(query_embeds, gallery_embeds)
    values, indices = [], []
    for part in slices(len(query_embeds), block):
        best = np.empty((part.stop - part.start, 0))
        where = np.empty((part.stop - part.start, 0), dtype=np.int64)
        for columns, tile in scores.tiles(part, 4 * block):
            new = np.broadcast_to(np.arange(columns.start, columns.stop), tile.shape)
            best, order = _first_best(np.concatenate([best, tile], axis=1), k)
            where = np.take_along_axis(np.concatenate([where, new], axis=1), order, axis=1)
        values.append(best)
        indices.append(where)
    return np.concatenate(values), np.concatenate(indices)


def _first_best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    # For k = 1, argmax is many times faster than sorting.
    best = scores.argmax(axis=1, keepdims=True) if k == 1 else np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, axis=1), best


def first_occurrences(ids: np.ndarray) -> np.ndarray:
    """Return the (k,) ascending indices of the first occurrence of each of the k distinct ids."""
    return np.sort(np.unique(ids, return_index=True)[1])
