"""RMSNorm: divide each token by its root mean square, then multiply by a learned vector.

    y = x / √(mean(x²) + ε) · g

No mean is subtracted and no bias is added. The computation is in float32 or float64, and the result
is rounded to the policy's storage *after* the multiplication by g; rounding before it is a known
bug (``norm-scale-after-cast``). Source: Zhang & Sennrich 2019, arXiv 1910.07467; OpenAI gpt-oss
reference, ``RMSNorm``.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen


def rmsnorm(x: Array, scale: Array, eps: float = 1e-5, *, policy: str | Policy = FLOAT32) -> Array:
    """Normalise ``x`` (T, D) over its last axis, times ``scale`` (D,): (T, D).

    ``eps`` is added to the mean square.

    >>> x = np.array([[3.0, 4.0]], np.float32)  # mean square 12.5, root 3.5355
    >>> rmsnorm(x, np.array([1.0, 10.0], np.float32)).round(4)
    array([[ 0.8485, 11.3137]], dtype=float32)
    """
    policy = get_policy(policy)
    x = x.astype(policy.dtype, copy=False)
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # (T, 1)
    unit = x / np.sqrt(mean_square + policy.dtype.type(eps))  # (T, D)
    return policy.round(unit * widen(scale, policy.dtype))
