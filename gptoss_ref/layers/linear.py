"""Linear layer: y = W x + b.

Weights stay as the checkpoint stores them; a tile of rows at a time is widened, so that a large
matrix never needs a second copy in memory. W x + b is rounded once, after the bias is added.
Source: OpenAI gpt-oss reference, ``torch.nn.Linear`` in bfloat16.
"""

import numpy as np

from gptoss_ref.layers import mxfp4
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen
from gptoss_ref.weights import MXFP4, ExpertMatrix

TILE_VALUES = 1 << 22
"""Weights widened at a time: 16 MiB of float32."""


def linear(
    x: Array, weight: ExpertMatrix, bias: Array | None = None, *, policy: str | Policy = FLOAT32
) -> Array:
    """``x`` (…, M) times ``weight`` (N, M) transposed, plus ``bias`` (N,): (…, N).

    >>> x = np.array([1.0, 2.0], np.float32)
    >>> linear(x, np.array([[1.0, 1.0], [0.0, -1.0], [2.0, 0.5]]), np.array([0.0, 10.0, 0.0]))
    array([3., 8., 3.], dtype=float32)
    """
    policy = get_policy(policy)
    y = matmul(x, weight, policy=policy)  # (…, N)
    return policy.round(y if bias is None else y + widen(bias, policy.dtype))


def matmul(x: Array, weight: ExpertMatrix, *, policy: Policy) -> Array:
    """``x`` (…, M) times ``weight`` (N, M) transposed, not yet rounded: (…, N)."""
    outputs, inputs = weight.shape
    x = x.astype(policy.dtype, copy=False)
    y = np.empty((*x.shape[:-1], outputs), policy.dtype)
    rows_per_tile = max(1, TILE_VALUES // max(1, inputs))
    for start in range(0, outputs, rows_per_tile):
        rows = slice(start, start + rows_per_tile)
        y[..., rows] = x @ dense(weight[rows], policy).T
    return y


def dense(weight: ExpertMatrix, policy: Policy) -> Array:
    """The values of a stored matrix (N, M), in ``policy.dtype``."""
    if isinstance(weight, MXFP4):
        return mxfp4.decode(
            weight.blocks,
            weight.scales,
            scale_255=weight.scale_255,
            dtype=policy.dtype,
            name=weight.name,
        )
    return widen(weight, policy.dtype)
