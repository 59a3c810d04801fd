"""Gradient of the token embedding x_t = W[token_t].

Row v of the table was used by every position whose token is v, so it collects their gradients:

    dW_v = Σ_t [token_t = v] dx_t

A row whose token does not occur gets zero. The table is not shared with the unembedding, so the
unembedding's gradient is not added. Source: chain rule; ``torch.nn.Embedding``.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy


def embedding(
    d_x: Array, tokens: Array, vocabulary: int, *, policy: str | Policy = FLOAT32
) -> Array:
    """Gradient (V, D) of the table, from ``d_x`` (T, D) and ``tokens`` (T,); V is ``vocabulary``.

    >>> embedding(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([2, 0, 2]), 3)
    array([[3., 4.],
           [0., 0.],
           [6., 8.]], dtype=float32)
    """
    policy = get_policy(policy)
    d_weight = np.zeros((vocabulary, d_x.shape[-1]), policy.dtype)
    np.add.at(d_weight, tokens, d_x.astype(policy.dtype, copy=False))
    return policy.round(d_weight)
