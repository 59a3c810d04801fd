"""The register tile: products of a packed panel with some rows of activations.

A **panel** holds some rows of a matrix side by side, inner index first: ``panel[k, l]`` is column k
of row l, so that one vector instruction multiplies the same k of all rows. Its width L is
``panel_width(path)`` rows: 32 or 16.

==========  ========================================================================================
leaf        computes
==========  ========================================================================================
``pack``    a panel from rows that are stored one after the other: a transposition by shuffles
``tile``    out[m, l] = Σ_k x[m, k] · panel[k, l] for some m: each load serves m or L products
``tile_8``  the same with a panel of 8 rows on every path: the query heads that share a key
``tile_v``  the same for 8 rows of x, with a panel of ``values_width(path)`` rows: 16 or 8 channels
==========  ========================================================================================

The leaves are written as vectors of 16 (8) lanes without instructions of a particular CPU: LLVM
splits them into the vectors of the CPU, including the four lanes of NEON. Paths differ only in the
number of sums that fit the registers. The Python functions run under ``NUMBA_DISABLE_JIT=1`` and
``NUMBA_BOUNDSCHECK=1``.

Accumulators are float32, one per result, in the order of k; callers split k into pieces. The error
of a sum of n products is within n · 2⁻²⁴ of Σ |w·x|, the bound of any float32 sum; at the released
sizes the relative L2 error is below 1e-6 on Gaussian activations and on those with one element 1000
times the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config
from numba.extending import overload

from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.isa import name_of
from gptoss_ref.kernels.runtime.jit import LEAF
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, index
from gptoss_ref.kernels.runtime.scalar import widen

LANES = 16
NARROW = 8
"""Rows of the panels of :func:`tile_8`."""
WIDEST = 32
"""The largest L of all paths."""

_SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "amx": (32, (12, 8, 4, 1)),
    "avx512": (32, (12, 8, 4, 1)),
    "avx2": (16, (6, 4, 2, 1)),
    "plain": (16, (6, 4, 2, 1)),
}
"""For each path: L, and the numbers of rows of x that ``tile`` can take at once. The sums fill the
registers: 24 of 32 registers of 64 bytes, 12 of 16 of 32 bytes, on ARM 24 of 32 of 16 bytes."""


def panel_width(path: Any) -> int:
    """Return the number of rows of a panel, L."""
    return LANES


def values_width(path: Any) -> int:
    """Return L of :func:`tile_v`: 16 channels are a cache line; 8 sums need 32 registers."""
    return NARROW


def pack(
    path: Any, w: Any, at: int, stride: int, rows: int, depth: int, ahead: int, panel: Any
) -> None:
    """panel[k, l] = w[at + l · stride + k] for l < L; rows from ``rows`` on repeat the last row.

    The cache lines ``ahead`` elements further on are prefetched into L2. Keys are powers of two
    apart, and would evict each other from L1.
    """
    for l in range(LANES):
        start = at + min(l, rows - 1) * stride
        for k in range(depth):
            panel[k * LANES + l] = widen(w[start + k])


def _in_python(width: int) -> Any:
    """Return :func:`tile` for panels of ``width``, by its definition."""

    # fmt: off
    def tile(path, count, x, x_at, x_stride, x_step, panel, panel_at,  # type: ignore[no-untyped-def]
             panel_stride, depth, out, out_at, out_stride, add):
        sums = np.empty(width, np.float32)
        for m in range(count):
            to, of = out_at + m * out_stride, x_at + m * x_stride
            for l in range(width):
                sums[l] = np.float32(0.0)
            for k in range(depth):
                factor, row = x[of + k * x_step], panel_at + k * panel_stride
                for l in range(width):
                    sums[l] += factor * panel[row + l]
            for l in range(width):
                out[to + l] = out[to + l] + sums[l] if add else sums[l]
    # fmt: on

    return tile


tile, tile_8, tile_v = _in_python(LANES), _in_python(NARROW), _in_python(NARROW)
"""out[m, l] = Σ_k x[m, k] · panel[k, l] for m < count, l < L; with ``add``, added to ``out``.

