"""Retrieval metrics the slow way: sort, and average over every order of the entries that tie."""

import itertools
import math

import numpy as np


def orders(scores):
    """All rankings of the entries by falling score, each as a tuple of indices; ties in every order."""
    levels = sorted(set(scores), reverse=True)
    groups = [[i for i, score in enumerate(scores) if score == level] for level in levels]
    for choice in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield tuple(itertools.chain.from_iterable(choice))


def metrics_of_order(relevance):
    """The textbook definitions for one query; `relevance` holds 1 for each correct answer, best place first."""
    places = [i + 1 for i, correct in enumerate(relevance) if correct]
    values = {"rank": places[0], "reciprocal_rank": 100 / places[0]}
    for k in (1, 5, 10):
        found = sum(place <= k for place in places)
        values[f"R@{k}"] = 100.0 * (found > 0)
        values[f"fractional_R@{k}"] = 100 * found / len(places)
    gain = sum(1 / math.log2(place + 1) for place in places if place <= 10)
    ideal = sum(1 / math.log2(i + 2) for i in range(min(len(places), 10)))
    values["nDCG@10"] = 100 * gain / ideal
    values["average_precision"] = 100 * np.mean([(i + 1) / place for i, place in enumerate(places)])
    return values


def expected_metrics(scores, correct):
    """The mean of each metric over all orders; `scores` and `correct` are lists over the gallery."""
    rows = [metrics_of_order([correct[i] for i in order]) for order in orders(scores)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def shuffled_metrics(scores, correct, draws, generator):
    """The same over random orders of ties, for galleries whose orders cannot be enumerated."""
    rows = []
    for _ in range(draws):
        order = np.lexsort((generator.random(len(scores)), -np.asarray(scores)))
        rows.append(metrics_of_order([correct[i] for i in order]))
    return {
        name: (np.mean(column := [row[name] for row in rows]), np.std(column) / math.sqrt(draws)) for name in rows[0]
    }
