"""How far a result is from chance variation: bootstrap intervals, and a paired test between two models.

**What is resampled is pictures, not queries.** Five captions of one picture succeed and fail together; to resample
them one by one would make intervals too narrow. All queries with one image id are drawn or left out together (the
cluster bootstrap), and both directions share each draw, so that rsum has an interval too. The gallery stays as it is:
the intervals speak of other queries to this gallery.

Everything is a pure function of the per-query values, the image ids and the seed.
"""

from collections.abc import Iterator

import numpy as np

from .directions import DirectionResult
from .metrics import KS, MEANS


RESAMPLES = 1000
PERMUTATIONS = 10_000
LEVEL = 0.95
CHUNK = 1 << 22  # numbers at a time: 32 MiB

Samples = dict[str, dict[str, np.ndarray]]


class Clusters:
    """The queries of both directions, grouped by image id.

    Args:
        directions: by name.
    """

    def __init__(self, directions: dict[str, DirectionResult]):
        self.parts = {name: direction.folds() for name, direction in directions.items()}
        self.ids = np.unique(np.concatenate([direction.query_ids for direction in directions.values()]))
        self.chunk = max(1, CHUNK // max(len(direction.query_ids) for direction in directions.values()))  # of draws

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, part: DirectionResult) -> np.ndarray:
        """(n,) int64: the cluster of each query of a fold."""
        return np.searchsorted(self.ids, part.query_ids)

    def sums(self, part: DirectionResult) -> np.ndarray:
        """(clusters, 1 + metrics) float64: the queries of a fold in each cluster, and the sums of their `MEANS`."""
        columns = [np.ones(len(part.query_ids)), *(part.columns[column] for column in MEANS)]
        of_query = self.of(part)
        return np.stack([np.bincount(of_query, column, len(self)) for column in columns], axis=1)

    def shares(self) -> dict[str, np.ndarray]:
        """(clusters, metrics) for each direction: what each cluster adds to the means, those being means of folds."""
        sums = {name: [self.sums(part) for part in parts] for name, parts in self.parts.items()}
        return {name: sum(s[:, 1:] / s[:, 0].sum() for s in of) / len(of) for name, of in sums.items()}


def bootstrap_samples(directions: dict[str, DirectionResult], resamples: int = RESAMPLES, seed: int = 0) -> Samples:
    """Every metric on `resamples` draws of the pictures with replacement.

    Two models on the same data and with the same seed get the same draws, so that the differences of their samples are
    the paired bootstrap.

    Returns:
        `{direction: {metric: (resamples,) float64}, "total": {"rsum": ...}}`.
    """
    clusters, generator = Clusters(directions), np.random.default_rng(seed)
    folds = {name: [_Fold(clusters, part) for part in parts] for name, parts in clusters.parts.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in directions}
    for start in range(0, resamples, clusters.chunk):
        weights = _draw(generator, min(clusters.chunk, resamples - start), len(clusters))
        for name in directions:
            drawn[name].append(np.mean([fold.metrics(weights) for fold in folds[name]], axis=0))
    names = [*MEANS.values(), "median_rank"]
    samples = {name: dict(zip(names, np.concatenate(parts).T)) for name, parts in drawn.items()}
    return samples | {"total": {"rsum": np.add.reduce([samples[name][f"R@{k}"] for name in directions for k in KS])}}


class _Fold:
    """What a draw of clusters makes of the metrics of one fold."""

    def __init__(self, clusters: Clusters, part: DirectionResult):
        self.sums = clusters.sums(part)
        order = np.argsort(part.columns["rank"], kind="stable")
        self.ranks, self.of_query = part.columns["rank"][order], clusters.of(part)[order]

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """(draws, metrics + 1) for (draws, clusters) weights."""
        sums = weights @ self.sums
        return np.c_[sums[:, 1:] / sums[:, :1], _weighted_medians(self.ranks, weights[:, self.of_query])]


def _draw(generator: np.random.Generator, draws: int, clusters: int) -> np.ndarray:
    """(draws, clusters) float64: how often each cluster is in each draw."""
    drawn = generator.integers(clusters, size=(draws, clusters)) + np.arange(draws)[:, None] * clusters
    return np.bincount(drawn.ravel(), minlength=draws * clusters).reshape(draws, clusters).astype(np.float64)


