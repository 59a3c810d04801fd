"""Gradient clipping: scale the gradients down if their joint norm exceeds a limit.

    ‖g‖ = √(Σ over all arrays and entries of g²)        g ← g · min(1, limit / ‖g‖)

The norm is over all arrays together, so that the direction does not change. Source: Pascanu et al.
2012, arXiv 1211.5063; ``torch.nn.utils.clip_grad_norm_``, which adds 1e-6 to the divisor.
"""

from __future__ import annotations

import math

import numpy as np

from gptoss_ref.numerics import Array


def norm(gradients: dict[str, Array]) -> float:
    """The Euclidean norm ‖g‖ of arrays of any shapes together, summed in float64.

    >>> norm({"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])})
    5.0
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (np.square(g, dtype=np.float64).sum() for g in gradients.values())
        return math.sqrt(sum(map(float, squares)))


def clip(gradients: dict[str, Array], limit: float) -> tuple[dict[str, Array], float]:
    """The gradients, scaled to the norm ``limit`` if theirs is larger, and the norm before.

    >>> clipped, before = clip({"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}, 1.0)
    >>> before, clipped["a"].round(3).tolist(), clipped["b"].round(3).tolist()
    (5.0, [0.6, 0.0], [[0.8]])
    """
    length = norm(gradients)
    if not limit < length < math.inf:
        return gradients, length
    factor = limit / length
    return {name: g * g.dtype.type(factor) for name, g in gradients.items()}, length
