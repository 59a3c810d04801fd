"""Router with top-k; mirrors ``layers/router.py``.

The logits are a linear layer (float32 sums; relative L2 error below 1e-6). The choice scans the
logits A times for the largest one not yet taken; the layer sorts all of them. Comparisons are
strict, so among equal logits the lowest index wins; a NaN counts as +∞. The softmax over the chosen
experts uses the kernels' own exponential. Given the logits, a weight has a relative error of at
most 5e-7 plus 2⁻²⁴ of the distance to the largest logit, because this distance is rounded; weights
below e⁻⁸⁷ are 0. This file does not use fast-math, which could assume that there are no NaNs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.runtime.buffers import falses
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.kernels.runtime.scalar import exp
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import RouterOutput


def router(
    x: Array, weight: Array, bias: Array, experts_per_token: int, *, policy: str | Policy = FLOAT32
) -> RouterOutput:
    """Route ``x`` (T, D) with ``weight`` (E, D) and ``bias`` (E,).

    Returns:
        Logits (T, E), and indices and weights (T, A) of the chosen experts.

    Raises:
        GptOssError: a policy other than float32, shapes that do not match, or more choices than
            experts.
    """
    if x.ndim != 2:
        raise GptOssError(f"router: x of shape {x.shape}: expected (T, D)")
    logits = linear(x, weight, bias, policy=policy)  # (T, E)
    if not 1 <= experts_per_token <= len(weight):
        raise GptOssError(
            f"router: {experts_per_token} experts per token: expected 1 to {len(weight)}"
        )
    indices = np.empty((len(x), experts_per_token), np.int64)
    weights = np.empty(indices.shape, np.float32)
    choose(logits, indices, weights)
    return RouterOutput(logits, indices, weights)


@jit
def choose(logits: Any, indices: Any, weights: Any) -> None:
    """Write the indices of the A largest ``logits`` (T, E), and their softmax, both (T, A)."""
    (tokens, active), count = indices.shape, logits.shape[1]
    infinity = np.float32(np.inf)
    for t in range(tokens):
        taken = falses(count)
        for a in range(active):
            best, largest = -1, -infinity
            for e in range(count):
                logit = infinity if np.isnan(logits[t, e]) else logits[t, e]
                if not taken[e] and (best < 0 or logit > largest):
                    best, largest = e, logit
            taken[best] = True
            indices[t, a] = best
        total = np.float32(0.0)
        for a in range(active):
            weights[t, a] = exp(logits[t, indices[t, a]] - logits[t, indices[t, 0]])
            total += weights[t, a]
        for a in range(active):
            weights[t, a] /= total
