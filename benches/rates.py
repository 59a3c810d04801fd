"""Ceilings that other figures are held against, and the way to measure them in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from gptoss_ref.kernels.doctor import _read, bandwidth
from gptoss_ref.kernels.threads import current_threads


def in_turns(
    functions: Mapping[str, Callable[[], object]], rounds: int = 7, seconds: float = 0.2
) -> dict[str, float]:
    """Median seconds of one call of each function; they take turns, so that all see the same noise.

    A function is repeated within its turn until the turn has taken ``seconds``.
    """
    for function in functions.values():
        function()  # compiled, and its memory touched
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start, calls = time.perf_counter(), 0
            while time.perf_counter() - start < seconds or not calls:
                function()
                calls += 1
            times[name].append((time.perf_counter() - start) / calls)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def read_rate(megabytes: int = 1024) -> float:
    """Bytes a second of the better of a plain and a prefetching read, on the threads in effect."""
    return 1e9 * max(bandwidth(megabytes))


class Reading:
    """Streaming reads taken between other measurements, so that both see the same noise.

    On a machine that others share, the memory's rate can halve within a minute.
    """

    def __init__(self, megabytes: int = 256) -> None:
        self._words = np.ones(megabytes << 17, np.int64)
        self._seconds: tuple[list[float], list[float]] = ([], [])
        _read(self._words, False, current_threads())  # compiled
        _read(self._words, True, current_threads())

    def sample(self) -> None:
        """Read once plainly and once with prefetching."""
        for prefetching in (False, True):
            start = time.perf_counter()
            _read(self._words, prefetching, current_threads())
            self._seconds[prefetching].append(time.perf_counter() - start)

    def rate(self) -> float:
        """Bytes a second of the better kind, by the median of its samples."""
        return self._words.nbytes / min(float(np.median(taken)) for taken in self._seconds)


def product(tokens: int, inputs: int, outputs: int) -> tuple[Callable[[], object], float]:
    """NumPy's float32 matrix product of that size, and its floating-point operations."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, inputs), np.float32)
    weight = rng.standard_normal((outputs, inputs), np.float32)
    return lambda: x @ weight.T, 2.0 * tokens * inputs * outputs