The old value of ``out`` is added last: a long sum in pieces has a smaller rounding error than a
sequential one. All arrays are flat; ``*_at`` is the index of the first element, ``*_stride`` the
distance between rows, ``x_step`` the distance between two k of a row.
"""


@overload(panel_width, **LEAF)
def _panel_width(path: Any) -> Any:
    width = LANES if config.BOUNDSCHECK else _SHAPES[name_of(path)][0]
    return lambda path: width


@overload(values_width, **LEAF)
def _values_width(path: Any) -> Any:
    width = NARROW if config.BOUNDSCHECK else _SHAPES[name_of(path)][0] // 2
    return lambda path: width


@overload(pack, **LEAF)
def _pack(path: Any, *others: Any) -> Any:
    if config.BOUNDSCHECK:
        return pack
    width = _SHAPES[name_of(path)][0]

    def vectors(path, w, at, stride, rows, depth, ahead, panel):  # type: ignore[no-untyped-def]
        squares = depth // LANES
        for first in range(0, width, LANES):
            row = min(first, rows - 1)
            last = max(0, min(LANES, rows - first) - 1)
            _vector_pack(w, at + row * stride, stride, last, squares, ahead, panel, first, width)
        for l in range(width):
            start = at + min(l, rows - 1) * stride
            for k in range(squares * LANES, depth):
                panel[k * width + l] = widen(w[start + k])

    return vectors


@overload(tile, **LEAF)
def _tile(path: Any, *others: Any) -> Any:
    width, rows = _SHAPES[name_of(path)]
    return tile if config.BOUNDSCHECK else _tile_of(rows, width // LANES, LANES)


@overload(tile_8, **LEAF)
def _tile_8(path: Any, *others: Any) -> Any:
    return tile_8 if config.BOUNDSCHECK else _tile_of((12, 8, 4, 1), 1, NARROW)


@overload(tile_v, **LEAF)
def _tile_v(path: Any, *others: Any) -> Any:
    width = _SHAPES[name_of(path)][0] // 2
    return tile_v if config.BOUNDSCHECK else _tile_of((8, 4, 2, 1), 1, width)


@vec.instructions
def _vector_pack(
    builder: ir.IRBuilder, w: Value, at: Value, stride: Value, last: Value, squares: Value,
    ahead: Value, panel: Value, first: Value, width: Value
) -> None:  # fmt: skip
    """Pack 16 rows of ``w`` from ``at`` on into columns ``first`` … of a panel, in 16 x 16."""
    type_, rows = vec.vector(w.type.pointee, LANES), []
    for l in range(LANES):
        row = builder.select(builder.icmp_signed("<", index(l), last), index(l), last)
        rows.append(builder.gep(w, [builder.add(at, builder.mul(row, stride))]))
    with cgutils.for_range(builder, squares) as loop:
        k = builder.mul(loop.index, index(LANES))
        for row in rows:
            vec.prefetch(builder, row, builder.add(k, ahead), 0, keep=2)
        loaded = [vec.load(builder, row, k, type_) for row in rows]
        for i, column in enumerate(vec.transposed(builder, loaded)):
            to = builder.add(builder.mul(builder.add(k, index(i)), width), first)
            vec.store(builder, vec.widened(builder, column), panel, to)


def _tile_of(counts: tuple[int, ...], vectors: int, lanes: int) -> Any:
    """Return :func:`tile` for panels of ``vectors`` · ``lanes`` columns.

    It takes rows of x in steps of the largest of ``counts`` that fits; the last count is 1.
    """
    type_, columns = vec.vector(f32, lanes), [index(v * lanes) for v in range(vectors)]

    def emit(
        builder: ir.IRBuilder, count: Value, x: Value, x_at: Value, x_stride: Value, x_step: Value,
        panel: Value, panel_at: Value, panel_stride: Value, depth: Value, out: Value, out_at: Value,
        out_stride: Value, add: Value
    ) -> None:  # fmt: skip
        x, panel, out = (
            builder.gep(*each) for each in ((x, [x_at]), (panel, [panel_at]), (out, [out_at]))
        )
        first = index(0)
        for tokens in counts:
            grid = [(m, v) for m in range(tokens) for v in range(vectors)]
            end = builder.sub(count, builder.urem(builder.sub(count, first), index(tokens)))
            with cgutils.for_range_slice(builder, first, end, index(tokens)) as (start, _):
                rows, results = (
                    [
                        builder.gep(array, [builder.mul(stride, builder.add(start, index(m)))])
                        for m in range(tokens)
                    ]
                    for array, stride in ((x, x_stride), (out, out_stride))
                )
                sums = vec.Accumulators(builder, tokens, vectors, type_)
                with cgutils.for_range(builder, depth) as loop:
                    at = builder.gep(panel, [builder.mul(loop.index, panel_stride)])
                    loaded = [vec.load(builder, at, column, type_) for column in columns]
                    k = builder.mul(loop.index, x_step)
                    for m in range(tokens):
                        factor = vec.splat(builder, vec.load(builder, rows[m], k, f32), lanes)
                        for v in range(vectors):
                            sums[m, v] = vec.multiply_add(builder, factor, loaded[v], sums[m, v])
                with builder.if_then(builder.icmp_unsigned("!=", add, add.type(0))):
                    for m, v in grid:
                        before = vec.load(builder, results[m], columns[v], type_)
                        sums[m, v] = builder.fadd(before, sums[m, v])
                for m, v in grid:
                    vec.store(builder, sums[m, v], results[m], columns[v])
            first = end

    by_rows = vec.instructions(emit)

    # fmt: off
    def vectors_(path, count, x, x_at, x_stride, x_step,  # type: ignore[no-untyped-def]
                 panel, panel_at, panel_stride, depth, out, out_at, out_stride, add):
        by_rows(count, x, x_at, x_stride, x_step, panel, panel_at, panel_stride, depth, out, out_at,
                out_stride, add)
    # fmt: on

    return vectors_
