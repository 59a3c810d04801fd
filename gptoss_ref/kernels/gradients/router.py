"""Gradient of the router; mirrors ``gradients/router.py``.

The softmax over the chosen is a handful of values a token; what costs are the linear layer's three
products, which are those of ``linear.py``. Error: that of a float32 sum.
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
        indices: (T, A), what the layer chose.
        weights: (T, A), its softmax over the chosen.
        d_logits: (T, E), a gradient that reaches the logits by another way (load balancing), or
            None.
        weight_gradients: see :func:`gptoss_ref.kernels.gradients.linear`.

    Returns:
        ``d_logits`` (T, E), ``d_x`` (T, D), ``d_weight`` (E, D), ``d_bias`` (E,).

    Raises:
        GptOssError: another policy than float32, or shapes that do not fit.
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
