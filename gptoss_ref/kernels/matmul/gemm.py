"""Products of bfloat16 or float32 rows with several tokens.

The columns are processed 256 at a time: a panel of rows is packed, stays in L1, and is multiplied
by all tokens with register tiles (``register_tile.py``). These columns of at most 768 tokens stay
in L2 while all panels are processed; at most 768 tokens and 64 rows are a task. On AMX, 32 rows are
multiplied as they are stored by all tokens, split into bfloat16 planes (``amx.py``).

Accumulators: float32, in pieces of 256. Error: that of a float32 sum, relative L2 below 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.matmul import amx
from gptoss_ref.kernels.matmul.gemv import dot, gemv_rows
from gptoss_ref.kernels.matmul.register_tile import pack, panel_width, tile
from gptoss_ref.kernels.runtime.buffers import add_all, copy, copy_bias, fill, floats
from gptoss_ref.kernels.runtime.isa import current_path, path_name
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.scalar import widen
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import Array

ROWS_PER_TASK = 64
DEPTH = 256
"""Inner length of a panel: 32 rows of this length fill L1."""
TOKENS = 768
"""Tokens multiplied together: with that inner length they fit L2."""
AMX_ROWS = 32
"""Rows of a task on AMX."""
AMX_BYTES = 1 << 20
"""Bytes of split activations multiplied together, so that they fit L2."""


def multiply_stored(x: Array, stored: Array, by_column: bool, bias: Array, y: Array) -> None:
    """Compute y (T, N) = x (T, M) times a weight (N, M) transposed, plus ``bias`` ((N,) or empty).

    Args:
        stored: contiguous bfloat16 or float32, read-only; (M, N) if ``by_column``.
    """
    (tokens, inputs), outputs = x.shape, y.shape[1]
    flat, tasks, work = stored.reshape(-1), -(-outputs // ROWS_PER_TASK), x.size * outputs
    if tokens == 1 and not by_column:
        run(gemv, tasks, work, x[0], flat, bias, y[0])
        return
    planes = path_name() == "amx" and stored.dtype == np.uint16 and inputs % amx.STEP == 0 < inputs
    if planes and not by_column:
        nan = np.zeros(1, np.bool_)
        run(gemm_amx, -(-outputs // AMX_ROWS), work, x, flat, bias, y, nan)
        if not nan[0]:  # else perhaps ∞ − ∞ from an infinite weight: compute without planes
            return
    run(gemm, tasks * -(-tokens // TOKENS), work, current_path(), x, flat, by_column, bias, y)


@jit
def gemv(x: Any, weight: Any, bias: Any, y: Any, tasks: int, team: Any) -> None:
    """One token: y (N,) = flat ``weight`` (N, M) times x (M,), plus ``bias`` ((N,) or empty)."""
    aligned = floats(x.size)  # at 32 bytes; NumPy's arrays may be at 16: a quarter slower
    copy(x, aligned)
    _gemv_tasks(aligned, weight, bias, y, tasks, team)


@jit_tasks
def _gemv_tasks(x: Any, weight: Any, bias: Any, y: Any, start: int, stop: int) -> None:
    gemv_rows(x, weight, bias, y, start * ROWS_PER_TASK, stop * ROWS_PER_TASK)


@jit
def gemm(
    path: Any, x: Any, weight: Any, by_column: bool, bias: Any, y: Any, tasks: int, team: Any
) -> None:
    """Several tokens: y (T, N) = x (T, M) times the flat weight, plus ``bias``."""
    _gemm_tasks(path, x, weight, by_column, bias, y, tasks, team)


@jit_tasks
def _gemm_tasks(
    path: Any, x: Any, weight: Any, by_column: bool, bias: Any, y: Any, start: int, stop: int
) -> None:
    """Compute tasks ``start`` … ``stop`` − 1, each some tokens and 64 columns of y (T, N)."""
    (tokens, inputs), outputs = x.shape, y.shape[1]
    columns = (outputs + ROWS_PER_TASK - 1) // ROWS_PER_TASK
    width = panel_width(path)
    panel = floats(DEPTH * width)  # [DEPTH, L]
    edge = floats(TOKENS * width)  # [T, L], for a panel that extends beyond y
    x_flat, y_flat = x.reshape(-1), y.reshape(-1)
    for chunk in range(start // columns, (stop + columns - 1) // columns):
        begin = max(start - chunk * columns, 0) * ROWS_PER_TASK
        end = min(min(stop - chunk * columns, columns) * ROWS_PER_TASK, outputs)
        t = chunk * TOKENS
        count = min(TOKENS, tokens - t)
        for m in range(t, t + count):
            copy_bias(bias, begin, y_flat[m * outputs + begin : m * outputs + end])
        for k in range(0, inputs, DEPTH):
            depth = min(DEPTH, inputs - k)
            for first in range(begin, end, width):
                rows = min(width, end - first)
                if by_column:
                    _pack_columns(weight, first, k, outputs, rows, depth, width, panel)
                else:
                    at = first * inputs + k
                    pack(path, weight, at, inputs, rows, depth, width * inputs, panel)
                whole, of, to = rows == width, t * inputs + k, t * outputs + first
                out, at, stride = (y_flat, to, outputs) if whole else (edge, 0, width)
                tile(
                    path, count, x_flat, of, inputs, 1, panel, 0, width, depth, out, at, stride,
                    whole,
                )  # fmt: skip
                for m in range(0 if whole else count):
                    row = y_flat[to + m * outputs : to + m * outputs + rows]
                    add_all(edge[m * width : m * width + rows], row)


@jit_inner
def _pack_columns(
    weight: Any, first: int, k: int, outputs: int, rows: int, depth: int, width: int, panel: Any
) -> None:
    """panel[i, l] = weight[k + i, first + l] of a matrix stored column by column, (M, N) flat."""
    for i in range(depth):
        at = (k + i) * outputs + first
        row = panel[i * width : (i + 1) * width]
        copy(weight[at : at + rows], row[:rows])
        fill(row[rows:], np.float32(0.0))


@jit
def gemm_amx(x: Any, weight: Any, bias: Any, y: Any, nan: Any, tasks: int, team: Any) -> None:
    """Like :func:`gemm`, on AMX, for a bfloat16 ``weight`` stored row by row.

    ``nan`` is set if a result is NaN.
    """
    tokens, inputs = x.shape
    tiles = (tokens + amx.ROWS - 1) // amx.ROWS
    planes = amx.planes_of(tiles, inputs)
    amx.split_rows(x.reshape(-1), np.arange(tokens), planes, tiles, team)
    _gemm_amx_tasks(x, planes, weight, bias, y, nan, tasks, team)


@jit_tasks
def _gemm_amx_tasks(
    x: Any, planes: Any, weight: Any, bias: Any, y: Any, nan: Any, start: int, stop: int
) -> None:
    """Compute the columns of y (T, N) of tasks ``start`` … ``stop`` − 1, for some tokens at a time.

    The split activations of these tokens stay in L2 while the weights are read. Rows that do not
    fill a group of 32 are computed as dot products.
    """
    tokens, outputs = y.shape
    inputs = x.shape[1]
    x_flat, y_flat = x.reshape(-1), y.reshape(-1)
    some = max(1, AMX_BYTES // (64 * amx.PLANES * inputs)) * 32
    biases, sums = floats(AMX_ROWS), floats(amx.SUMS)
    fill(biases, np.float32(0.0))
    whole = min(stop, outputs // AMX_ROWS)
    amx.configure()
    for t in range(0, tokens, some):
        for first in range(start * AMX_ROWS, whole * AMX_ROWS, AMX_ROWS):
            if bias.size:
                copy(bias[first : first + AMX_ROWS], biases)
            for m in range(t, min(t + some, tokens), 32):
                count = min(32, tokens - m)
                amx.product(
                    weight, first * inputs, planes, m // amx.ROWS, inputs // amx.STEP, count,
                    biases, sums, y_flat, m * outputs + first, outputs,
                )  # fmt: skip
                for token in range(m, m + count):
                    to = token * outputs + first
                    if not _all_numbers(y_flat[to : to + AMX_ROWS]):
                        nan[0] = True
    amx.release()
    for n in range(max(start, whole) * AMX_ROWS, min(stop * AMX_ROWS, outputs)):
        row = weight[n * inputs : (n + 1) * inputs]
        for t in range(tokens):
            total = dot(row, x_flat[t * inputs : (t + 1) * inputs])
            y_flat[t * outputs + n] = total + widen(bias[n]) if bias.size else total


@jit_inner
def _all_numbers(x: Any) -> bool:
    """Return whether no value is NaN."""
    nans = 0
    for value in x:
        nans += int(value != value)
    return nans == 0
