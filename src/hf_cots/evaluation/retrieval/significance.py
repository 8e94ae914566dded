"""Bootstrap intervals, and a paired test between two models.

**Images are resampled, not queries.** The five captions of one image tend to succeed or fail together; resampling them
one by one would make intervals too narrow. All queries with the same image id are drawn together (the cluster
bootstrap), and both directions share each resample, so that rsum has an interval too. The gallery is held fixed: the
intervals are for other queries to this gallery.

Everything is a pure function of the per-query values, the image ids and the seed.
"""

from collections.abc import Iterator

import numpy as np

from .directions import DirectionResult
from .metrics import KS, MEANS


RESAMPLES = 1000
PERMUTATIONS = 10_000
LEVEL = 0.95
CHUNK = 1 << 22  # values computed at a time: 32 MiB

Samples = dict[str, dict[str, np.ndarray]]


class Clusters:
    """The queries of both directions, grouped by image id.

    Args:
        directions: results by direction.
    """

    def __init__(self, directions: dict[str, DirectionResult]):
        self.folds = {name: direction.folds() for name, direction in directions.items()}
        self.ids = np.unique(np.concatenate([direction.query_ids for direction in directions.values()]))
        most_queries = max(len(direction.query_ids) for direction in directions.values())
        self.chunk = max(1, CHUNK // most_queries)  # resamples at a time

    def __len__(self) -> int:
        return len(self.ids)

    def assign(self, fold: DirectionResult) -> np.ndarray:
        """Return the cluster of each query of a fold, (n,) int64."""
        return np.searchsorted(self.ids, fold.query_ids)

    def sums(self, fold: DirectionResult) -> np.ndarray:
        """Compute (clusters, 1 + metrics) float64: the number of a fold's queries in each cluster, and the sums of
        their `MEANS`."""
        columns = [np.ones(len(fold.query_ids)), *(fold.columns[column] for column in MEANS)]
        cluster = self.assign(fold)
        return np.stack([np.bincount(cluster, column, len(self)) for column in columns], axis=1)

    def contributions(self) -> dict[str, np.ndarray]:
        """Compute (clusters, metrics) for each direction: the contribution of each cluster to the metrics, averaged
        over folds."""
        sums = {name: [self.sums(fold) for fold in folds] for name, folds in self.folds.items()}
        return {name: sum(s[:, 1:] / s[:, 0].sum() for s in folds) / len(folds) for name, folds in sums.items()}


def bootstrap_samples(directions: dict[str, DirectionResult], resamples: int = RESAMPLES, seed: int = 0) -> Samples:
    """Compute every metric on `resamples` resamples of the images with replacement.

    Two models on the same data and with the same seed get the same resamples, so the differences of their samples are
    a paired bootstrap.

    Returns:
        `{direction: {metric: (resamples,) float64}, "total": {"rsum": ...}}`.
    """
    clusters, generator = Clusters(directions), np.random.default_rng(seed)
    folds = {name: [_Fold(clusters, fold) for fold in folds] for name, folds in clusters.folds.items()}
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in directions}
    for start in range(0, resamples, clusters.chunk):
        weights = _resample(generator, min(clusters.chunk, resamples - start), len(clusters))
        for name in directions:
            chunks[name].append(np.mean([fold.metrics(weights) for fold in folds[name]], axis=0))
    names = [*MEANS.values(), "median_rank"]
    samples = {name: dict(zip(names, np.concatenate(parts).T)) for name, parts in chunks.items()}
    return samples | {"total": {"rsum": np.add.reduce([samples[name][f"R@{k}"] for name in directions for k in KS])}}


