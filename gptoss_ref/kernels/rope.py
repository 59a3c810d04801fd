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
from numpy.typing import NDArray

from gptoss_ref.errors import ConfigError, GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, positions_of, values
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import FLOAT32, Array, Policy


def yarn(
    head_dim: int,
    theta: float,
    factor: float = 1.0,
    original_length: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[NDArray[np.float64], float]:
    """Return the angular frequencies (C/2,) in radians per position, and the concentration.

    They are computed once per model, pair by pair, in plain Python. ``factor`` ≤ 1 is plain RoPE.

    Raises:
        ConfigError: the ends of the ramp do not satisfy 0 < i(beta_fast) < i(beta_slow) < C/2 − 1.
    """
    half = head_dim // 2
    plain = [math.exp(-math.log(theta) * i / half) for i in range(half)]
    if factor <= 1.0:
        return np.array(plain), 1.0
    low, high = (
        half * (math.log(original_length) - math.log(2 * math.pi * beta)) / math.log(theta)
        for beta in (beta_fast, beta_slow)
    )
    if not 0 < low < high < half - 1:
        raise ConfigError(
            f"YaRN ramp from pair {low:.3f} to {high:.3f}: expected 0 < low < high < C/2 - 1 = "
            f"{half - 1}"
        )
    blended = []
    for i, omega in enumerate(plain):
        slow = min(1.0, max(0.0, (i - low) / (high - low)))
        blended.append(omega * (1.0 - slow) + omega / factor * slow)
    return np.array(blended), 1.0 + 0.1 * math.log(factor)


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
