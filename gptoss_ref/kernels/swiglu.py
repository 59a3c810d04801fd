"""Clamped SwiGLU; mirrors ``layers/swiglu.py``.

One pass over the interleaved input, with the kernels' own exponential; the layer makes a dozen
temporary arrays. No accumulator. Each value has a relative error below 4e-7; a negative gate adds
1.2e-7 · α · ``|gate|``, because α · gate is rounded before the exponential; below α · gate = −87
the result is 0. ``experts`` calls the same leaf on tiles that are still in cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, values
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.scalar import exp
from gptoss_ref.numerics import FLOAT32, Array, Policy


def swiglu(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: str | Policy = FLOAT32
) -> Array:
    """Activate ``x`` (…, 2F), gates at even and ups at odd indices: (…, F) float32.

    Raises:
        GptOssError: a policy other than float32, or an odd last axis.
    """
    check_policy(policy)
    if x.shape[-1] % 2:
        raise GptOssError(f"swiglu: x of shape {x.shape}: expected an even last axis (gate, up)")
    y = np.empty((*x.shape[:-1], x.shape[-1] // 2), np.float32)
    _all(values(x).reshape(-1), np.float32(alpha), np.float32(limit), y.reshape(-1))
    return y


@jit_inner
def activated(gate: Any, up: Any, alpha: Any, limit: Any) -> Any:
    """Return gate · sigmoid(alpha · gate) · (up + 1), gate and up clamped; NaN stays NaN."""
    gate = limit if gate > limit else gate
    up = limit if up > limit else up
    up = -limit if up < -limit else up
    one = np.float32(1.0)
    sigmoid = one / np.float32(one + exp(-np.float32(alpha * gate)))
    return np.float32(gate * sigmoid) * np.float32(up + one)


@jit
def _all(x: Any, alpha: Any, limit: Any, y: Any) -> None:
    for i in range(y.size):
        y[i] = activated(x[2 * i], x[2 * i + 1], alpha, limit)
