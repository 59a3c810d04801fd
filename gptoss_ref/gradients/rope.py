"""Gradient of the rotary embedding: turn back.

The forward pass is o₁ = x₁ cos − x₂ sin, o₂ = x₂ cos + x₁ sin: for each pair a matrix

    R = [cos  −sin]            dx = Rᵀ do:    dx₁ = do₁ cos + do₂ sin
        [sin   cos]                           dx₂ = do₂ cos − do₁ sin

Rᵀ turns by the opposite angle. It is the *transpose* of R, not its inverse: under YaRN cos and sin
carry the concentration, so that R turns and stretches, and the gradient is stretched once more
(the inverse would shrink it). Angles hold no weights. Source: chain rule; OpenAI gpt-oss reference,
``_apply_rotary_emb``.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy


def rope(d_o: Array, cos: Array, sin: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Gradient (T, H, C) of the heads before the turn, from ``d_o`` (T, H, C) after it.

    ``cos`` and ``sin`` (T, C/2) are the tables of :func:`gptoss_ref.layers.rope_tables`.

    >>> d_o = np.array([[[1.0, 2.0, 3.0, 4.0]]], np.float32)
    >>> quarter_turn = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])  # pair 0 by 90°, pair 1 by 0°
    >>> rope(d_o, *quarter_turn)
    array([[[ 3.,  2., -1.,  4.]]], dtype=float32)
    """
    policy = get_policy(policy)
    r = policy.round
    d_o1, d_o2 = np.split(d_o, 2, axis=-1)  # (T, H, C/2) each
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, C/2)
    d_x1 = r(r(d_o1 * cos) + r(d_o2 * sin))
    d_x2 = r(r(d_o2 * cos) - r(d_o1 * sin))
    return np.concatenate([d_x1, d_x2], axis=-1)
