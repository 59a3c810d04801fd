"""Products of MXFP4 rows with few activations, in 24-bit integers (AVX2, AVX-512).

Each block of 32 activations is rounded to 24-bit integers X that share one power of two:
x = X · 2^(E − 23), where the largest magnitude lies below 2^E. X is cut into three signed bytes,
X = 65536 hi + 256 mid + lo, which lie in three **planes**. A table look-up turns nibbles into the
unsigned bytes d + 12 (d is twice the E2M1 value), and one instruction multiplies 64 unsigned with
64 signed bytes and adds fours of products: six of them make 128 exact products of 24 bits. What
the 12 adds, 12 · Σ X, is known beforehand and taken off; sums of 8 products stay below
2³¹ (8 · 12 · 2²³). The scale 2^(s + E) is formed by adding bytes, and applied by one fused
multiply-add.

Loop order: rows one after the other, so that memory is read in order; in a row, groups of four
vectors.
Accumulators: one float32 a lane, which holds the sum of every 16th eight values.
Error: each activation is off by at most 2⁻²⁴ of its block's largest, and sums of 8 products are
rounded to float32 once: below 1e-6 relative L2 on Gaussian activations, as float32 sums are.

Why faster than float32: 64 products an instruction in place of 16, no unpacking.

A sum that is not finite (scale bytes that are too large, or 255) is left to ``dot_float``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gptoss_ref.kernels import _ir
from gptoss_ref.kernels._blocks import BLOCK
from gptoss_ref.kernels._ir import Value, f32, i8, i16, i32, index
from gptoss_ref.kernels._jit import (
    cpu_features,
    jit_inner,
)
from gptoss_ref.kernels._math import bits_float

PLANES = 3

_LOWEST = 70  # E is kept as the byte E + 71, so that a byte 0 is no block
_UNIT = np.float32(2.0 ** -(127 + 23 + 1 - 127 + _LOWEST + 1))
_SHIFTED = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0]  # d + 12 of each code


def vector_bytes(n: int) -> int:
    """Bytes kept of the ``n`` blocks of a vector: six times 16 n, and 4 n integers to take off."""
    return (2 * PLANES + 1) * 16 * n


def group_bytes(n: int) -> int:
    """Bytes kept of a group: four vectors, and an exponent a block; whole vectors."""
    return 4 * vector_bytes(n) + 16 * n


@jit_inner
def plane_block(n: int, x: Any, at: int, largest: Any, planes: Any, to: int, g: int) -> None:
    """Keep the 32 activations at x[at] as block ``g`` of the row that begins at planes[to].

    ``largest``: bits of the largest magnitude, which is 0 or between 2⁻⁶⁰ and 2⁴⁸.
    """
    size = 16 * n
    group, lane = g // (4 * n), g % (4 * n)
    start = to + group * (4 * 7 * size + size)
    base = start + lane // n * (7 * size) + lane % n * 16
    # 2^E is above the largest magnitude by 1/128 at least: hi, mid, lo then stay within a byte
    exponent = ((largest + np.int32(0x20000)) >> np.int32(23)) - np.int32(126) if largest else 0
    up = bits_float(np.int32((np.int32(150) - np.int32(exponent)) << np.int32(23)))
    _cut(x, at, up, planes, base, size)
    planes[start + 4 * 7 * size + lane] = np.uint8(exponent + _LOWEST + 1)


@intrinsic
def _cut(typing_context: Any, x: Any, at: Any, up: Any, planes: Any, to: Any, size: Any) -> Any:
    """The bytes of x[at …] times ``up``, and what is to take off, as :func:`plane_block` puts them.

    Byte j of plane 2p + h belongs to value 2j + h; p counts from the upper byte.
    """
    ints, floats = _ir.vector(i32, BLOCK // 2), _ir.vector(f32, BLOCK // 2)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (_ir.data(context, builder, a, args[i]) for i, a in ((0, x), (3, planes)))
        both = [_ir.load(builder, source, builder.add(args[1], index(i)), floats) for i in (0, 16)]
        factor = _ir.splat(builder, args[2], BLOCK // 2)
        total = ints(None)
        for high in range(2):
            values = _ir.shuffle(builder, both[0], range(high, BLOCK, 2), both[1])
            scaled = builder.fmul(values, factor)
            rounded = _ir.call(builder, f"llvm.rint.v{BLOCK // 2}f32", floats, scaled)
            rounded = builder.fptosi(rounded, ints)
            total = builder.add(total, rounded)
            shifted = builder.add(rounded, _ir.constant(i32, 0x808080, BLOCK // 2))
            for plane in range(PLANES):
                down = _ir.constant(i32, 8 * (PLANES - 1 - plane), BLOCK // 2)
                byte = builder.trunc(builder.lshr(shifted, down), _ir.vector(i8, BLOCK // 2))
                byte = builder.xor(byte, _ir.constant(i8, -128, BLOCK // 2))
                number = builder.mul(args[5], index(2 * plane + high))
                _ir.store(builder, byte, target, builder.add(args[4], number))
        for distance in (1, 2):
            other = [lane ^ distance for lane in range(BLOCK // 2)]
            total = builder.add(total, _ir.shuffle(builder, total, other))
        fours = _ir.shuffle(builder, total, [0, 4, 8, 12])
        offset = builder.mul(fours, _ir.constant(i32, -12, 4))
        end = builder.add(args[4], builder.mul(args[5], index(2 * PLANES)))
        _ir.store(builder, offset, target, end)
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, types.float32, planes, n, n), generate


def _looked_up(builder: ir.IRBuilder, nibbles: Value) -> Value:
    """``_SHIFTED`` of the lower four bits of each byte."""
    lanes = nibbles.type.count
    table = _ir.constant(i8, _SHIFTED * (lanes // 16))
    if lanes == 64 and "avx512vbmi" in cpu_features():  # takes six bits, and the table repeats
        return _ir.call(builder, "llvm.x86.avx512.permvar.qi.512", nibbles.type, table, nibbles)
    name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[lanes]
    nibbles = builder.and_(nibbles, _ir.constant(i8, 15, lanes))
    return _ir.call(builder, name, nibbles.type, table, nibbles)


def _fours_add(builder: ir.IRBuilder, total: Value, pairs: list[tuple[Value, Value]]) -> Value:
    """total + the products of unsigned and signed bytes, fours of them; two such vectors."""
    lanes = total.type.count
    if lanes == 16:
        for a, b in pairs:
            total = _ir.call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, a, b)
        return total
    both = []
    for a, b in pairs:  # pairs of products in int16: at most 4 · 24 · 128, both together
        halves = [builder.bitcast(v, _ir.vector(i8, 4 * lanes)) for v in (a, b)]
        both.append(
            _ir.call(builder, "llvm.x86.avx2.pmadd.ub.sw", _ir.vector(i16, 2 * lanes), *halves)
        )
    ones = _ir.constant(i16, 1, 2 * lanes)
    sums = builder.add(*both)
    return builder.add(total, _ir.call(builder, "llvm.x86.avx2.pmadd.wd", total.type, sums, ones))


def dot_planes_of(n: int) -> Any:
    """The product of one stored row with one row of planes, ``n`` blocks (4 or 2) at a time."""
    bytes_, ints, floats = _ir.vector(i8, 16 * n), _ir.vector(i32, 4 * n), _ir.vector(f32, 4 * n)
    size, vector, group = 16 * n, vector_bytes(n), group_bytes(n)

    def scale(builder: ir.IRBuilder, scales: Value, exponents: Value) -> Value:
        """2^(s + E + 71 − 127) of the 4 n blocks of a group; beyond the range it is infinite."""
        both = _ir.call(builder, f"llvm.uadd.sat.v{4 * n}i8", scales.type, scales, exponents)
        wide = builder.shl(builder.zext(both, ints), _ir.constant(i32, 23, 4 * n))
        return builder.bitcast(wide, floats)

    def products(builder: ir.IRBuilder, stored: Value, kept: Value) -> Value:
        """Exact sums of 8 products: of the blocks ``stored`` and the activations at ``kept``."""

        def at(number: int) -> Value:
            return _ir.load(builder, kept, index(number * size), ints)

        words = builder.bitcast(stored, _ir.vector(i16, 8 * n))
        high = builder.bitcast(builder.lshr(words, _ir.constant(i16, 4, 8 * n)), bytes_)
        d = [builder.bitcast(_looked_up(builder, v), ints) for v in (stored, high)]
        total = _ir.constant(i32, 0, 4 * n)
        for plane in range(PLANES):
            if plane:
                total = builder.shl(total, _ir.constant(i32, 8, 4 * n))
            pairs = [(d[half], at(2 * plane + half)) for half in range(2)]
            total = _fours_add(builder, total, pairs)
        return builder.sitofp(builder.add(total, at(2 * PLANES)), floats)

    @intrinsic
    def dot_planes(
        typing_context: Any,
        blocks: Any,
        scales: Any,
        block: Any,
        groups: Any,
        planes: Any,
        at: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first, count = args[2], args[3]
            weights = builder.gep(
                _ir.data(context, builder, blocks, args[0]), [builder.mul(first, index(16))]
            )
            bytes_of_scales = builder.gep(_ir.data(context, builder, scales, args[1]), [first])
            kept = builder.gep(_ir.data(context, builder, planes, args[4]), [args[5]])
            sums = _ir.Accumulators(builder, 1, 2, floats)
            whole = builder.udiv(count, index(4 * n))
            done = builder.mul(whole, index(4 * n))
            with cgutils.for_range(builder, whole) as loop:
                here = builder.mul(loop.index, index(64 * n))
                row = builder.gep(kept, [builder.mul(loop.index, index(group))])
                s_at = builder.mul(loop.index, index(4 * n))
                _ir.prefetch(builder, bytes_of_scales, s_at, _ir.NEAR // 16)
                s = scale(
                    builder,
                    _ir.load(builder, bytes_of_scales, s_at, _ir.vector(i8, 4 * n)),
                    _ir.load(builder, row, index(4 * vector), _ir.vector(i8, 4 * n)),
                )
                for v in range(4):
                    place = builder.add(here, index(v * size))
                    if v * size % 64 == 0:
                        _ir.prefetch_stream(builder, weights, place, 64)
                    stored = _ir.load(builder, weights, place, bytes_)
                    total = products(builder, stored, builder.gep(row, [index(v * vector)]))
                    each = _ir.shuffle(builder, s, [n * v + lane // 4 for lane in range(4 * n)])
                    sums[0, v % 2] = _ir.fma(builder, total, each, sums[0, v % 2])
            rest = builder.sub(count, done)
            with builder.if_then(builder.icmp_unsigned("!=", rest, index(0))):
                row = builder.gep(kept, [builder.mul(whole, index(group))])
                s = scale(
                    builder,
                    _ir.load_first(builder, bytes_of_scales, done, _ir.vector(i8, 4 * n), rest),
                    _ir.load(builder, row, index(4 * vector), _ir.vector(i8, 4 * n)),
                )
                vectors = builder.udiv(builder.add(rest, index(n - 1)), index(n))
                with cgutils.for_range(builder, vectors) as loop:
                    past = builder.mul(loop.index, index(n))
                    here = builder.mul(builder.add(done, past), index(16))
                    lanes = builder.mul(builder.sub(rest, past), index(4))
                    _ir.prefetch_stream(builder, weights, here, size)
                    stored = _ir.load_first(builder, weights, here, ints, lanes)
                    total = products(
                        builder,
                        builder.bitcast(stored, bytes_),
                        builder.gep(row, [builder.mul(loop.index, index(vector))]),
                    )
                    each = _ir.picked(builder, s, past, [lane // 4 for lane in range(4 * n)])
                    sums[0, 0] = _ir.fma(builder, total, each, sums[0, 0])
            total = _ir.lane_sum(builder, builder.fadd(sums[0, 0], sums[0, 1]))
            return builder.fmul(total, ir.Constant(f32, float(_UNIT)))

        count = types.intp
        return types.float32(blocks, scales, count, count, planes, count), generate

    return dot_planes
