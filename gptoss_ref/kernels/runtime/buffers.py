"""Room that kernels compute in. One function for each kind, so that each is compiled once."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.runtime.jit import jit_inner


@jit_inner
def fill(array: Any, value: Any) -> None:
    """``value`` everywhere in a flat array."""
    for i in range(array.size):
        array[i] = value


@jit_inner
def floats(n: int) -> Any:
    """float32 (n,), unset."""
    return np.empty(n, np.float32)


@jit_inner
def integers(n: int) -> Any:
    """int64 (n,), unset."""
    return np.empty(n, np.int64)


@jit_inner
def zeros(n: int) -> Any:
    """int64 (n,), all 0."""
    counts = integers(n)
    fill(counts, 0)
    return counts


@jit_inner
def falses(n: int) -> Any:
    """bool (n,), all False."""
    flags = np.empty(n, np.bool_)
    fill(flags, False)
    return flags


@jit_inner
def on_cache_line(n: int) -> Any:
    """Bytes (n,), unset, that begin on a cache line."""
    buffer = np.empty(n + 64, np.uint8)
    start = 63 - (np.int64(buffer.ctypes.data) + 63) % 64
    return buffer[start : start + n]


@jit_inner
def copy(source: Any, target: Any) -> None:
    """A flat array, to another of its length."""
    for i in range(target.size):
        target[i] = source[i]