class _Fold:
    """Computes the metrics of one fold with weighted clusters."""

    def __init__(self, clusters: Clusters, fold: DirectionResult):
        self.sums = clusters.sums(fold)
        order = np.argsort(fold.columns["rank"], kind="stable")
        self.ranks, self.cluster = fold.columns["rank"][order], clusters.assign(fold)[order]

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Compute (resamples, metrics + 1) for (resamples, clusters) weights."""
        sums = weights @ self.sums
        return np.c_[sums[:, 1:] / sums[:, :1], _weighted_medians(self.ranks, weights[:, self.cluster])]


def _resample(generator: np.random.Generator, resamples: int, clusters: int) -> np.ndarray:
    """Draw (resamples, clusters) float64, how often each cluster is in each resample."""
    drawn = generator.integers(clusters, size=(resamples, clusters)) + np.arange(resamples)[:, None] * clusters
    return np.bincount(drawn.ravel(), minlength=resamples * clusters).reshape(resamples, clusters).astype(np.float64)


def _weighted_medians(ascending: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the (resamples,) medians of n ascending values, each repeated by its (resamples, n) weights."""
    counts = weights.cumsum(axis=1)
    total = counts[:, -1]
    middles = [
        np.array([np.searchsorted(row, middle, side="right") for row, middle in zip(counts, (total - less) // 2)])
        for less in (1, 0)
    ]
    return (ascending[middles[0]] + ascending[middles[1]]) / 2


def intervals(samples: Samples) -> dict[str, dict[str, list[float]]]:
    """Compute the central 95% of each metric's samples (percentile method), `[low, high]`."""
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
    """Test whether one model retrieves better than another, on the same queries and the same gallery.

    This is a paired randomization test: if the models were equal, the outcomes of an image's queries could just as
    well come from the other model. So they are exchanged at random, image by image, and the two-sided p-value is the
    fraction of `permutations` exchanges (and the actual outcome) with a difference at least as large.

    Args:
        directions, others: the two models' results, from the same queries in the same order.
        resamples: number of bootstrap resamples for the interval.
        permutations: number of random exchanges for the test.
        seed: random seed of both.

    Returns:
        `{direction: {metric: {"difference", "interval", "p_value"}}, "total": {"rsum": ...}}`; the difference is the
        first model's value minus the other's. The median rank is not a mean over queries and has no p-value.

    Raises:
        ValueError: if the queries or galleries are not the same.
    """
    _check_same_data(directions, others)
    mine, theirs = bootstrap_samples(directions, resamples, seed), bootstrap_samples(others, resamples, seed)
    spreads = intervals({name: {m: mine[name][m] - theirs[name][m] for m in mine[name]} for name in mine})
    differences, p_values = _randomization_test(directions, others, permutations, seed)
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


def _check_same_data(directions: dict[str, DirectionResult], others: dict[str, DirectionResult]) -> None:
    for name, direction in directions.items():
        other = others[name]
        for what, ids, other_ids in (
            ("queries", direction.query_ids, other.query_ids),
            ("gallery entries", direction.gallery_ids, other.gallery_ids),
        ):
            if not np.array_equal(ids, other_ids):
                raise ValueError(f"{name}: the two models have different {what}; evaluate both on the same data")


def _randomization_test(
    directions: dict[str, DirectionResult], others: dict[str, DirectionResult], permutations: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Compute the differences of all means, and their p-values."""
    clusters = Clusters(directions)
    mine, theirs = clusters.contributions(), Clusters(others).contributions()
    hits = [list(MEANS).index(f"R@{k}") for k in KS]
    per_cluster = [mine[name] - theirs[name] for name in directions]
    table = np.column_stack([*per_cluster, sum(part[:, hits].sum(axis=1) for part in per_cluster)])
    observed = table.sum(axis=0)
    at_least = np.zeros(len(observed))
    # Sums in another order can differ in the last digits, but equal differences must count as equal.
    tolerance = 1e-9 * np.abs(table).sum(axis=0)
    for signs in _random_signs(np.random.default_rng(seed), permutations, len(clusters), clusters.chunk):
        at_least += (np.abs(signs @ table) >= np.abs(observed) - tolerance).sum(axis=0)
    labels = [(name, metric) for name in directions for metric in MEANS.values()] + [("total", "rsum")]
    differences: dict[str, dict[str, float]] = {name: {} for name, _ in labels}
    p_values: dict[str, dict[str, float]] = {name: {} for name, _ in labels}
    for (name, metric), difference, count in zip(labels, observed.tolist(), at_least.tolist()):
        differences[name][metric], p_values[name][metric] = difference, (1 + count) / (1 + permutations)
    return differences, p_values


def _random_signs(
    generator: np.random.Generator, permutations: int, clusters: int, chunk: int
) -> Iterator[np.ndarray]:
    """Yield chunks (rows, clusters) of random -1.0 and 1.0, with `permutations` rows in total."""
    for start in range(0, permutations, chunk):
        rows = min(chunk, permutations - start)
        yield 1.0 - 2.0 * generator.integers(2, size=(rows, clusters), dtype=np.int8)
