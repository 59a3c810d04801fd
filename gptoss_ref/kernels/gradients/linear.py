"""Gradients of linear layers; mirrors ``gradients/linear.py``.

The gradient of the input is the product of the forward pass with the matrix used column by column
(``matmul/gemm.py``); MXFP4 is decoded into panels of columns (``products.py``). The gradient of the
weight is a sum over tokens: a task computes some of its rows, with 256 tokens at a time. Error:
relative L2 below 1e-6 for the input; for the weight, that of any float32 sum over the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.gradients.products import DEPTH, by_columns, outer, padded, room_for_panels
from gptoss_ref.kernels.linear import linear as forward
from gptoss_ref.kernels.matmul.mxfp4_block import Stored
from gptoss_ref.kernels.matmul.mxfp4_methods import refuse_255, stored_or_copy
from gptoss_ref.kernels.runtime.arrays import check_policy, values
from gptoss_ref.kernels.runtime.buffers import copy, floats
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ExpertMatrix, LinearGradients

TOKENS = 96
"""Tokens of a task of the input's gradient for MXFP4."""


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
        weight_gradients: False omits the products for a frozen layer: ``d_weight`` and ``d_bias``
            are then None.

    Raises:
        GptOssError: a policy other than float32, or shapes that do not match.
        CheckpointError: a scale byte is 255 and the weight's ``scale_255`` is ``"error"``.
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
    """Gradients of several linear layers that have the same input ``x`` (T, M), such as q, k and v.

    Args:
        d_ys: for each layer, (T, N).
        weights: for each layer, (N, M).
        weight_gradients: for each layer, see :func:`linear`.

    Returns:
        ``d_x`` (T, M), and for each layer ``d_weight`` (N, M) and ``d_bias`` (N,), or None twice.

    Raises:
        GptOssError: a policy other than float32, or shapes that do not match.
        CheckpointError: a scale byte is 255 and a weight's ``scale_255`` is ``"error"``.
    """
    check_policy(policy)
    for d_y, weight in zip(d_ys, weights, strict=True):
        if d_y.shape != (len(x), weight.shape[0]) or x.shape[1:] != (weight.shape[1],):
            raise GptOssError(
                f"gradient of a linear layer: d_y {d_y.shape}, x {x.shape}, weight "
                f"{tuple(weight.shape)} do not fit: expected (T, N), (T, M), (N, M)"
            )
    d_x = _of_input(d_ys[0], weights[0])
    for d_y, weight in zip(d_ys[1:], weights[1:], strict=True):
        d_x += _of_input(d_y, weight)
    return d_x, [
        _of_parameters(d_y, x) if wanted else (None, None)
        for d_y, wanted in zip(d_ys, weight_gradients, strict=True)
    ]


def _of_input(d_y: Array, weight: ExpertMatrix) -> Array:
    """Return ``d_y`` (T, N) times ``weight`` (N, M): (T, M)."""
    if not isinstance(weight, MXFP4):
        return forward(d_y, weight.T)
    if weight.scale_255 == "error":
        refuse_255(weight.scales, weight.name)
    d_x = np.empty((len(d_y), weight.shape[1]), np.float32)
    arguments = (current_path(), values(d_y), *stored_or_copy(weight), d_x)
    run(_mxfp4_input, -(-len(d_y) // TOKENS), d_x.size * d_y.shape[1], *arguments)
    return d_x


@jit
def _mxfp4_input(
    path: Any, d_y: Any, blocks: Any, scales: Any, scale_255: int, d_x: Any, tasks: int, team: Any
) -> None:
    _mxfp4_input_tasks(path, d_y, Stored(blocks, scales, scale_255), d_x, tasks, team)


@jit_tasks
def _mxfp4_input_tasks(
    path: Any, d_y: Any, stored: Stored, d_x: Any, start: int, stop: int
) -> None:
    (tokens, outputs), inputs = d_y.shape, d_x.shape[1]
    stride, room = padded(inputs), room_for_panels()
    found, flat = floats(TOKENS * stride), d_y.reshape(-1)
    for t in range(start * TOKENS, min(stop * TOKENS, tokens), TOKENS):
        count = min(TOKENS, tokens - t)
        by_columns(
            path, flat, t * outputs, outputs, count, stored, 0, outputs, inputs, found, stride, room
        )
        for m in range(count):
            copy(found[m * stride : m * stride + inputs], d_x[t + m])


def _of_parameters(d_y: Array, x: Array) -> tuple[Array, Array]:
    """Return gradients (N, M) and (N,) of weight and bias, from ``d_y`` (T, N) and ``x`` (T, M)."""
    outputs = d_y.shape[1]
    rows = min(192, max(24, -(-outputs // 192) * 12))  # about sixteen tasks, each of whole tiles
    d_weight = np.empty((outputs, x.shape[1]), np.float32)
    d_y, x = values(d_y), values(x)
    run(
        _parameters, -(-outputs // rows), d_weight.size * len(x), current_path(), d_y, x, rows,
        d_weight,
    )  # fmt: skip
    return d_weight, d_y.sum(axis=0)


@jit
def _parameters(
    path: Any, d_y: Any, x: Any, rows: int, d_weight: Any, tasks: int, team: Any
) -> None:
    _parameters_tasks(path, d_y, x, rows, d_weight, tasks, team)


@jit_tasks
def _parameters_tasks(
    path: Any, d_y: Any, x: Any, rows: int, d_weight: Any, start: int, stop: int
) -> None:
    (tokens, inputs), outputs = x.shape, d_y.shape[1]
    room = room_for_panels()
    from_, to, out = d_y.reshape(-1), x.reshape(-1), d_weight.reshape(-1)
    for first in range(start * rows, min(stop * rows, outputs), rows):
        some = min(rows, outputs - first)
        for t in range(0, tokens, DEPTH):
            outer(
                path, from_, t * outputs + first, outputs, to, t * inputs, inputs,
                min(DEPTH, tokens - t), some, inputs, out, first * inputs, inputs, t > 0, room,
            )  # fmt: skip
