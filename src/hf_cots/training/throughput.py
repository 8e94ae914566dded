"""Training throughput: pairs per second, the fraction of time spent waiting for data, and device utilization."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.utils.flop_counter import FlopCounterMode


class Throughput:
    """Counts the work done since the last log, without synchronizing with the device.

    Args:
        peak_tflops: peak throughput of one device in TFLOPS. If given, the operations of the first step are counted,
            and `mfu` is the fraction of the peak used by the pairs since the last log.
        world_size: number of devices that share the pairs.
    """

    def __init__(self, peak_tflops: float | None = None, world_size: int = 1):
        self.peak_tflops, self.world_size = peak_tflops, world_size
        self.flops_per_pair: float | None = None
        self._flops = 0
        self.restart()

    def restart(self) -> None:
        """Reset the counters."""
        self._pairs, self._waited, self._since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def counting(self) -> AbstractContextManager[None]:
        """Count the operations in this context, if they are part of the first step."""
        return nullcontext() if self.peak_tflops is None or self.flops_per_pair is not None else self._counting()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops += counter.get_total_flops()

    def end_step(self, pairs: int, own_pairs: int) -> None:
        """After a step of `pairs`, of which this process had `own_pairs`."""
        self._pairs += pairs
        if self._flops and self.flops_per_pair is None and own_pairs:
            self.flops_per_pair = self._flops / own_pairs

    def log(self) -> dict[str, float]:
        """`pairs_per_second`, `data_wait_share` and `mfu` since the last call."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rate = self._pairs / seconds
        logs = {"pairs_per_second": round(rate, 1), "data_wait_share": round(self._waited / seconds, 4)}
        if self.peak_tflops is not None and self.flops_per_pair is not None:
            logs["mfu"] = round(rate * self.flops_per_pair / (self.peak_tflops * 1e12 * self.world_size), 4)
        self.restart()
        return logs
