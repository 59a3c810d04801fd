"""Gradient of the clamped SwiGLU; mirrors ``gradients/swiglu.py``.

One pass over the pairs, where the NumPy gradient makes a dozen temporary arrays. Error: that of the
kernels' exponential; relative L2 below 2e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels._jit import jit
from gptoss_ref.kernels._math import exp
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy


def swiglu(
    d_y: Array,
    x: Array,
    alpha: float = 1.702,
    limit: float = 7.0,
    *,
    policy: str | Policy = FLOAT32,
) -> Array:
    """Gradient (…, 2F) of ``x`` (…, 2F), gates at even and ups at odd entries, from ``d_y`` (…, F).

    ``alpha`` and ``limit`` are those of the layer.

    Raises:
        GptOssError: another policy than float32.
    """
    if get_policy(policy).name != "float32":
        raise GptOssError(f"kernels follow the float32 policy only, not {policy!r}")
    x, d_y = (np.ascontiguousarray(a, np.float32) for a in (x, d_y))
    d_x = np.empty_like(x)
    _gradients(
        d_y.reshape(-1), x.reshape(-1), np.float32(alpha), np.float32(limit), d_x.reshape(-1)
    )
    return d_x


@jit
def _gradients(d_y: Any, x: Any, alpha: Any, limit: Any, d_x: Any) -> None:
    one, nothing = np.float32(1.0), np.float32(0.0)
    for i in range(d_y.size):
        raw_gate, raw_up = x[2 * i], x[2 * i + 1]
        gate = limit if raw_gate > limit else raw_gate
        up = limit if raw_up > limit else raw_up
        up = -limit if up < -limit else up
        s = one / (one + exp(-alpha * gate))
        d_gate = d_y[i] * (up + one) * (s + alpha * gate * s * (one - s))
        d_x[2 * i] = nothing if raw_gate > limit else d_gate
        d_x[2 * i + 1] = nothing if abs(raw_up) > limit else d_y[i] * gate * s
