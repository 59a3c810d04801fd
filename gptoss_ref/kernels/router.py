"""Router with top-k; mirrors ``layers/router.py``.

The logits are a linear layer (float32 sums; relative L2 below 1e-6); the choice is A scans for the
largest logit not yet taken, where the layer sorts all. Comparisons are strict, so of equal logits
the lower index wins; a NaN counts as +∞. The softmax over the chosen uses the kernels' own
exponential: of its logits, weights are within 5e-7 relative and 2⁻²⁴ of the distance to the largest
logit, which is rounded; below e⁻⁸⁷ they are 0. No fast-math here: it may not assume that there are
no NaNs.
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
    """Route ``x`` (T, D) by ``weight`` (E, D) and ``bias`` (E,).

    Raises:
        GptOssError: another policy, shapes that do not fit, or more choices than experts.
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
    """Into ``indices`` and ``weights`` (T, A): the largest A of ``logits`` (T, E), and softmax."""
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
