"""Matrix products of the backward pass on register tiles, for the rows of one expert or one task.

A panel of 32 columns is copied from a weight (of MXFP4, one block is decoded) and then multiplied
by all rows of activations, so that each weight is decoded once for all of them:

==============  ====================================================================================
part            computes, for rows m
==============  ====================================================================================
``by_rows``     out[m, j] = Σ_k x[m, k] W[j, k]: the product of the forward pass
``by_columns``  out[m, k] = Σ_j x[m, j] W[j, k]: the gradient of the layer's input
``outer``       out[j, k] = Σ_m x[m, j] z[m, k]: the gradient of the weight
==============  ====================================================================================

All arrays are flat float32; weights are flat bfloat16, float32 or ``Stored`` MXFP4. The results of
the first two have rows of a multiple of 32 values; values beyond the last column have no meaning.
Accumulators: float32, in pieces of 256; relative L2 error below 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from gptoss_ref.kernels.matmul.mxfp4_block import (
    BLOCK,
    Stored,
    decode_row,
    decode_values,
    half_scale,
)
from gptoss_ref.kernels.matmul.register_tile import pack, panel_width, tile
from gptoss_ref.kernels.runtime.buffers import copy, fill, floats
from gptoss_ref.kernels.runtime.jit import dispatched, jit_inner

DEPTH = 256
"""Inner length of a panel."""
WIDTH = 32
"""Columns of a panel: a block of MXFP4."""
NEAR = 16 * WIDTH
"""Columns of a result that are processed together, so that they stay in L2."""
SOME = 768
"""Rows of a weight's gradient that stay in L2 while all panels are processed."""

_MXFP4 = (Stored, types.NamedTuple)  # the class, and in kernels its type


@jit_inner
def padded(n: int) -> int:
    """Return ``n`` rounded up to a multiple of the columns of a panel."""
    return (n + WIDTH - 1) // WIDTH * WIDTH


@dispatched
def fetch(weight: Any, row: int, inputs: int, column: int, out: Any) -> Any:
    """Copy columns ``column`` … of a row of a weight (N, M) as floats, then zeros."""
    return _fetch_mxfp4 if isinstance(weight, _MXFP4) else _fetch_floats


