"""Arrays in kernels: allocation, one function per type, compiled once; loops over whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.runtime.jit import jit_inner
from gptoss_ref.kernels.runtime.scalar import widen


@jit_inner
def fill(array: Any, value: Any) -> None:
    """Set all elements of a flat array to ``value``."""
    for i in range(array.size):
        array[i] = value


@jit_inner
def floats(n: int) -> Any:
    """Return an uninitialised float32 array (n,)."""
    return np.empty(n, np.float32)


@jit_inner
def integers(n: int) -> Any:
    """Return an uninitialised int64 array (n,)."""
    return np.empty(n, np.int64)


@jit_inner
def zeros(n: int) -> Any:
    """Return an int64 array (n,) of zeros."""
    counts = integers(n)
    fill(counts, 0)
    return counts


@jit_inner
def falses(n: int) -> Any:
    """Return a bool array (n,) of False."""
    flags = np.empty(n, np.bool_)
    fill(flags, False)
    return flags


@jit_inner
def on_cache_line(n: int) -> Any:
    """Return n uninitialised bytes that start on a cache line."""
    buffer = np.empty(n + 64, np.uint8)
    start = 63 - (np.int64(buffer.ctypes.data) + 63) % 64
    return buffer[start : start + n]


@jit_inner
def copy(source: Any, target: Any) -> None:
    """Copy activations or stored weights (N,) to a float32 array of the same length."""
    for i in range(target.size):
        target[i] = widen(source[i])


@jit_inner
def copy_bias(bias: Any, first: int, row: Any) -> None:
    """Copy ``bias`` from ``first`` on to float32 ``row``, or zeros if there is no bias."""
    if bias.size:
        copy(bias[first : first + row.size], row)
    else:
        fill(row, np.float32(0.0))


@jit_inner
def add_all(x: Any, out: Any) -> None:
    """out (N,) += x."""
    for i in range(out.size):
        out[i] += x[i]
