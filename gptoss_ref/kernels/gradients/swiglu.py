"""Gradient of the clamped SwiGLU; mirrors ``gradients/swiglu.py``.

One pass over the pairs; the NumPy gradient makes a dozen temporary arrays. Error: that of the
kernels' exponential; relative L2 below 2e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.runtime.arrays import check_policy
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.scalar import exp
from gptoss_ref.numerics import FLOAT32, Array, Policy


def swiglu(
    d_y: Array,
    x: Array,
    alpha: float = 1.702,
    limit: float = 7.0,
    *,
    policy: str | Policy = FLOAT32,
) -> Array:
    """Gradient (…, 2F) of ``x`` (…, 2F), gates at even and ups at odd indices, from ``d_y`` (…, F).

    ``alpha`` and ``limit`` are those of the layer.

    Raises:
        GptOssError: a policy other than float32.
    """
    check_policy(policy)
    x, d_y = (np.ascontiguousarray(a, np.float32) for a in (x, d_y))
    d_x = np.empty_like(x)
    _gradients(
        d_y.reshape(-1), x.reshape(-1), np.float32(alpha), np.float32(limit), d_x.reshape(-1)
    )
    return d_x


@jit
def _gradients(d_y: Any, x: Any, alpha: Any, limit: Any, d_x: Any) -> None:
    for i in range(d_y.size):
        d_x[2 * i], d_x[2 * i + 1] = slope(d_y[i], x[2 * i], x[2 * i + 1], alpha, limit)


@jit_inner
def slope(d_y: Any, raw_gate: Any, raw_up: Any, alpha: Any, limit: Any) -> Any:
    """Return the gradients of one gate and its up."""
    one, nothing = np.float32(1.0), np.float32(0.0)
    gate = limit if raw_gate > limit else raw_gate
    up = limit if raw_up > limit else raw_up
    up = -limit if up < -limit else up
    s = np.float32(one / np.float32(one + exp(np.float32(-alpha * gate))))
    d_gate = np.float32(d_y * (up + one) * (s + alpha * gate * s * (one - s)))
    d_gate = nothing if raw_gate > limit else d_gate
    return d_gate, nothing if abs(raw_up) > limit else np.float32(d_y * gate * s)
