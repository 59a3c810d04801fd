"""Gradient of RMSNorm, y = x ρ ∘ g with ρ = (mean(x²) + ε)^(−½).

Let u = x ρ, so that y = u ∘ g and

    dg = Σ_t dy_t ∘ u_t            du = dy ∘ g

ρ depends on every component of x: ∂ρ/∂x_m = −ρ³ x_m / D. Hence

    dx_m = ρ du_m + (∂ρ/∂x_m) Σ_n x_n du_n
         = ρ (du_m − u_m · mean(u ∘ du))

The second term removes the part of du along u: lengthening x does not change u (but for ε). As in
the forward pass everything is computed in float32 at least. dx is rounded to the policy's storage
once; dg is not, because the OpenAI reference keeps g in float32. Source: chain rule; OpenAI gpt-oss
reference, ``RMSNorm``.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen
from gptoss_ref.weights import RMSNormGradients


def rmsnorm(
    d_y: Array, x: Array, scale: Array, eps: float = 1e-5, *, policy: str | Policy = FLOAT32
) -> RMSNormGradients:
    """Gradients of ``x`` (T, D) and ``scale`` (D,), from ``d_y`` (T, D).

    ``eps`` is what the layer adds to the mean square.

    Returns:
        ``d_x`` (T, D), ``d_scale`` (D,).

    >>> x = np.array([[3.0, 4.0]], np.float32)  # u = (0.8485, 1.1314), 1/ρ = 3.5355
    >>> d_x, d_scale = rmsnorm(np.array([[1.0, 0.0]]), x, np.array([1.0, 10.0]))
    >>> d_x.round(4), d_scale.round(4)  # d_x is perpendicular to x
    (array([[ 0.181 , -0.1358]], dtype=float32), array([0.8485, 0.    ], dtype=float32))
    """
    policy = get_policy(policy)
    x, d_y = (a.astype(policy.dtype, copy=False) for a in (x, d_y))
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # (T, 1)
    inverse_root = 1 / np.sqrt(mean_square + policy.dtype.type(eps))  # (T, 1)
    unit = x * inverse_root  # (T, D)
    d_unit = d_y * widen(scale, policy.dtype)  # (T, D)
    along = np.mean(unit * d_unit, axis=-1, keepdims=True)  # (T, 1)
    d_x = policy.round(inverse_root * (d_unit - unit * along))
    return RMSNormGradients(d_x, (d_y * unit).sum(axis=0))
