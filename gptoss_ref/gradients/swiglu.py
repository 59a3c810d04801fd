"""Gradient of the clamped SwiGLU, y = g σ(α g) (u + 1) with g = min(gate, 7), u = clip(up, −7, 7).

With s = σ(α g), whose derivative with respect to g is α s (1 − s):

    du = dy · g s
    dg = dy · (u + 1) · (s + g · α s (1 − s))

Beyond a clamp the output does not move, so the gradient there is zero: dgate = dg if gate ≤ 7 and
dup = du if −7 ≤ up ≤ 7. The gate has no clamp from below: a gate of −100 still has a gradient, if a
tiny one. **At** the clamp itself, where the left and the right derivative differ, either is a
subgradient, and implementations differ. Here the gradient passes, as ``torch.clamp`` did up to
version 2.13. From 2.14 on torch stops it (pytorch issue 195931), and so does a kernel that tests
``gate < limit``; ``minimum`` of two arrays, in torch and in JAX, halves it. In bfloat16, where 7 is
a value that gates take, the choices differ in practice. Source: chain rule; OpenAI gpt-oss
reference, ``swiglu``.
"""

import numpy as np

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

    >>> x = np.array([0.0, 5.0, 7.0, 1.0, 7.1, 7.1])  # inside, a gate at the clamp, both beyond
    >>> swiglu(np.ones(3), x).round(4)
    array([3.    , 0.    , 2.0001, 7.    , 0.    , 0.    ], dtype=float32)
    """
    policy = get_policy(policy)
    r, real = policy.round, policy.dtype.type
    x, d_y = (a.astype(policy.dtype, copy=False) for a in (x, d_y))
    gate = np.minimum(x[..., 0::2], real(limit))  # (…, F)
    up = np.clip(x[..., 1::2], real(-limit), real(limit))  # (…, F)
    with np.errstate(over="ignore"):  # exp(-alpha · gate) may be infinite: the sigmoid is then 0
        sigmoid = r(1 / (1 + np.exp(-r(real(alpha) * gate))))
    d_up = r(d_y * r(gate * sigmoid))
    d_gated = r(d_y * r(up + real(1)))  # of gate · sigmoid
    d_sigmoid = r(r(d_gated * gate) * (1 - sigmoid) * sigmoid)  # of the sigmoid's argument
    d_gate = r(r(d_gated * sigmoid) + r(real(alpha) * d_sigmoid))
    d_x = np.empty_like(x)
    d_x[..., 0::2] = np.where(x[..., 0::2] <= limit, d_gate, 0)
    d_x[..., 1::2] = np.where(np.abs(x[..., 1::2]) <= limit, d_up, 0)
    return d_x
