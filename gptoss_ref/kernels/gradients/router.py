"""Gradient of the router; mirrors ``gradients/router.py``.

The softmax over the chosen experts has only a few values per token. The cost is in the three
products of the linear layer, which ``linear.py`` computes. Error: that of a float32 sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.gradients.linear import linear
from gptoss_ref.kernels.runtime.arrays import positions_of, values
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import Matrix, RouterGradients


def router(
    d_weights: Array,
    x: Array,
    weight: Matrix,
    indices: Array,
    weights: Array,
    *,
    d_logits: Array | None = None,
    weight_gradients: bool = True,
    policy: str | Policy = FLOAT32,
) -> RouterGradients:
    """Gradients of the router's input and parameters, from ``d_weights`` (T, A).

    Args:
        x: (T, D).
        weight: (E, D).
        indices: (T, A), the layer's choice.
        weights: (T, A), the layer's softmax over the chosen experts.
        d_logits: (T, E), another gradient of the logits (from load balancing), or None.
        weight_gradients: see :func:`gptoss_ref.kernels.gradients.linear`.

    Returns:
        ``d_logits`` (T, E), ``d_x`` (T, D), ``d_weight`` (E, D), ``d_bias`` (E,).

    Raises:
        GptOssError: a policy other than float32, or shapes that do not match.
    """
    total = np.zeros((len(x), weight.shape[0]), np.float32)
    if d_logits is not None:
        total += d_logits
    _add_shares(values(d_weights), values(weights), positions_of(indices), total)
    found = linear(total, x, weight, weight_gradients=weight_gradients, policy=policy)
    return RouterGradients(total, *found)


@jit
def _add_shares(d_weights: Any, weights: Any, indices: Any, d_logits: Any) -> None:
    tokens, active = indices.shape
    for t in range(tokens):
        mean = np.float32(0.0)
        for a in range(active):
            mean += weights[t, a] * d_weights[t, a]
        for a in range(active):
            d_logits[t, indices[t, a]] += weights[t, a] * (d_weights[t, a] - mean)
