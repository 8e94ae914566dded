"""Run work ahead of its consumer, in threads."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from PIL import Image


T = TypeVar("T")
R = TypeVar("R")


def count_workers(most: int = 16) -> int:
    """The number of threads to use: one per core available to this process, at most `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, cores))


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], depth: int | Callable[[], int], workers: int | None = None
) -> Iterator[R]:
    """`map`, with up to `depth` results computed ahead in threads. Results come in the order of the items.

    Decoders and resizing release Python's lock, so that threads are enough, and they end with the process.

    Args:
        function: must be safe to call from several threads.
        items: taken as their results are, `depth` ahead.
        depth: bounds the memory that results wait in; a function of what has come so far where results differ in size.
        workers: threads; [`count_workers`] if None.
    """
    waiting: deque[Future[R]] = deque()
    # `read_image` turns the warning into an error by a filter that all threads share. Set here, around all of them, it
    # is there whichever thread restores the filters last.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or count_workers()) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                while len(waiting) > (depth() if callable(depth) else depth):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
