"""The ranks of each query's correct answers in the gallery: exact, and block by block.

The embeddings are rounded to 26 fraction bits first. Dot products of such numbers are exact in float64 whatever the
order of their terms, so that a score depends on its two vectors alone: equal gallery entries tie wherever they are in
a matrix product, and neither the block size nor the number of processes can change a rank. The rounding error is 7e-9
in a component of a normalized vector, less than that of a float32 dot product.

Nothing here imports the rest of the package: this file and `metrics.py` are also the `evaluate` Space.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from .metrics import TieGroups, concatenate, per_query_metrics


BLOCK = 1024  # queries compared at a time, with four times as many gallery entries: 32 MiB of scores
FRACTION_BITS = 26
FEW_LEVELS = 8  # up to so many, comparing each score with each level is faster than a binary search


def slices(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `length`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


class FixedPoint:
    """Embeddings as integers whose dot products are exact in float64; converted on access.

    With exponents such that a vector's norm is at most 2^0.49, its integers have norm 2^26.49 at most, and every
    partial sum of a dot product stays below 2^53.

    Args:
        embeds: (n, D) of any floating type, memory-mapped or not.
        name: of the embeddings in errors.
        common: one unit for all vectors, as the gallery needs for its scores to be comparable; else one for each.

    Raises:
        ValueError: if an embedding is not finite (NaN would win every comparison).
    """

    def __init__(self, embeds: torch.Tensor, name: str, common: bool = False):
        self.embeds = embeds
        # Filled in place: small results kept between large temporaries would leave holes that the heap cannot use.
        norms = torch.empty(len(embeds), dtype=torch.float64)
        for part in slices(len(embeds), BLOCK):
            norms[part] = torch.linalg.vector_norm(embeds[part].double(), dim=1)
        broken = (~torch.isfinite(norms)).nonzero().flatten()
        if len(broken):
            raise ValueError(f"{len(broken)} {name} embeddings are not finite, the first is number {int(broken[0])}")
        if common and len(norms):
            norms = norms.max().expand_as(norms)
        self.exponents = torch.where(norms > 0, torch.ceil(norms.log2() - 0.49), 0.0)  # (n,)

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        """(b, D) float64 integers."""
        # Multiplying by a float64 factor promotes any narrower type.
        return (self.embeds[index] * torch.exp2(FRACTION_BITS - self.exponents[index])[:, None]).round_()

    def unit(self, index: slice | torch.Tensor) -> torch.Tensor:
        """(b,) float64 powers of two: the value of the integer 1."""
        return torch.exp2(self.exponents[index] - FRACTION_BITS)


class Scores:
    """Similarities of queries with a gallery, exact but for the rounding of the embeddings.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings, on one device.
        bias: (m,) float64 subtracted from the similarities with each gallery entry, or None.
        biased: (n,) bool, the queries for which it is subtracted; all by default.

    Raises:
        ValueError: if there is nothing to compare or an embedding is not finite.
    """

    def __init__(
        self,
        query_embeds: torch.Tensor,
        gallery_embeds: torch.Tensor,
        bias: torch.Tensor | None = None,
        biased: torch.Tensor | None = None,
    ):
        if len(query_embeds) == 0 or len(gallery_embeds) == 0:
            raise ValueError(f"nothing to compare: {len(query_embeds)} queries, {len(gallery_embeds)} gallery entries")
        self.queries = FixedPoint(query_embeds, "query")
        self.gallery = FixedPoint(gallery_embeds, "gallery", common=True)
        self.bias = bias
        self.weights = torch.ones(len(self.queries), dtype=torch.float64) if biased is None else biased.double()

    def tiles(self, part: slice, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """For the queries of `part`: slices of at most `size` gallery entries, with their (queries, size) scores."""
        queries, unit = self.queries[part], self.queries.unit(part)[:, None]
        for columns in slices(len(self.gallery), size):
            scores = (queries @ self.gallery[columns].t()).mul_(unit * self.gallery.unit(columns)[:1])
            if self.bias is not None:
                scores -= self.weights[part, None] * self.bias[None, columns]
            yield columns, scores

    def pairs(self, query: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """(p,) scores of single queries with single entries, equal to those in the tiles."""
        scores = torch.empty(len(query), dtype=torch.float64)
        for part in slices(len(query), BLOCK):
            q, g = query[part], entry[part]
            dots = (self.queries[q] * self.gallery[g]).sum(dim=1)
            scores[part] = dots * (self.queries.unit(q) * self.gallery.unit(g))
        return scores if self.bias is None else scores - self.weights[query] * self.bias[entry]


class Positives:
    """The correct answers of each query: the gallery entries with its id.

    Args:
        query_ids, gallery_ids: (n,) and (m,) int64.

    Raises:
        ValueError: if a query has no correct answer in the gallery.
    """

    def __init__(self, query_ids: torch.Tensor, gallery_ids: torch.Tensor):
        sorted_ids, self.order = gallery_ids.sort(stable=True)
        self.start = torch.searchsorted(sorted_ids, query_ids.contiguous())
        self.count = torch.searchsorted(sorted_ids, query_ids.contiguous(), right=True) - self.start  # (n,)
        if bool((self.count == 0).any()):
            missing = int((self.count == 0).nonzero()[0])
            raise ValueError(f"query {missing} has no correct answer in the gallery")

    def lookup(self, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """(p,) row within the slice, ascending, and (p,) gallery entry of each correct answer of its queries."""
        row, position = _enumerate_within_rows(self.count[part])
        return row, self.order[self.start[part][row] + position]


def _enumerate_within_rows(count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For rows of so many entries, the row of each entry and its position in the row."""
    row = torch.arange(len(count)).repeat_interleave(count)
    return row, torch.arange(len(row)) - (count.cumsum(0) - count)[row]


