"""Rotary positions with YaRN; mirrors ``layers/rope.py``.

``rope_tables`` computes angles, cosines and sines in float64 and rounds once, like the layer under
the float32 policy: the error is below 2⁻²⁴ of the concentration. ``rope`` makes one pass over the
pairs (i, i + C/2), with three float32 roundings per value and no accumulator; the layer makes six
temporary arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, positions_of, values
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import FLOAT32, Array, Policy


def rope_tables(
    positions: Array, inv_freq: Array, concentration: float, *, policy: str | Policy = FLOAT32
) -> tuple[Array, Array]:
    """Return cosines and sines of ``positions`` (T,), times the concentration: two arrays (T, C/2).

    ``inv_freq`` (C/2,) is in radians per position.

    Raises:
        GptOssError: a policy other than float32.
    """
    check_policy(policy)
    positions = positions_of(positions)
    inv_freq = np.require(inv_freq, np.float64, ["C", "A", "W"])
    cos = np.empty((positions.size, inv_freq.size), np.float32)
    sin = np.empty_like(cos)
    _tables(positions, inv_freq, float(concentration), cos, sin)
    return cos, sin


@jit
def _tables(positions: Any, inv_freq: Any, concentration: float, cos: Any, sin: Any) -> None:
    for t in range(positions.size):
        for i in range(inv_freq.size):
            angle = positions[t] * inv_freq[i]
            cos[t, i] = math.cos(angle) * concentration
            sin[t, i] = math.sin(angle) * concentration


def rope(x: Array, cos: Array, sin: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Rotate the heads ``x`` (T, H, C) by the tables ``cos``, ``sin`` (T, C/2): (T, H, C) float32.

    Raises:
        GptOssError: a policy other than float32, or tables whose shape does not match.
    """
    check_policy(policy)
    half = (len(x), x.shape[-1] // 2) if x.ndim else ()
    if x.ndim != 3 or x.shape[-1] % 2 or cos.shape != half or sin.shape != half:
        raise GptOssError(
            f"rope: tables of shapes {cos.shape} and {sin.shape} for heads of shape {x.shape}: "
            f"expected (T, C/2) and (T, H, C), with C even"
        )
    x = values(x)
    y = np.empty_like(x)
    turned(x, values(cos), values(sin), y)
    return y


@jit
def turned(x: Any, cos: Any, sin: Any, y: Any) -> None:
    """Write into y (T, H, C) the heads x (T, H, C), rotated by ``cos`` and ``sin`` (T, C/2)."""
    half = cos.shape[1]
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            for i in range(half):
                x1, x2 = x[t, h, i], x[t, h, half + i]
                y[t, h, i] = x1 * cos[t, i] - x2 * sin[t, i]
                y[t, h, half + i] = x2 * cos[t, i] + x1 * sin[t, i]
