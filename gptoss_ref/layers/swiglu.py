"""Clamped SwiGLU, the activation inside an expert.

    gate, up = even, odd entries of x                 (interleaved, not two halves)
    gate ← min(gate, 7)    up ← min(max(up, −7), 7)   (the gate is not clamped from below)
    y = gate · sigmoid(1.702 · gate) · (up + 1)

With the factor 1.702, gate · sigmoid approximates GELU. Source: OpenAI gpt-oss reference,
``swiglu``; Shazeer 2020, arXiv 2002.05202 (gated units); Hendrycks & Gimpel 2016, arXiv 1606.08415.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy


def swiglu(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: str | Policy = FLOAT32
) -> Array:
    """Clamped SwiGLU of ``x`` (…, 2F), gates at even and ups at odd entries: (…, F).

    ``alpha`` is the factor in the sigmoid; ``limit`` bounds the gate from above and the size of up.

    >>> swiglu(np.array([0.0, 5.0, 1.0, 0.0, 100.0, -100.0]))  # 0, sigmoid(1.702), 7·1·(−7 + 1)
    array([  0.       ,   0.8457958, -41.999718 ], dtype=float32)
    """
    policy = get_policy(policy)
    r, real = policy.round, policy.dtype.type
    gate = np.minimum(x[..., 0::2].astype(policy.dtype), real(limit))  # (…, F)
    up = np.clip(x[..., 1::2].astype(policy.dtype), real(-limit), real(limit))  # (…, F)
    with np.errstate(over="ignore"):  # exp(-alpha · gate) may be infinite: the sigmoid is then 0
        sigmoid = r(1 / (1 + np.exp(-r(real(alpha) * gate))))
    return r(r(gate * sigmoid) * r(up + real(1)))
