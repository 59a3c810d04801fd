"""Ceilings that other figures are held against, sampled between the measurements."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from gptoss_ref.kernels.runtime.doctor import _read
from gptoss_ref.kernels.runtime.threads import current_threads


class Reading:
    """Streaming reads taken between other measurements, so that both see the same noise.

    On a machine that others share, the memory's rate can halve within a minute.
    """

    unit = "GB/s"

    def __init__(self, megabytes: int = 256) -> None:
        self._words = np.ones(megabytes << 17, np.int64)
        self.restart()
        self.sample()  # compiled
        self.restart()

    def restart(self) -> None:
        """Forget what was sampled."""
        self._seconds: tuple[list[float], list[float]] = ([], [])

    def sample(self) -> None:
        """Read once plainly and once with prefetching."""
        for prefetching in (False, True):
            start = time.perf_counter()
            _read(self._words, prefetching, current_threads())
            self._seconds[prefetching].append(time.perf_counter() - start)

    def rate(self) -> float:
        """Bytes a second of the better kind, by the median of its samples."""
        return self._words.nbytes / min(median(taken) for taken in self._seconds)


class NumpyProduct:
    """NumPy's float32 matrix products taken between other measurements."""

    unit = "GFLOP/s"

    def __init__(self, tokens: int = 512, inputs: int = 2880, outputs: int = 4096) -> None:
        rng = np.random.default_rng(0)
        self._x = rng.standard_normal((tokens, inputs), np.float32)
        self._weight = rng.standard_normal((outputs, inputs), np.float32)
        self._operations = 2.0 * tokens * inputs * outputs
        self.restart()
        self.sample()
        self.restart()

    def restart(self) -> None:
        """Forget what was sampled."""
        self._seconds: list[float] = []

    def sample(self) -> None:
        """One product."""
        start = time.perf_counter()
        self._x @ self._weight.T
        self._seconds.append(time.perf_counter() - start)

    def rate(self) -> float:
        """Operations a second, by the median of the samples."""
        return self._operations / median(self._seconds)
