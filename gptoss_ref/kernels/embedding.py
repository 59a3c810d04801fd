"""Token embedding; mirrors ``layers/embedding.py``.

One pass that converts each row directly into the result; the layer gathers the bits first. There
is no accumulator, and the result is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, matrix_of, positions_of, weight_of
from gptoss_ref.kernels.runtime.buffers import copy
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import FLOAT32, Array, Policy


def embedding(tokens: Array, weight: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Look up the rows of ``weight`` (V, D) for ``tokens`` (T,), ints in [0, V): (T, D) float32.

    Raises:
        GptOssError: a policy other than float32, or tokens that are not integers in [0, V).
    """
    check_policy(policy)
    tokens = positions_of(tokens)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(weight):
        raise GptOssError(
            f"tokens range from {tokens.min()} to {tokens.max()}: expected 0 to {len(weight) - 1}"
        )
    stored = weight_of(weight)
    if stored is None:  # a non-contiguous view: gather the needed rows only
        stored, tokens = matrix_of(weight[tokens]), np.arange(len(tokens))
    x = np.empty((len(tokens), weight.shape[1]), np.float32)
    _rows(tokens, stored, x)
    return x


@jit
def _rows(tokens: Any, weight: Any, x: Any) -> None:
    for t in range(x.shape[0]):
        copy(weight[tokens[t]], x[t])