def _weighted_medians(ascending: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """(draws,) medians of values of which each occurs as often as (draws, n) `repeats` says."""
    counts = repeats.cumsum(axis=1)
    total = counts[:, -1]
    middles = [
        np.array([np.searchsorted(row, place, side="right") for row, place in zip(counts, (total - less) // 2)])
        for less in (1, 0)
    ]
    return (ascending[middles[0]] + ascending[middles[1]]) / 2


def intervals(samples: Samples) -> dict[str, dict[str, list[float]]]:
    """The central 95% of each metric's samples (percentile method), `[low, high]`."""
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        name: {metric: np.quantile(values, tails).tolist() for metric, values in metrics.items()}
        for name, metrics in samples.items()
    }


def compare(
    directions: dict[str, DirectionResult],
    others: dict[str, DirectionResult],
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, dict[str, dict]]:
    """Does one model retrieve better than another, on the same queries and the same gallery?

    The test is the paired randomisation test: if the models were equal, the outcomes of a picture's queries could
    as well have come from the other model; so they are exchanged at random, picture by picture, and the p-value is the
    share of `permutations` exchanges (and the outcome itself) whose difference is at least as large, either way.

    Args:
        directions, others: the two models' results, from the same queries in the same order.
        resamples: draws for the interval.
        permutations: exchanges for the test.
        seed: of both.

    Returns:
        `{direction: {metric: {"difference", "interval", "p_value"}}, "total": {"rsum": ...}}`; the difference is the
        first model's value less the other's. The median rank is no mean over queries and has an interval only.

    Raises:
        ValueError: if the queries or galleries are not the same.
    """
    for name, direction in directions.items():
        other = others[name]
        for what, ids, other_ids in (
            ("queries", direction.query_ids, other.query_ids),
            ("gallery entries", direction.gallery_ids, other.gallery_ids),
        ):
            if not np.array_equal(ids, other_ids):
                raise ValueError(f"{name}: the two models do not have the same {what}; evaluate both on the same data")
    mine, theirs = bootstrap_samples(directions, resamples, seed), bootstrap_samples(others, resamples, seed)
    spreads = intervals({name: {m: mine[name][m] - theirs[name][m] for m in mine[name]} for name in mine})
    differences, p_values = _randomisation_test(directions, others, permutations, seed)
    for name, direction in directions.items():
        differences[name]["median_rank"] = direction.metrics()["median_rank"] - others[name].metrics()["median_rank"]
    return {
        name: {
            metric: {"difference": difference, "interval": spreads[name][metric]}
            | ({"p_value": p_values[name][metric]} if metric in p_values[name] else {})
            for metric, difference in metrics.items()
        }
        for name, metrics in differences.items()
    }


def _randomisation_test(
    directions: dict[str, DirectionResult], others: dict[str, DirectionResult], permutations: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Differences of all means, and their p-values."""
    clusters = Clusters(directions)
    mine, theirs = clusters.shares(), Clusters(others).shares()
    hits = [list(MEANS).index(f"R@{k}") for k in KS]
    per_cluster = [mine[name] - theirs[name] for name in directions]
    table = np.column_stack([*per_cluster, sum(shares[:, hits].sum(axis=1) for shares in per_cluster)])
    observed = table.sum(axis=0)
    at_least = np.zeros(len(observed))
    # Sums in another order may differ in the last digits; equal differences have to count as equal.
    room = 1e-9 * np.abs(table).sum(axis=0)
    for signs in _signs(np.random.default_rng(seed), permutations, len(clusters), clusters.chunk):
        at_least += (np.abs(signs @ table) >= np.abs(observed) - room).sum(axis=0)
    labels = [(name, metric) for name in directions for metric in MEANS.values()] + [("total", "rsum")]
    differences: dict[str, dict[str, float]] = {name: {} for name, _ in labels}
    p_values: dict[str, dict[str, float]] = {name: {} for name, _ in labels}
    for (name, metric), difference, count in zip(labels, observed.tolist(), at_least.tolist()):
        differences[name][metric], p_values[name][metric] = difference, (1 + count) / (1 + permutations)
    return differences, p_values


def _signs(generator: np.random.Generator, permutations: int, clusters: int, chunk: int) -> Iterator[np.ndarray]:
    """Rows of (., clusters) float64 of -1 and 1, `permutations` in all."""
    for start in range(0, permutations, chunk):
        rows = min(chunk, permutations - start)
        yield 1.0 - 2.0 * generator.integers(2, size=(rows, clusters), dtype=np.int8)
