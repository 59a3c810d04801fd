"""Ceilings that other figures are held against, and the way to measure them in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from gptoss_ref.kernels.doctor import bandwidth


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


def product(tokens: int, inputs: int, outputs: int) -> tuple[Callable[[], object], float]:
    """NumPy's float32 matrix product of that size, and its floating-point operations."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, inputs), np.float32)
    weight = rng.standard_normal((outputs, inputs), np.float32)
    return lambda: x @ weight.T, 2.0 * tokens * inputs * outputs
