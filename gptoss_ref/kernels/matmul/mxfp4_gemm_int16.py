"""Products of MXFP4 rows with many activations, in 16-bit integers (AVX2, AVX-512).

Each block of 32 activations is rounded to int16 with one float32 factor, so that its largest
magnitude becomes 32639 (two signed bytes, for ``mxfp4_gemv_int8``). A **panel** is one block of 32
(AVX2: 16) rows side by side. A table look-up turns its nibbles into d, twice the E2M1 value, in the
high byte of an int16 (256 d, without sign extension). One instruction then multiplies and adds
pairs: twice as many products as a fused multiply-add on vectors of the same size.

Loop order: panels of rows; in a panel, blocks; in a block, activations, 8 (AVX2: 6) at a time; then
the pairs of a block. Accumulators: int32 in registers, exact for a block (at most
32 · 3072 · 32639, spread over several lanes, each below 2³⁰), and one float32 per result in memory,
to which one fused multiply-add adds a block.

Error: each activation has an error of at most 2⁻¹⁶ of the largest in its *block*, so the relative
L2 error is about 2e-5 on Gaussian activations, and below 1e-4 if one activation is 1000 times the
rest. It is fast because one decoded block serves all activations, with two products per lane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import overload

from gptoss_ref.kernels.matmul.mxfp4_block import (
    BLOCK,
    LARGEST_WHOLE,
    ROWS,
    Stored,
    largest_bits,
    out_of_range,
    redo_out_of_range,
    whole_number,
)
from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.buffers import falses, fill, floats
from gptoss_ref.kernels.runtime.isa import lanes_of
from gptoss_ref.kernels.runtime.jit import LEAF, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, i8, i16, i32, index
from gptoss_ref.kernels.runtime.scalar import bits_float

SPARE = 8
"""Number of entries after the list of activation rows, and of rows after their arrays, that can be
read.
"""

TOKENS = 128
"""Rows of activations that are multiplied by a panel before the next panel: their sums fit L1."""

AHEAD = 64
"""Distance in bytes of the prefetch in each row: the CPU itself cannot follow so many rows."""

LARGEST_SCALE = 215
"""Rows of weights with a larger scale byte might overflow a float32."""

_UNIT = np.float32(1 / (LARGEST_WHOLE * 1024))  # 1024 = 256 (high byte) · 2 (d) · 2 (scale)
_DOUBLED = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]


class Int16(NamedTuple):
    """R rows of activations in 16 bits: block g of all rows, then block g + 1 of all rows."""

    x: Any  # float32, flat, (R, M)
    out_of_range: Any  # bool (R,)
    q: Any  # int16, flat, (M/32, R + SPARE, 32)
    factors: Any  # float32, flat, (M/32, R + SPARE)


PREPARED = Int16


@jit_inner
def new(path: Any, method: Any, x: Any, rows: int, tiles: int) -> Int16:
    """Allocate the rounded activations."""
    blocks = (rows + SPARE) * (x.size // rows // BLOCK)
    return Int16(x, falses(rows), np.empty(blocks * BLOCK, np.int16), floats(blocks))


@jit_inner
def quantise(path: Any, prepared: Int16, row: int, g: int, groups: int) -> None:
    """Round block ``g`` of a row to int16."""
    at = (row * groups + g) * BLOCK
    block = prepared.x[at : at + BLOCK]
    largest = largest_bits(block)
    if out_of_range(largest):
        prepared.out_of_range[row] = True
        largest = np.int32(0)
    to = g * (prepared.out_of_range.size + SPARE) + row
    rounded = prepared.q[to * BLOCK : (to + 1) * BLOCK]
    magnitude = bits_float(largest)
    up = LARGEST_WHOLE / magnitude if magnitude > 0 else np.float32(0.0)
    for i in range(BLOCK):
        rounded[i] = np.int16(whole_number(block[i], up))
    prepared.factors[to] = magnitude * _UNIT


def _pairs_add(builder: ir.IRBuilder, wide: bool, total: Value, a: Value, b: Value) -> Value:
    """Return ``total`` plus the products of int16 pairs of ``a`` and ``b`` (as many int32)."""
    lanes = total.type.count
    if wide:
        name = f"llvm.x86.avx512.vpdpwssd.{lanes * 32}"
        return vec.call(builder, name, total.type, total, a, b)
    if lanes == 16:
        halves = [
            _pairs_add(builder, wide, *(vec.shuffle(builder, v, half) for v in (total, a, b)))
            for half in (range(8), range(8, 16))
        ]
        return vec.shuffle(builder, halves[0], range(16), halves[1])
    name = "llvm.x86.avx2.pmadd.wd"
    pairs = [builder.bitcast(v, vec.vector(i16, 2 * lanes)) for v in (a, b)]
    return builder.add(total, vec.call(builder, name, total.type, *pairs))


def _looked_up(builder: ir.IRBuilder, wide: bool, nibbles: Value) -> Value:
    """Return ``_DOUBLED`` of each byte (0 … 15) of a vector."""
    lanes = nibbles.type.count
    if lanes == 64 and not wide:
        halves = [
            _looked_up(builder, wide, vec.shuffle(builder, nibbles, half))
            for half in (range(32), range(32, 64))
        ]
        return vec.shuffle(builder, halves[0], range(64), halves[1])
    table = vec.constant(i8, _DOUBLED * (lanes // 16))
    name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[lanes]
    return vec.call(builder, name, nibbles.type, table, nibbles)


def _pack_int16(wide: bool) -> Any:
    """Pack one block of 32 or 16 rows as a panel: panel[j, l] has the pair of byte j of row l."""

    def emit(
        builder: ir.IRBuilder, blocks: Value, block: Value, groups: Value, last: Value, panel: Value
    ) -> None:
        width, ints = 32 if wide else 16, vec.vector(i32, 16)
        for first in range(0, width, 16):
            rows = []
            for l in range(first, first + 16):
                row = builder.select(builder.icmp_signed("<", index(l), last), index(l), last)
                at = builder.add(block, builder.mul(row, groups))
                at = builder.mul(at, index(16))
                vec.prefetch(builder, blocks, at, AHEAD)
                rows.append(vec.load(builder, blocks, at, vec.vector(i8, 16)))
            for j, column in enumerate(vec.transposed(builder, rows)):
                byte = builder.zext(column, ints)
                low = builder.shl(byte, vec.constant(i32, 8, 16))
                high = builder.shl(byte, vec.constant(i32, 20, 16))
                nibbles = builder.and_(
                    builder.or_(low, high), vec.constant(i32, 0x0F000F00, 16)
                )  # bytes 0 and 2 of a lane look up 0, which gives 0
                pair = _looked_up(builder, wide, builder.bitcast(nibbles, vec.vector(i8, 64)))
                vec.store(builder, builder.bitcast(pair, ints), panel, index(j * width + first))

    return vec.instructions(emit)


def _tile_int16(wide: bool, tokens: int) -> Any:
    """Add a panel's products with one block of ``tokens`` rows, from block number ``q_at`` on."""

    def emit(
        builder: ir.IRBuilder, panel: Value, panel_scales: Value, q: Value, factors: Value,
        q_at: Value, of: Value, of_at: Value, sums: Value, sums_at: Value
    ) -> None:  # fmt: skip
        vectors, width, unroll = 2 if wide else 1, 32 if wide else 16, 4
        ints, floats = vec.vector(i32, 16), vec.vector(f32, 16)
        rows, units = [], []
        for m in range(tokens):
            row = vec.load(builder, of, builder.add(of_at, index(m)), vec.i64)
            at = builder.add(q_at, row)  # block of activations
            units.append(vec.load(builder, factors, at, f32))
            start = builder.gep(q, [builder.mul(at, index(BLOCK))])
            rows.append(builder.bitcast(start, i32.as_pointer()))
        dots = vec.Accumulators(builder, tokens, vectors, ints)
        with cgutils.for_range(builder, index(16 // unroll)) as loop:
            for u in range(unroll):
                j = builder.add(builder.mul(loop.index, index(unroll)), index(u))
                at = builder.mul(j, index(width))
                columns = [
                    vec.load(builder, panel, builder.add(at, index(16 * v)), ints)
                    for v in range(vectors)
                ]
                for m in range(tokens):
                    pair = vec.splat(builder, vec.load(builder, rows[m], j, i32), 16)
                    for v in range(vectors):
                        dots[m, v] = _pairs_add(builder, wide, dots[m, v], columns[v], pair)
        for v in range(vectors):
            scale = vec.load(builder, panel_scales, index(16 * v), floats)
            for m in range(tokens):
                to = builder.add(sums_at, index(m * ROWS + 16 * v))
                scaled = builder.fmul(builder.sitofp(dots[m, v], floats), scale)
                unit, before = vec.splat(builder, units[m], 16), vec.load(builder, sums, to, floats)
                vec.store(builder, vec.multiply_add(builder, scaled, unit, before), sums, to)

    return vec.instructions(emit)


# fmt: off
def _add_products(path: Any, stored: Stored, block: int, rows: int, groups: int, prepared: Int16,
                  of: Any, of_at: int, count: int, sums: Any, workspace: Any) -> None:
    """sums[m · 64 + r] += row r · activations m, for ``count`` activations."""
    doubled = 256 * np.array(_DOUBLED)
    blocks_of_g = prepared.out_of_range.size + SPARE
    for r, g in np.ndindex(rows, groups):
        at = block + r * groups + g
        bytes_ = stored.blocks[at * 16 : at * 16 + 16]
        d = doubled[np.stack([bytes_ & 15, bytes_ >> 4], 1).reshape(-1)]
        scale = np.array(int(stored.scales[at]) + 1 << 23 & 0xFFFFFFFF, np.uint32).view(np.float32)
        for m in range(count):
            to = g * blocks_of_g + of[of_at + m]
            total = np.float32(d @ prepared.q[to * BLOCK : (to + 1) * BLOCK].astype(np.int64))
            sums[m * ROWS + r] += total * scale * prepared.factors[to]
# fmt: on


@overload(_add_products, **LEAF)
def _add_products_on(path: Any, *others: Any) -> Any:
    wide = lanes_of(path) == 16
    width, most = (32, 8) if wide else (16, 6)
    pack_int16, tile_most, tile_some = _pack_int16(wide), *(_tile_int16(wide, n) for n in (most, 4))

    # fmt: off
    def vectors(path, stored, block, rows, groups, prepared,  # type: ignore[no-untyped-def]
                of, of_at, count, sums, workspace):
        panel, panel_scales = workspace
        q, factors = prepared.q, prepared.factors
        blocks_of_g = prepared.out_of_range.size + SPARE
        for g in range(groups):
            for first in range(0, rows, width):
                last = min(width, rows - first) - 1
                start = block + first * groups + g
                for l in range(width):
                    byte = np.int32(stored.scales[start + min(l, last) * groups])
                    panel_scales[l] = bits_float(np.int32((byte + np.int32(1)) << np.int32(23)))
                pack_int16(stored.blocks, start, groups, last, panel)
                m = 0
                while m + 4 < count:
                    tile_most(panel, panel_scales, q, factors, g * blocks_of_g, of, of_at + m,
                              sums, m * ROWS + first)
                    m += most
                if m < count:
                    tile_some(panel, panel_scales, q, factors, g * blocks_of_g, of, of_at + m,
                              sums, m * ROWS + first)
    # fmt: on

    return vectors


@jit_inner
def workspace(prepared: Int16, tokens: int, groups: int) -> Any:
    """Allocate a panel and the scales of its rows."""
    return np.empty(16 * 32, np.int32), floats(32)


@jit_inner
def multiply(
    path: Any, stored: Stored, block: int, rows: int, groups: int, prepared: Int16, of: Any,
    of_at: int, tile: int, count: int, sums: Any, workspace: Any
) -> bool:  # fmt: skip
    """See ``mxfp4_methods.multiply``."""
    fill(sums[: (count + SPARE) * ROWS], np.float32(0.0))
    for m in range(0, count, TOKENS):
        _add_products(
            path, stored, block, rows, groups, prepared, of, of_at + m, min(TOKENS, count - m),
            sums[m * ROWS :], workspace,
        )  # fmt: skip
    return redo_out_of_range(
        stored, block, rows, groups, prepared, of, of_at, count, sums, LARGEST_SCALE, 0
    )
