"""Gradient of the token embedding; mirrors ``gradients/embedding.py``.

One pass: each position's gradient is added to its token's row, in the order of positions.
Accumulator: float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, positions_of, values
from gptoss_ref.kernels.runtime.buffers import add_all
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import FLOAT32, Array, Policy


def embedding(
    d_x: Array, tokens: Array, vocabulary: int, *, policy: str | Policy = FLOAT32
) -> Array:
    """Gradient (V, D) of the table, from ``d_x`` (T, D) and ``tokens`` (T,); V is ``vocabulary``.

    Raises:
        GptOssError: a policy other than float32, or a token outside [0, V).
    """
    check_policy(policy)
    tokens = positions_of(tokens)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise GptOssError(
            f"tokens range from {tokens.min()} to {tokens.max()}: expected 0 to {vocabulary - 1}"
        )
    d_weight = np.zeros((vocabulary, d_x.shape[-1]), np.float32)
    _add_rows(values(d_x), tokens, d_weight)
    return d_weight


@jit
def _add_rows(d_x: Any, tokens: Any, d_weight: Any) -> None:
    for t in range(tokens.size):
        add_all(d_x[t], d_weight[tokens[t]])
