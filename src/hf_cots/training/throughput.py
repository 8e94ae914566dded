"""How fast a run goes: pairs a second, the share of time spent waiting for data, and the use of the device."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.utils.flop_counter import FlopCounterMode


class Throughput:
    """Counts what was done since the last log, without asking the device for anything.

    Args:
        peak_tflops: most operations that one device can do, in 10^12 a second. With it the operations of one step, the
            first, are counted, and `mfu` is the share of the peak that the pairs since the last log have used.
        world_size: number of devices that share the pairs.
    """

    def __init__(self, peak_tflops: float | None = None, world_size: int = 1):
        self.peak_tflops, self.world_size = peak_tflops, world_size
        self.flops_per_pair: float | None = None
        self._flops = 0
        self.restart()

    def restart(self) -> None:
        """Forget what was done before."""
        self._pairs, self._waited, self._since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, the program waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def counting(self) -> AbstractContextManager[None]:
        """Within, the operations of a part of a step are counted, if it is the first one."""
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
