"""Linear layer y = W x + b; mirrors ``layers/linear.py``.

Weights are read where they lie: bfloat16 bits are widened in registers (a shift), never stored as
a second matrix.

================  ================================================================================
one token         a dot product a row, rows cut into tasks; memory is read once, in order, with
                  prefetch. Faster than the layer because that widens tiles into memory first.
several tokens    256 columns at a time: pack L rows as a float32 panel, which stays in cache,
                  then the panel product with all tokens, up to 12 at a time in registers
the same, AMX     32 rows as they lie, times all tokens split into bfloat16 planes: ``_tiles.py``
columns stored    a matrix whose transpose is contiguous (dequantised Hugging Face experts): the
                  same panels, without the transposition
MXFP4             see ``kernels/mxfp4.py``
================  ================================================================================

Accumulator: float32. Error: that of any float32 sum, below 1e-6 relative L2 of float64 on Gaussian
and on heavy-tailed activations; MXFP4 within 1e-4. Other strides, and float64 weights, are gathered
a tile of rows at a time: correct, not fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels import _tiles
from gptoss_ref.kernels._arrays import check_policy, is_bits, values, vector_of, weight_of
from gptoss_ref.kernels._jit import (
    current_path,
    jit,
    jit_dot,
    jit_inner,
    tiles,
)
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels._panels import dot, pack, panel_width, tile
from gptoss_ref.kernels._tasks import jit_tasks
from gptoss_ref.kernels.mxfp4 import matmul
from gptoss_ref.kernels.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ExpertMatrix

ROWS_PER_TASK = 64
DEPTH = 256
"""Inner indices of a panel: 32 rows of that depth fill a first-level cache."""
TOKENS = 768
"""Tokens multiplied at once: with that depth they fit a second-level cache."""
TILED_ROWS = 32
"""Rows of a task on AMX."""
TILED_BYTES = 1 << 20
"""Of split activations multiplied at once, to fit a second-level cache."""
GATHERED_VALUES = 1 << 22
"""Weights of awkward layout gathered at a time: 16 MiB of float32."""


def linear(
    x: Array, weight: ExpertMatrix, bias: Array | None = None, *, policy: str | Policy = FLOAT32
) -> Array:
    """``x`` (…, M) times ``weight`` (N, M) transposed, plus ``bias`` (N,): (…, N) float32.

    Raises:
        GptOssError: another policy, or shapes that do not fit.
    """
    check_policy(policy)
    if len(weight.shape) != 2:
        raise GptOssError(f"linear: a weight of shape {weight.shape}: expected (N, M)")
    outputs, inputs = weight.shape
    if x.shape[-1:] != (inputs,):
        raise GptOssError(
            f"linear: x of shape {x.shape} does not fit a weight of shape {weight.shape}: "
            f"expected (…, {inputs})"
        )
    x2 = values(x).reshape(-1, inputs)  # (T, M)
    y = np.empty((len(x2), outputs), np.float32)
    b = vector_of(bias, outputs)
    if y.size == 0:
        pass
    elif isinstance(weight, MXFP4):
        matmul(x2, weight, b, y)
    else:
        product(x2, weight, b, y)
    return y.reshape(*x.shape[:-1], outputs)


def product(x: Array, weight: Array, bias: Array, y: Array) -> None:
    """y (T, N) = x (T, M) times ``weight`` (N, M) transposed, plus ``bias`` ((N,) or empty)."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    path, work = current_path(), tokens * outputs * inputs
    if (stored := weight_of(weight)) is not None:
        flat, tasks = stored.reshape(-1), -(-outputs // ROWS_PER_TASK)
        if tokens == 1:
            run(rows, tasks, work, path, x[0], flat, bias, y[0])
        elif tiles() and stored.dtype == np.uint16 and inputs % _tiles.STEP == 0 < inputs:
            _tiled_product(x, flat, bias, y)
        else:
            run(_panels, tasks, work, path, x, flat, False, bias, y)
    elif (stored := weight_of(weight.T)) is not None:
        flat, tasks = stored.reshape(-1), -(-outputs // ROWS_PER_TASK)
        run(_panels, tasks, work, path, x, flat, True, bias, y)
    else:
        step = max(1, GATHERED_VALUES // max(1, inputs))
        for start in range(0, outputs, step):
            some = slice(start, start + step)
            gathered = weight[some].astype(np.uint16 if is_bits(weight) else np.float32, order="C")
            part = np.empty((tokens, len(gathered)), np.float32)
            product(x, gathered, bias[some], part)
            y[:, some] = part


def _tiled_product(x: Array, weight: Array, bias: Array, y: Array) -> None:
    """:func:`product` on AMX, for flat bfloat16 ``weight``; rows that fill no tile go elsewhere."""
    (tokens, inputs), outputs = x.shape, y.shape[1]
    tasks = outputs // TILED_ROWS
    done = tasks * TILED_ROWS
    if tasks:
        planes = _tiles.split(x, np.arange(tokens))
        work = tokens * done * inputs
        nan = np.zeros(tasks, np.bool_)
        run(_tiled, tasks, work, planes, weight, bias, y, nan)
        if nan.any():  # perhaps of an infinite weight, ∞ − ∞ of planes: summed whole instead
            whole = (current_path(), x, weight, False, bias, y)
            run(_panels, -(-outputs // ROWS_PER_TASK), work, *whole)
            return
    if done < outputs:
        part = np.empty((tokens, outputs - done), np.float32)
        last = (weight[done * inputs :], False, bias[done:], part)
        run(_panels, 1, 0, current_path(), x, *last)
        y[:, done:] = part


@jit
def _tiled(*arguments: Any) -> None:
    _tiled_tasks(*arguments)


@jit_tasks
def _tiled_tasks(
    planes: Any, weight: Any, bias: Any, y: Any, nan: Any, start: int, stop: int
) -> None:
    """Columns of y (T, N) for the rows of tasks ``start`` … ``stop`` − 1, some tokens at a time.

    Their split activations stay in the second-level cache while the weights pass by. ``nan`` is
    set for tasks that have a NaN among their results.
    """
    tokens, outputs = y.shape
    inputs = weight.size // outputs
    steps = inputs // _tiles.STEP
    y_flat = y.reshape(-1)
    some = max(1, TILED_BYTES // (64 * _tiles.PLANES * inputs)) * 32
    biases, sums = np.zeros(TILED_ROWS, np.float32), np.empty(_tiles.SUMS, np.float32)
    _tiles.configure()
    for t in range(0, tokens, some):
        for first in range(start * TILED_ROWS, stop * TILED_ROWS, TILED_ROWS):
            if bias.size:
                for r in range(TILED_ROWS):
                    biases[r] = widen(bias[first + r])
            for m in range(t, min(t + some, tokens), 32):
                _tiles.product(
                    weight, first * inputs, planes, m // _tiles.ROWS, steps, min(32, tokens - m),
                    biases, sums, y_flat, m * outputs + first, outputs,
                )  # fmt: skip
                for token in range(m, min(m + 32, tokens)):
                    if np.isnan(_sum(y_flat, token * outputs + first, TILED_ROWS)):
                        nan[first // TILED_ROWS] = True
    _tiles.release()


@jit_dot
def _sum(x: Any, at: int, n: int) -> Any:
    total = np.float32(0.0)
    for value in x[at : at + n]:
        total += value
    return total


@jit
def rows(path: Any, x: Any, weight: Any, bias: Any, y: Any, tasks: int, team: Any) -> None:
    """One token: y (N,) = flat ``weight`` (N, M) times x (M,), plus ``bias`` ((N,) or empty)."""
    none = (weight[:0], bias[:0], y[:0])
    row_tasks(path, x, weight, bias, y, *none, *none, tasks, team)


@jit_tasks
def row_tasks(
    path: Any,
    x: Any,
    weight: Any,
    bias: Any,
    y: Any,
    weight_2: Any,
    bias_2: Any,
    y_2: Any,
    weight_3: Any,
    bias_3: Any,
    y_3: Any,
    start: int,
    stop: int,
) -> None:
    """One token, up to three matrices of which rows are numbered through: those of some tasks.

    So threads start once for queries, keys and values.
    """
    first, last = start * ROWS_PER_TASK, stop * ROWS_PER_TASK
    some_rows(path, x, weight, bias, y, first, last)
    some_rows(path, x, weight_2, bias_2, y_2, first - y.size, last - y.size)
    before = y.size + y_2.size
    some_rows(path, x, weight_3, bias_3, y_3, first - before, last - before)


@jit_inner
def some_rows(path: Any, x: Any, weight: Any, bias: Any, y: Any, first: int, last: int) -> None:
    """y[n] of one matrix for ``first`` ≤ n < ``last``, where there are such rows."""
    inputs = x.size
    for n in range(max(first, 0), min(last, y.size)):
        total = dot(path, weight, n * inputs, x, 0, inputs)
        y[n] = total + widen(bias[n]) if bias.size else total


@jit
def _panels(*arguments: Any) -> None:
    _panels_tasks(*arguments)


@jit_tasks
def _panels_tasks(
    path: Any, x: Any, weight: Any, by_column: bool, bias: Any, y: Any, start: int, stop: int
) -> None:
    """Several tokens: columns of y (T, N) for the rows of tasks ``start`` … ``stop`` − 1.

    The inner index is cut too: some columns of x stay in the second-level cache while all panels
    pass by, and a panel of that depth stays in the first.
    """
    (tokens, inputs), outputs = x.shape, y.shape[1]
    width = panel_width(path)
    panel = np.empty(DEPTH * width, np.float32)  # [DEPTH, L]
    edge = np.empty(TOKENS * width, np.float32)  # [T, L], where a panel overhangs y
    x_flat, y_flat = x.reshape(-1), y.reshape(-1)
    begin, end = start * ROWS_PER_TASK, min(stop * ROWS_PER_TASK, outputs)
    for t in range(tokens):
        for n in range(begin, end):
            y[t, n] = widen(bias[n]) if bias.size else np.float32(0.0)
    for t in range(0, tokens, TOKENS):
        count = min(TOKENS, tokens - t)
        for k in range(0, inputs, DEPTH):
            depth = min(DEPTH, inputs - k)
            for first in range(begin, end, width):
                rows = min(width, end - first)
                if by_column:
                    _pack_columns(weight, first, k, outputs, rows, depth, width, panel)
                else:
                    pack(
                        path, weight, first * inputs + k, inputs, rows, depth, width * inputs, panel
                    )
                of, to = t * inputs + k, t * outputs + first
                if rows == width:
                    tile(
                        path, count, x_flat, of, inputs, panel, 0, width, depth, 0,
                        y_flat, to, outputs, True,
                    )  # fmt: skip
                    continue
                tile(
                    path, count, x_flat, of, inputs, panel, 0, width, depth, 0,
                    edge, 0, width, False,
                )  # fmt: skip
                for m in range(count):
                    for l in range(rows):
                        y[t + m, first + l] += edge[m * width + l]


@jit_inner
def _pack_columns(
    weight: Any, first: int, k: int, outputs: int, rows: int, depth: int, width: int, panel: Any
) -> None:
    """panel[i, l] = weight[k + i, first + l] of a matrix stored column by column, (M, N) flat."""
    for i in range(depth):
        for l in range(width):
            panel[i * width + l] = widen(weight[(k + i) * outputs + first + min(l, rows - 1)])
