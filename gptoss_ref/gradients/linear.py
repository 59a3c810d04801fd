"""Gradient of the linear layer y = W x + b.

Component n of y is y_n = Σ_m W_nm x_m + b_n, and every token has its own x and y, so

    dx_t = Wᵀ dy_t            dW = Σ_t dy_t x_tᵀ            db = Σ_t dy_t

For an MXFP4 matrix dW is the gradient of its dequantised values. Source: chain rule;
``torch.nn.functional.linear``.
"""

from collections.abc import Sequence

import numpy as np

from gptoss_ref.layers.linear import TILE_VALUES, dense
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy
from gptoss_ref.weights import ExpertMatrix, LinearGradients


def linear(
    d_y: Array,
    x: Array,
    weight: ExpertMatrix,
    *,
    weight_gradients: bool = True,
    policy: str | Policy = FLOAT32,
) -> LinearGradients:
    """Gradients of ``x`` (T, M), ``weight`` (N, M) and the bias, from ``d_y`` (T, N).

    Args:
        weight_gradients: False leaves out the products for a frozen layer: ``d_weight`` and
            ``d_bias`` are then None.

    Returns:
        ``d_x`` (T, M), ``d_weight`` (N, M), ``d_bias`` (N,).

    >>> weight = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]])
    >>> d_x, d_weight, d_bias = linear(np.array([[1.0, 10.0, 0.0]]), np.array([[5.0, 7.0]]), weight)
    >>> d_x, d_bias
    (array([[ 1., -8.]], dtype=float32), array([ 1., 10.,  0.], dtype=float32))
    >>> d_weight
    array([[ 5.,  7.],
           [50., 70.],
           [ 0.,  0.]], dtype=float32)
    """
    d_x, ((d_weight, d_bias),) = projections(
        [d_y], x, [weight], weight_gradients=[weight_gradients], policy=policy
    )
    return LinearGradients(d_x, d_weight, d_bias)


def projections(
    d_ys: Sequence[Array],
    x: Array,
    weights: Sequence[ExpertMatrix],
    *,
    weight_gradients: Sequence[bool],
    policy: str | Policy = FLOAT32,
) -> tuple[Array, list[tuple[Array | None, Array | None]]]:
    """Gradients of several linear layers that read the same ``x`` (T, M), such as q, k and v.

    They are rounded as one layer with all their rows, which they are in the OpenAI checkpoint: the
    sum that is ``d_x`` once.

    Args:
        d_ys: of each layer, (T, N).
        weights: of each layer, (N, M).
        weight_gradients: of each layer, see :func:`linear`.

    Returns:
        ``d_x`` (T, M), and for each layer ``d_weight`` (N, M) and ``d_bias`` (N,), or None twice.

    >>> q, k = np.array([[1.0, 2.0]]), np.array([[0.0, -1.0]])  # two layers, N = 1 each
    >>> d_ys, x = [np.array([[1.0]]), np.array([[10.0]])], np.array([[5.0, 7.0]])
    >>> d_x, (_, of_k) = projections(d_ys, x, [q, k], weight_gradients=[False, True])
    >>> d_x, of_k[0]  # 1·(1, 2) + 10·(0, −1)
    (array([[ 1., -8.]], dtype=float32), array([[50., 70.]], dtype=float32))
    """
    policy = get_policy(policy)
    d_x = product(d_ys[0], weights[0], policy=policy)
    for d_y, weight in zip(d_ys[1:], weights[1:], strict=True):
        d_x += product(d_y, weight, policy=policy)
    return policy.round(d_x), [
        parameters(d_y, x, policy=policy) if wanted else (None, None)
        for d_y, wanted in zip(d_ys, weight_gradients, strict=True)
    ]


def parameters(d_y: Array, x: Array, *, policy: Policy) -> tuple[Array, Array]:
    """Gradients (N, M) and (N,) of a layer's weight and bias, from ``d_y`` (T, N), ``x`` (T, M)."""
    d_y, x = (a.astype(policy.dtype, copy=False) for a in (d_y, x))
    return policy.round(d_y.T @ x), policy.round(d_y.sum(axis=0))


def product(d_y: Array, weight: ExpertMatrix, *, policy: Policy) -> Array:
    """``d_y`` (T, N) times ``weight`` (N, M), not yet rounded: (T, M)."""
    outputs, inputs = weight.shape
    d_y = d_y.astype(policy.dtype, copy=False)
    d_x = np.zeros((len(d_y), inputs), policy.dtype)
    rows_per_tile = max(1, TILE_VALUES // max(1, inputs))
    for start in range(0, outputs, rows_per_tile):
        rows = slice(start, start + rows_per_tile)
        d_x += d_y[:, rows] @ dense(weight[rows], policy)
    return d_x