@jit_inner
def _fetch_mxfp4(weight: Stored, row: int, inputs: int, column: int, out: Any) -> None:
    decode_row(weight, (row * inputs + column) // BLOCK, out.size // BLOCK, out)


@jit_inner
def _fetch_floats(weight: Any, row: int, inputs: int, column: int, out: Any) -> None:
    at, count = row * inputs + column, min(out.size, inputs - column)
    copy(weight[at : at + count], out[:count])
    fill(out[count:], np.float32(0.0))


@dispatched
def columns(weight: Any, first: int, depth: int, inputs: int, column: int, panel: Any) -> Any:
    """Copy 32 columns of ``depth`` rows, from ``column`` and ``first`` on, as a panel."""
    return _columns_mxfp4 if isinstance(weight, _MXFP4) else _columns_floats


@jit_inner
def _columns_mxfp4(
    weight: Stored, first: int, depth: int, inputs: int, column: int, panel: Any
) -> None:
    groups, g = inputs // BLOCK, column // BLOCK
    for r in range(depth):
        at = (first + r) * groups + g
        half = half_scale(weight.scales[at], weight.scale_255)
        decode_values(
            weight.blocks[at * 16 : at * 16 + 16], half, panel[r * BLOCK : (r + 1) * BLOCK]
        )


@jit_inner
def _columns_floats(
    weight: Any, first: int, depth: int, inputs: int, column: int, panel: Any
) -> None:
    count = min(WIDTH, inputs - column)
    if count == WIDTH:
        for r in range(depth):
            at = (first + r) * inputs + column
            copy(weight[at : at + WIDTH], panel[r * WIDTH : (r + 1) * WIDTH])
        return
    for r in range(depth):
        fetch(weight, first + r, inputs, column, panel[r * WIDTH : (r + 1) * WIDTH])


@jit_inner
def room_for_panels() -> Any:
    """Allocate a panel, its source rows, and the part of a panel that extends beyond a result."""
    return floats(DEPTH * WIDTH), floats(DEPTH * SOME), floats(SOME * WIDTH)


@jit_inner
def by_rows(
    path: Any, x: Any, x_at: int, x_stride: int, count: int, weight: Any, first: int, outputs: int,
    inputs: int, out: Any, out_stride: int, room: Any
) -> None:  # fmt: skip
    """out[m, j] = Σ_k x[m, k] W[first + j, k] for m < ``count``, j < ``outputs``."""
    panel, decoded, _ = room
    width = panel_width(path)
    for block in range(0, outputs, NEAR):
        for k in range(0, inputs, DEPTH):
            depth = min(DEPTH, inputs - k)
            for j in range(block, min(block + NEAR, outputs), width):
                rows = min(width, outputs - j)
                for r in range(rows):
                    fetch(weight, first + j + r, inputs, k, decoded[r * depth : (r + 1) * depth])
                pack(path, decoded, 0, depth, rows, depth, 0, panel)
                tile(
                    path, count, x, x_at + k, x_stride, 1, panel, 0, width, depth, out, j,
                    out_stride, k > 0,
                )  # fmt: skip


@jit_inner
def by_columns(
    path: Any, x: Any, x_at: int, x_stride: int, count: int, weight: Any, first: int, outputs: int,
    inputs: int, out: Any, out_stride: int, room: Any
) -> None:  # fmt: skip
    """out[m, k] = Σ_j x[m, j] W[first + j, k] for m < ``count``, k < ``inputs``."""
    panel = room[0]
    width = panel_width(path)
    for block in range(0, inputs, NEAR):
        for j in range(0, outputs, DEPTH):
            depth = min(DEPTH, outputs - j)
            for k in range(block, min(block + NEAR, inputs), WIDTH):
                columns(weight, first + j, depth, inputs, k, panel)
                for l in range(0, WIDTH, width):
                    tile(
                        path, count, x, x_at + j, x_stride, 1, panel, l, WIDTH, depth, out, k + l,
                        out_stride, j > 0,
                    )  # fmt: skip


@jit_inner
def outer(
    path: Any, x: Any, x_at: int, x_stride: int, z: Any, z_at: int, z_stride: int, count: int,
    rows: int, columns: int, out: Any, out_at: int, out_stride: int, add: bool, room: Any
) -> None:  # fmt: skip
    """out[j, k] = Σ_m x[m, j] z[m, k] for m < ``count`` ≤ 256; with ``add``, added to ``out``.

    It has j < ``rows`` and k < ``columns``; nothing else is written.
    """
    panel, near, edge = room
    width = panel_width(path)
    for j in range(0, rows, SOME):
        some = min(SOME, rows - j)
        for m in range(count):
            at = x_at + m * x_stride + j
            copy(x[at : at + some], near[m * SOME : m * SOME + some])
        for k in range(0, columns, WIDTH):
            wide = min(WIDTH, columns - k)
            for m in range(count):
                at, row = z_at + m * z_stride + k, panel[m * WIDTH : (m + 1) * WIDTH]
                copy(z[at : at + wide], row[:wide])
                fill(row[wide:], np.float32(0.0))
            for l in range(0, wide, width):
                to = out_at + j * out_stride + k + l
                if l + width <= wide:
                    tile(
                        path, some, near, 0, 1, SOME, panel, l, WIDTH, count, out, to,
                        out_stride, add,
                    )  # fmt: skip
                    continue
                tile(path, some, near, 0, 1, SOME, panel, l, WIDTH, count, edge, 0, width, False)
                for r in range(some):
                    found = edge[r * width : r * width + wide - l]
                    _put(found, out[to + r * out_stride : to + r * out_stride + wide - l], add)


@jit_inner
def _put(found: Any, out: Any, add: bool) -> None:
    for i in range(out.size):
        out[i] = out[i] + found[i] if add else found[i]