def count_above(scores: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the scores of each row above, and at or above, each of the row's levels.

    Args:
        scores: (b, m).
        levels: (b, p) in descending order, padded in front with +inf.

    Returns:
        Two (b, p) int64.
    """
    if levels.shape[1] <= FEW_LEVELS:
        columns = [levels[:, j : j + 1] for j in range(levels.shape[1])]
        compared = [[compare(scores, level) for level in columns] for compare in (torch.gt, torch.ge)]
        # Bytes add up many times faster than booleans.
        sums = [[c.view(torch.uint8).sum(dim=1, dtype=torch.int32) for c in kind] for kind in compared]
        return torch.stack(sums[0], dim=1).long(), torch.stack(sums[1], dim=1).long()
    ascending, (rows, bins) = levels.flip(1).contiguous(), (len(levels), levels.shape[1] + 1)
    offsets = torch.arange(0, rows * bins, bins)[:, None]

    def count(right: bool) -> torch.Tensor:
        below = torch.searchsorted(ascending, scores, right=right)  # levels that each score has passed
        histogram = torch.bincount((below + offsets).flatten(), minlength=rows * bins).view(rows, bins)
        return histogram[:, 1:].flip(1).cumsum(1)

    return count(right=False), count(right=True)


def group_ties(row: torch.Tensor, positive_scores: torch.Tensor, tiles: Iterable[torch.Tensor]) -> TieGroups:
    """Group the correct answers of each query by their score, and count the gallery entries above and level with them.

    Args:
        row: (p,) int64, ascending from 0: the query of each correct answer; every query has at least one.
        positive_scores: (p,) float64, their scores, finite.
        tiles: (queries, size) scores with parts of the gallery, all of it together; -inf for entries that are not in
            a query's gallery.
    """
    count = torch.bincount(row)
    _, position = _enumerate_within_rows(count)
    levels = torch.full((len(count), int(count.max())), torch.inf, dtype=torch.float64)
    levels[row, position] = positive_scores
    levels = levels.sort(dim=1, descending=True).values
    above, at_least = torch.zeros(2, *levels.shape, dtype=torch.int64)
    for tile in tiles:
        for total, counted in zip((above, at_least), count_above(tile, levels)):
            total += counted
    level, above, at_least = levels.numpy(), above.numpy(), at_least.numpy()
    is_positive = np.isfinite(level)
    first = is_positive & np.c_[np.ones(len(level), dtype=bool), level[:, 1:] != level[:, :-1]]
    correct = np.bincount(np.cumsum(first[is_positive]) - 1)
    return TieGroups(np.nonzero(first)[0], above[first], (at_least - above)[first], correct)


def _tie_groups(scores: Scores, positives: Positives, queries: slice, block: int) -> Iterator[tuple[int, TieGroups]]:
    """Number of queries and their tie groups, at most `block` queries at a time; indices start at 0 each time."""
    start = queries.start
    while start < queries.stop:
        size = min(block, queries.stop - start)
        # Levels may not outgrow scores: a query with many answers shares its block with few others.
        while size > 1 and size * int(positives.count[start : start + size].max()) > 4 * block**2:
            size //= 2
        part = slice(start, start + size)
        row, entry = positives.lookup(part)
        tiles = (tile for _, tile in scores.tiles(part, 4 * block))
        yield size, group_ties(row, scores.pairs(start + row, entry), tiles)
        start += size


@torch.no_grad()
def rank_queries(
    query_embeds: torch.Tensor,
    gallery_embeds: torch.Tensor,
    query_ids: torch.Tensor,
    gallery_ids: torch.Tensor,
    block: int = BLOCK,
    bias: torch.Tensor | None = None,
    biased: torch.Tensor | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
    """Compute each query's metrics in one direction.

    Memory beyond the embeddings: a few numbers a query, and a block of `block` x 4 `block` scores.

    Args:
        query_embeds, gallery_embeds: (n, D) and (m, D) normalized embeddings on the CPU; memory-mapped ones, such as
            `torch.from_numpy(np.load(path, mmap_mode="c"))`, are read block by block.
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


@torch.no_grad()
def nearest(
    query_embeds: torch.Tensor,
    gallery_embeds: torch.Tensor,
    k: int = 1,
    block: int = BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k best gallery entries of each query: scores and indices, (n, min(k, m)) float64 and int64.

    Of equal scores the lowest index comes first.
    """
    scores = Scores(query_embeds, gallery_embeds)
    values, indices = [], []
    for part in slices(len(query_embeds), block):
        best = torch.empty(part.stop - part.start, 0, dtype=torch.float64)
        where = torch.empty(part.stop - part.start, 0, dtype=torch.int64)
        for columns, tile in scores.tiles(part, 4 * block):
            seen = torch.cat([where, torch.arange(columns.start, columns.stop).expand(len(tile), -1)], dim=1)
            best, order = _first_best(torch.cat([best, tile], dim=1), k)
            where = seen.gather(1, order)
        values.append(best)
        indices.append(where)
    return torch.cat(values), torch.cat(indices)


def _first_best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    if k == 1:  # many times faster than sorting
        return scores.max(dim=1, keepdim=True)
    best, order = scores.sort(dim=1, descending=True, stable=True)
    return best[:, :k], order[:, :k]


def first_occurrences(ids: torch.Tensor) -> torch.Tensor:
    """(k,) ascending indices of the first occurrence of each of the k distinct ids."""
    return torch.from_numpy(np.sort(np.unique(ids.numpy(), return_index=True)[1]))
