"""Gradient of RMSNorm; mirrors ``gradients/rmsnorm.py``.

Token by token, two passes over values in cache: the two sums, then the result. A task has 64
tokens; the parts of the scale's gradient from all tasks are summed afterwards. Accumulators:
float32 in several partial sums; relative L2 error below 2e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, values
from gptoss_ref.kernels.runtime.buffers import fill
from gptoss_ref.kernels.runtime.jit import jit, jit_dot_inner, jit_inner
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy, widen
from gptoss_ref.weights import RMSNormGradients

TOKENS = 64
"""Tokens of a task."""
WORK = 8
"""Operations per value, to decide whether to use threads."""


def rmsnorm(
    d_y: Array, x: Array, scale: Array, eps: float = 1e-5, *, policy: str | Policy = FLOAT32
) -> RMSNormGradients:
    """Gradients of ``x`` (T, D) and ``scale`` (D,), from ``d_y`` (T, D).

    ``eps`` is the number that the layer adds to the mean square.

    Returns:
        ``d_x`` (T, D), ``d_scale`` (D,).

    Raises:
        GptOssError: a policy other than float32, or shapes that do not match.
    """
    check_policy(policy)
    if x.ndim != 2 or d_y.shape != x.shape or scale.shape != x.shape[1:]:
        raise GptOssError(
            f"gradient of rmsnorm: d_y {d_y.shape}, x {x.shape}, scale {scale.shape} do not fit: "
            "expected (T, D), (T, D), (D,)"
        )
    tasks = -(-len(x) // TOKENS)
    d_x, d_scale = np.empty(x.shape, np.float32), np.empty((tasks, x.shape[1]), np.float32)
    wide = np.ascontiguousarray(widen(scale, np.float32))
    run(_rmsnorm, tasks, WORK * x.size, values(d_y), values(x), wide, np.float32(eps), d_x, d_scale)
    return RMSNormGradients(d_x, d_scale.sum(axis=0))


@jit
def _rmsnorm(
    d_y: Any, x: Any, scale: Any, eps: Any, d_x: Any, d_scale: Any, tasks: int, team: Any
) -> None:
    _rmsnorm_tasks(d_y, x, scale, eps, d_x, d_scale, tasks, team)


@jit_tasks
def _rmsnorm_tasks(
    d_y: Any, x: Any, scale: Any, eps: Any, d_x: Any, d_scale: Any, start: int, stop: int
) -> None:
    tokens, width = x.shape
    for task in range(start, stop):
        part = d_scale[task]
        fill(part, np.float32(0.0))
        for t in range(task * TOKENS, min((task + 1) * TOKENS, tokens)):
            squares, along = _sums(x[t], d_y[t], scale)
            mean = np.float32(squares / np.float32(width))
            inverse = np.float32(1.0) / np.sqrt(np.float32(mean + eps))
            along = np.float32(along * inverse / np.float32(width))  # mean of u · du
            _row(x[t], d_y[t], scale, inverse, along, d_x[t], part)


@jit_dot_inner
def _sums(x: Any, d_y: Any, scale: Any) -> Any:
    """Σ x², Σ x · dy · g."""
    squares, along = np.float32(0.0), np.float32(0.0)
    for d in range(x.size):
        squares += x[d] * x[d]
        along += x[d] * (d_y[d] * scale[d])
    return squares, along


@jit_inner
def _row(x: Any, d_y: Any, scale: Any, inverse: Any, along: Any, d_x: Any, d_scale: Any) -> None:
    for d in range(x.size):
        unit = np.float32(x[d] * inverse)
        d_x[d] = inverse * np.float32(d_y[d] * scale[d] - unit * along)
        d_scale[d] += d_y[d] * unit
