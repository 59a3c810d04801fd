"""The register tile: products of a packed panel with some rows of activations.

A **panel** holds some rows of a matrix side by side, its inner index outermost: ``panel[k, l]`` is
column k of row l, so that one vector instruction multiplies the same k of all rows. Its width L is
``panel_width(path)`` rows: 32 or 16.

==========  ========================================================================================
leaf        computes
==========  ========================================================================================
``pack``    a panel from rows that are stored one after the other: a transposition by shuffles
``tile``    out[m, l] = Σ_k x[m, k] · panel[k, l] for some m: each load serves m or L products
``across``  out[m, l] = Σ_k x[k, m] · panel[k, l]: the same with x stored the other way
==========  ========================================================================================

They are written as vectors of 16 lanes without an instruction of any one CPU: LLVM splits them
into what there is, NEON's four lanes too. Paths differ only in how many sums its registers
hold. The Python functions are what runs under ``NUMBA_DISABLE_JIT=1`` and ``NUMBA_BOUNDSCHECK=1``.

Accumulators are float32, one a result, in order of k; callers cut k into pieces. Sums of n products
stay within n · 2⁻²⁴ of Σ |w·x|, the bound of any float32 sum; at the released sizes the relative L2
error is below 1e-6 on Gaussian activations and on those with one element 1000 times the rest.

Why not loops that LLVM vectorises (docs/performance.md): 4 x 4 dot products at a time give 85 to 95
GFLOP/s where this gives 105 to 115, and as long vectors of sums in memory 46 (AMD Zen 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.isa import name_of
from gptoss_ref.kernels.runtime.jit import LEAF
from gptoss_ref.kernels.runtime.llvm_ir import f32, i16, i32, index
from gptoss_ref.kernels.runtime.scalar import widen

LANES = 16
WIDEST = 32
"""The largest L of all paths."""

_SHAPES: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "amx": (32, (12, 8, 4, 1)),
    "avx512": (32, (12, 8, 4, 1)),
    "avx2": (16, (6, 4, 2, 1)),
    "plain": (16, (6, 4, 2, 1)),
}
"""Of each path: L, and rows of x that ``tile`` takes at once, so that the sums fill the registers:
24 of 32 of 64 bytes, 12 of 16 of 32 bytes, on ARM 24 of 32 of 16 bytes."""


def _shape(path: Any) -> tuple[int, tuple[int, int, int, int]]:
    return _SHAPES[name_of(path)]


def panel_width(path: Any) -> int:
    """Rows of a panel, L."""
    return LANES


def pack(
    path: Any, w: Any, at: int, stride: int, rows: int, depth: int, ahead: int, panel: Any
) -> None:
    """panel[k, l] = w[at + l · stride + k] for l < L; rows from ``rows`` on repeat the last.

    The cache lines ``ahead`` elements further are asked for, into the second cache: keys lie at
    powers of two from one another, and in the first would drive each other out.
    """
    width = 16
    for l in range(width):
        start = at + min(l, rows - 1) * stride
        for k in range(depth):
            panel[k * width + l] = widen(w[start + k])


def tile(
    path: Any, count: int, x: Any, x_at: int, x_stride: int, panel: Any, panel_at: int,
    panel_stride: int, depth: int, ahead: int, out: Any, out_at: int, out_stride: int, add: bool
) -> None:  # fmt: skip
    """out[m, l] = Σ_k x[m, k] · panel[k, l] for m < count, l < L; ``add``: onto what is there.

    The panel's cache lines ``ahead`` elements further are asked for, if that is not zero.
    What is there is added last: a long sum cut into pieces rounds less than one in sequence. All
    arrays are flat; ``*_at`` is where the first element lies, ``*_stride`` the distance of rows.
    """
    width = 16
    sums = np.empty(width, np.float32)
    for m in range(count):
        to, of = out_at + m * out_stride, x_at + m * x_stride
        for l in range(width):
            sums[l] = np.float32(0.0)
        for k in range(depth):
            factor, row = x[of + k], panel_at + k * panel_stride
            for l in range(width):
                sums[l] += factor * panel[row + l]
        for l in range(width):
            out[to + l] = out[to + l] + sums[l] if add else sums[l]


def across(
    path: Any, count: int, x: Any, x_at: int, x_stride: int, panel: Any, panel_at: int,
    panel_stride: int, depth: int, out: Any, out_at: int, out_stride: int, add: bool
) -> None:  # fmt: skip
    """out[m, l] = Σ_k x[k, m] · panel[k, l] for m < count, l < L; ``add``: onto what is there."""
    width = 16
    sums = np.empty(width, np.float32)
    for m in range(count):
        to = out_at + m * out_stride
        for l in range(width):
            sums[l] = np.float32(0.0)
        for k in range(depth):
            factor, row = x[x_at + k * x_stride + m], panel_at + k * panel_stride
            for l in range(width):
                sums[l] += factor * panel[row + l]
        for l in range(width):
            out[to + l] = out[to + l] + sums[l] if add else sums[l]


@overload(panel_width, **LEAF)
def _panel_width(path: Any) -> Any:
    width = 16 if config.BOUNDSCHECK else _shape(path)[0]
    return lambda path: width


@overload(pack, **LEAF)
def _pack(path: Any, *others: Any) -> Any:
    if config.BOUNDSCHECK:
        return pack
    width = _shape(path)[0]

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
    if config.BOUNDSCHECK:
        return tile
    width, four = _shape(path)
    most, many, some, _ = four
    tile_most, tile_many, tile_some, tile_one = (_tile_of(m, width // LANES) for m in four)

    # fmt: off
    def vectors(path, count, x, x_at, x_stride, panel, panel_at,  # type: ignore[no-untyped-def]
                panel_stride, depth, ahead, out, out_at, out_stride, add):
        m = 0
        while m < count:
            of, to, rest = x_at + m * x_stride, out_at + m * out_stride, count - m
            if rest >= most:
                tile_most(x, of, x_stride, panel, panel_at, panel_stride, depth, ahead,
                          out, to, out_stride, add)
                m += most
            elif rest >= many:
                tile_many(x, of, x_stride, panel, panel_at, panel_stride, depth, ahead,
                          out, to, out_stride, add)
                m += many
            elif rest >= some:
                tile_some(x, of, x_stride, panel, panel_at, panel_stride, depth, ahead,
                          out, to, out_stride, add)
                m += some
            else:
                tile_one(x, of, x_stride, panel, panel_at, panel_stride, depth, ahead,
                         out, to, out_stride, add)
                m += 1
    # fmt: on

    return vectors


@overload(across, **LEAF)
def _across(path: Any, *others: Any) -> Any:
    if config.BOUNDSCHECK:
        return across
    width, four = _shape(path)
    most, many, some, _ = four
    tile_most, tile_many, tile_some, tile_one = (_tile_of(m, width // LANES, True) for m in four)

    # fmt: off
    def vectors(path, count, x, x_at, x_stride, panel, panel_at,  # type: ignore[no-untyped-def]
                panel_stride, depth, out, out_at, out_stride, add):
        m = 0
        while m < count:
            of, to, rest = x_at + m, out_at + m * out_stride, count - m
            if rest >= most:
                tile_most(x, of, x_stride, panel, panel_at, panel_stride, depth, 0,
                          out, to, out_stride, add)
                m += most
            elif rest >= many:
                tile_many(x, of, x_stride, panel, panel_at, panel_stride, depth, 0,
                          out, to, out_stride, add)
                m += many
            elif rest >= some:
                tile_some(x, of, x_stride, panel, panel_at, panel_stride, depth, 0,
                          out, to, out_stride, add)
                m += some
            else:
                tile_one(x, of, x_stride, panel, panel_at, panel_stride, depth, 0,
                         out, to, out_stride, add)
                m += 1
    # fmt: on

    return vectors


def _widened(builder: Any, raw: Any) -> Any:
    """A vector of stored weights as floats."""
    if raw.type.element == f32:
        return raw
    lanes = raw.type.count
    wide = builder.zext(raw, vec.vector(i32, lanes))
    return builder.bitcast(builder.shl(wide, vec.constant(i32, 16, lanes)), vec.vector(f32, lanes))


@intrinsic
def _vector_pack(
    typing_context: Any, w: Any, at: Any, stride: Any, last: Any, squares: Any, ahead: Any,
    panel: Any, first: Any, width: Any
) -> Any:  # fmt: skip
    """16 rows of ``w`` from ``at`` into columns ``first`` … of a panel, 16 x 16 at a time."""
    element = i16 if w.dtype is types.uint16 else f32

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source = vec.data(context, builder, w, args[0])
        target = vec.data(context, builder, panel, args[6])
        _, at_, stride_, last_, squares_, ahead_, _, first_, width_ = args
        rows = []
        for l in range(LANES):
            row = builder.select(builder.icmp_signed("<", index(l), last_), index(l), last_)
            rows.append(builder.gep(source, [builder.add(at_, builder.mul(row, stride_))]))
        with cgutils.for_range(builder, squares_) as loop:
            k = builder.mul(loop.index, index(LANES))
            for row in rows:
                vec.prefetch(builder, row, builder.add(k, ahead_), 0, keep=2)
            loaded = [vec.load(builder, row, k, vec.vector(element, LANES)) for row in rows]
            for i, column in enumerate(vec.transposed(builder, loaded)):
                to = builder.add(builder.mul(builder.add(k, index(i)), width_), first_)
                vec.store(builder, _widened(builder, column), target, to)
        return context.get_dummy_value()

    n = types.intp
    return types.void(w, n, n, n, n, n, panel, n, n), generate


def _tile_of(tokens: int, vectors: int, across: bool = False) -> Any:
    """The panel product of ``tokens`` rows of x with a panel of ``vectors`` · 16 columns.

    ``across``: of columns of x.
    """

    @intrinsic
    def tile_of(
        typing_context: Any, x: Any, x_at: Any, x_stride: Any, panel: Any, panel_at: Any,
        panel_stride: Any, depth: Any, ahead: Any, out: Any, out_at: Any, out_stride: Any, add: Any
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, x_at_, x_stride_, _, panel_at_, panel_stride_, depth_, ahead_ = args[:8]
            _, to, out_stride_, add_ = args[8:]
            x_ = vec.data(context, builder, x, args[0])
            panel_ = builder.gep(vec.data(context, builder, panel, args[3]), [panel_at_])
            out_ = vec.data(context, builder, out, args[8])
            type_ = vec.vector(f32, LANES)
            sums = vec.Accumulators(builder, tokens, vectors, type_)
            x_row, x_column = (index(1), x_stride_) if across else (x_stride_, index(1))
            rows = [
                builder.gep(x_, [builder.add(x_at_, builder.mul(x_row, index(m)))])
                for m in range(tokens)
            ]
            places = [
                [
                    builder.add(
                        builder.add(to, builder.mul(out_stride_, index(m))), index(v * LANES)
                    )
                    for v in range(vectors)
                ]
                for m in range(tokens)
            ]
            with cgutils.for_range(builder, depth_) as loop:
                at = builder.mul(loop.index, panel_stride_)
                places_ = [builder.add(at, index(v * LANES)) for v in range(vectors)]
                columns = [vec.load(builder, panel_, place, type_) for place in places_]
                for place in places_:
                    vec.prefetch(builder, panel_, builder.add(place, ahead_), 0, keep=2)
                k = builder.mul(loop.index, x_column)
                for m in range(tokens):
                    factor = vec.splat(builder, vec.load(builder, rows[m], k, f32), LANES)
                    for v in range(vectors):
                        sums[m, v] = vec.multiply_add(builder, factor, columns[v], sums[m, v])
            with builder.if_then(builder.icmp_unsigned("!=", add_, add_.type(0))):
                for m in range(tokens):
                    for v in range(vectors):
                        before = vec.load(builder, out_, places[m][v], type_)
                        sums[m, v] = builder.fadd(before, sums[m, v])
            for m in range(tokens):
                for v in range(vectors):
                    vec.store(builder, sums[m, v], out_, places[m][v])
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, panel, n, n, n, n, out, n, n, types.boolean), generate

    return tile_of
