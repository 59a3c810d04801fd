"""Products of MXFP4 rows with many activations, in 16-bit integers (AVX2, AVX-512).

Each block of 32 activations is rounded to int16 with one float32 factor, its largest magnitude
becoming 32767. A **panel** is one block of 32 (AVX2: 16) rows side by side. A table look-up turns
its nibbles into d, twice the E2M1 value, in the high byte of an int16 (256 d, no sign extension
needed); one instruction then multiplies and adds pairs, twice as many products as a fused
multiply-add of the same width.

Loop order: rows by panels, in them blocks, in them activations, 8 (AVX2: 4) at a time, in them the
pairs of a block. Accumulators: int32 in registers, exact for a block (at most 32 · 3072 · 32767,
spread over several lanes, each below 2³⁰); a float32 for each result, in memory, to which one fused
multiply-add adds a block.

Error: each activation is off by at most 2⁻¹⁶ of its *block's* largest, so the relative L2 error is
about 2e-5 on Gaussian activations and below 1e-4 where one is 1000 times the rest. One
decoded block serves all activations, two products a lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gptoss_ref.kernels import _ir
from gptoss_ref.kernels._blocks import BLOCK
from gptoss_ref.kernels._ir import f32, i8, i16, i32, index
from gptoss_ref.kernels._jit import (
    jit,
    jit_inner,
)
from gptoss_ref.kernels._math import bits_float, float_bits

ROWS = 64
"""Rows of a task: 64 rows of gate and up make one block of 32 activations."""

SPARE = 8
"""Readable entries that must follow the list of activation rows, and rows their arrays."""

_MAGIC = np.float32(12582912.0)  # 1.5 · 2²³: a float32 added to it is rounded to an integer
_UNIT = np.float32(1 / (32767 * 1024))  # 1024: 256 of the high byte, 2 of d, 2 of the scale's form
_DOUBLED = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]


@jit_inner
def pair_block(x: Any, at: int, largest: Any, q: Any, factors: Any, to: int) -> None:
    """Round the 32 activations at x[at] to int16, as block number ``to`` of ``q``.

    ``largest``: bits of the largest magnitude.
    """
    magnitude = bits_float(largest)
    up = np.float32(32767.0) / magnitude if magnitude > 0 else np.float32(0.0)
    for i in range(BLOCK):
        shifted = float_bits(np.float32(np.float32(x[at + i] * up) + _MAGIC))
        q[to * BLOCK + i] = np.int16(np.int32(shifted << np.int32(16)) >> np.int32(16))
    factors[to] = magnitude * _UNIT


def _pairs_add(builder: Any, wide: bool, total: Any, a: Any, b: Any) -> Any:
    """total + the products of int16 pairs of ``a`` and ``b`` (vectors of as many int32)."""
    lanes = total.type.count
    if wide:
        name = f"llvm.x86.avx512.vpdpwssd.{lanes * 32}"
        return _ir.call(builder, name, total.type, total, a, b)
    if lanes == 16:
        halves = [
            _pairs_add(builder, wide, *(_ir.shuffle(builder, v, half) for v in (total, a, b)))
            for half in (range(8), range(8, 16))
        ]
        return _ir.shuffle(builder, halves[0], range(16), halves[1])
    name = "llvm.x86.avx2.pmadd.wd"
    pairs = [builder.bitcast(v, _ir.vector(i16, 2 * lanes)) for v in (a, b)]
    return builder.add(total, _ir.call(builder, name, total.type, *pairs))


def _looked_up(builder: Any, wide: bool, nibbles: Any) -> Any:
    """``_DOUBLED`` of each byte (0 … 15) of a vector."""
    lanes = nibbles.type.count
    if lanes == 64 and not wide:
        halves = [
            _looked_up(builder, wide, _ir.shuffle(builder, nibbles, half))
            for half in (range(32), range(32, 64))
        ]
        return _ir.shuffle(builder, halves[0], range(64), halves[1])
    table = _ir.constant(i8, _DOUBLED * (lanes // 16))
    name = {
        32: "llvm.x86.avx2.pshuf.b",
        64: "llvm.x86.avx512.pshuf.b.512",
    }[lanes]
    return _ir.call(builder, name, nibbles.type, table, nibbles)


def _pack_int16(wide: bool) -> Any:
    """One block of 32 or 16 rows as a panel: panel[j, l] holds the pair of byte j of row l."""

    @intrinsic
    def pack_int16(
        typing_context: Any, blocks: Any, block: Any, groups: Any, last: Any, panel: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source = _ir.data(context, builder, blocks, args[0])
            target = _ir.data(context, builder, panel, args[4])
            width = 32 if wide else 16
            for first in range(0, width, 16):
                rows = []
                for l in range(first, first + 16):
                    row = builder.select(
                        builder.icmp_signed("<", index(l), args[3]), index(l), args[3]
                    )
                    at = builder.add(args[1], builder.mul(row, args[2]))
                    at = builder.mul(at, index(16))
                    rows.append(_ir.load(builder, source, at, _ir.vector(i8, 16)))
                for j, column in enumerate(_ir.transposed(builder, rows)):
                    byte = builder.zext(column, _ir.vector(i32, 16))
                    low = builder.shl(byte, _ir.constant(i32, 8, 16))
                    high = builder.shl(byte, _ir.constant(i32, 20, 16))
                    both = builder.or_(low, high)
                    nibbles = builder.and_(both, _ir.constant(i32, 0x0F000F00, 16))
                    pair = _looked_up(
                        builder, wide, builder.bitcast(nibbles, _ir.vector(i8, 64))
                    )  # bytes 0 and 2 of a lane look up 0, which gives 0
                    pair = builder.bitcast(pair, _ir.vector(i32, 16))
                    _ir.store(builder, pair, target, index(j * width + first))
            return context.get_dummy_value()

        n = types.intp
        return types.void(blocks, n, n, n, panel), generate

    return pack_int16


def _tile_int16(wide: bool, tokens: int) -> Any:
    """Add a panel's products with block ``g`` of ``tokens`` rows of activations."""

    @intrinsic
    def tile_int16(
        typing_context: Any,
        panel: Any,
        panel_scales: Any,
        q: Any,
        factors: Any,
        groups: Any,
        g: Any,
        of: Any,
        of_at: Any,
        sums: Any,
        sums_at: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arrays = (panel, panel_scales, q, factors, None, None, of, None, sums)
            pointers = {
                i: _ir.data(context, builder, type_, args[i])
                for i, type_ in enumerate(arrays)
                if type_ is not None
            }
            vectors, width = (2, 32) if wide else (1, 16)
            ints, floats = _ir.vector(i32, 16), _ir.vector(f32, 16)
            rows, units = [], []
            for m in range(tokens):
                row = _ir.load(builder, pointers[6], builder.add(args[7], index(m)), _ir.i64)
                at = builder.add(builder.mul(row, args[4]), args[5])  # block of activations
                units.append(_ir.load(builder, pointers[3], at, f32))
                start = builder.gep(pointers[2], [builder.mul(at, index(BLOCK))])
                rows.append(builder.bitcast(start, i32.as_pointer()))
            dots = _ir.Accumulators(builder, tokens, vectors, ints)
            unroll = 4
            with cgutils.for_range(builder, index(16 // unroll)) as loop:
                for u in range(unroll):
                    j = builder.add(builder.mul(loop.index, index(unroll)), index(u))
                    at = builder.mul(j, index(width))
                    columns = [
                        _ir.load(builder, pointers[0], builder.add(at, index(16 * v)), ints)
                        for v in range(vectors)
                    ]
                    for m in range(tokens):
                        pair = _ir.splat(builder, _ir.load(builder, rows[m], j, i32), 16)
                        for v in range(vectors):
                            dots[m, v] = _pairs_add(builder, wide, dots[m, v], columns[v], pair)
            for v in range(vectors):
                scale = _ir.load(builder, pointers[1], index(16 * v), floats)
                for m in range(tokens):
                    to = builder.add(args[9], index(m * ROWS + 16 * v))
                    scaled = builder.fmul(builder.sitofp(dots[m, v], floats), scale)
                    unit = _ir.splat(builder, units[m], 16)
                    before = _ir.load(builder, pointers[8], to, floats)
                    _ir.store(builder, _ir.fma(builder, scaled, unit, before), pointers[8], to)
            return context.get_dummy_value()

        n = types.intp
        return types.void(panel, panel_scales, q, factors, n, n, of, n, sums, n), generate

    return tile_int16


def pairs_of(wide: bool) -> Any:
    """The kernel of 32 (``wide``, AVX-512) or 16 rows a panel."""
    width, most = (32, 8) if wide else (16, 4)
    pack_int16, tile_most, tile_some = (
        _pack_int16(wide),
        _tile_int16(wide, most),
        _tile_int16(wide, 4),
    )

    # fmt: off
    @jit
    def pairs(blocks: Any, scales: Any, block: int, rows: int, groups: int, q: Any, factors: Any,
              of: Any, of_at: int, count: int, sums: Any) -> None:
        panel = np.empty(16 * width, np.int32)
        panel_scales = np.empty(width, np.float32)
        for i in range((count + SPARE) * ROWS):
            sums[i] = np.float32(0.0)
        for first in range(0, rows, width):
            last = min(width, rows - first) - 1
            for g in range(groups):
                start = block + first * groups + g
                for l in range(width):
                    byte = np.int32(scales[start + min(l, last) * groups])
                    panel_scales[l] = bits_float(np.int32((byte + np.int32(1)) << np.int32(23)))
                pack_int16(blocks, start, groups, last, panel)
                m = 0
                while m + 4 < count:
                    tile_most(panel, panel_scales, q, factors, groups, g, of, of_at + m,
                              sums, m * ROWS + first)
                    m += most
                if m < count:
                    tile_some(panel, panel_scales, q, factors, groups, g, of, of_at + m,
                              sums, m * ROWS + first)
    # fmt: on

    return pairs
