"""Products of MXFP4 rows with few activations, in 24-bit integers (AVX2, AVX-512).

Each block of 32 activations is rounded to 24-bit integers X that share one power of two:
x = X · 2^(E − 23), where the largest magnitude is below 2^E. X is split into three signed bytes,
X = 65536 hi + 256 mid + lo, which are stored in three **planes**. A table look-up turns nibbles
into the unsigned bytes d + 12 (d is twice the E2M1 value). One instruction multiplies 64 unsigned
with 64 signed bytes and adds groups of four products; six such instructions make 128 exact products
of 24 bits. The contribution of the 12 is 12 · Σ X; it is known beforehand and subtracted. Sums of 8
products stay below 2³¹ (8 · 12 · 2²³). The scale 2^(s + E) is formed by adding bytes, and applied
by one fused multiply-add.

Loop order: rows one after the other, so that memory is read in order; in a row, groups of four
vectors.
Accumulators: one float32 per lane, for every 16th sum of 8 products.
Error: each activation has an error of at most 2⁻²⁴ of the largest in its block, and sums of 8
products are rounded to float32 once: relative L2 below 1e-6 on Gaussian activations, as for float32
sums.

It is faster than float32 because one instruction computes 64 products instead of 16, without
unpacking.

If a sum is not finite (scale bytes that are too large, or 255), ``dot_float`` computes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from gptoss_ref.kernels.matmul.mxfp4_block import (
    BLOCK,
    ROWS,
    Stored,
    dot_float,
    largest_bits,
    out_of_range,
    refused,
)
from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.buffers import falses, fill, floats, on_cache_line
from gptoss_ref.kernels.runtime.isa import cpu_features, lanes_of
from gptoss_ref.kernels.runtime.jit import INLINED, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, i8, i16, i32, index
from gptoss_ref.kernels.runtime.scalar import bits_float

PLANES = 3

_INFINITY = np.float32(np.inf)
_LOWEST = 70  # E is stored as the byte E + 71; the byte 0 means no block
_UNIT = np.float32(2.0 ** -(127 + 23 + 1 - 127 + _LOWEST + 1))
_SHIFTED = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0]  # d + 12 of each code


@jit_inner
def vector_bytes(n: int) -> int:
    """Return the bytes for a vector's ``n`` blocks: six times 16 n, and 4 n int32 to subtract."""
    return (2 * PLANES + 1) * 16 * n


@jit_inner
def group_bytes(n: int) -> int:
    """Return the bytes for a group: four vectors, and one exponent per block; whole vectors."""
    return 4 * vector_bytes(n) + 16 * n


class Int8Planes(NamedTuple):
    """R rows of activations as planes of bytes."""

    x: Any  # float32, flat, (R, M)
    out_of_range: Any  # bool (R,)
    planes: Any  # uint8, flat; starts on a cache line


def blocks_of_vector(path: Any) -> int:
    """Return the number of stored blocks, of 16 bytes each, in one vector."""
    return lanes_of(path) // 4


@overload(blocks_of_vector, **INLINED)
def _blocks_of_vector(path: Any) -> Any:
    n = lanes_of(path) // 4
    return lambda path: n


@jit_inner
def new_int8(path: Any, x: Any, rows: int, tiles: int) -> Int8Planes:
    """Allocate the planes; bytes that belong to no block are 0."""
    n, groups = blocks_of_vector(path), x.size // rows // BLOCK
    planes = on_cache_line(rows * ((groups + 4 * n - 1) // (4 * n)) * group_bytes(n))
    fill(planes, np.uint8(0))
    return Int8Planes(x, falses(rows), planes)


@jit_inner
def quantise_int8(path: Any, prepared: Int8Planes, row: int, g: int, groups: int) -> None:
    """Write block ``g`` of a row to its planes, unless the row is out of range."""
    at = (row * groups + g) * BLOCK
    largest = largest_bits(prepared.x[at : at + BLOCK])
    if out_of_range(largest):
        prepared.out_of_range[row] = True
        return
    n = blocks_of_vector(path)
    size = 16 * n
    group, lane = g // (4 * n), g % (4 * n)
    rows = prepared.out_of_range.size
    start = row * (prepared.planes.size // rows) + group * group_bytes(n)
    base = start + lane // n * vector_bytes(n) + lane % n * 16
    # 2^E exceeds the largest magnitude by at least 1/128, so that hi, mid and lo fit a byte
    exponent = ((largest + np.int32(0x20000)) >> np.int32(23)) - np.int32(126) if largest else 0
    up = bits_float(np.int32((np.int32(150) - np.int32(exponent)) << np.int32(23)))
    _cut(prepared.x, at, up, prepared.planes, base, size)
    prepared.planes[start + 4 * vector_bytes(n) + lane] = np.uint8(exponent + _LOWEST + 1)


def _cut(x: Any, at: int, up: Any, planes: Any, to: int, size: int) -> None:
    """Write the bytes of x[at …] times ``up``, and the numbers to subtract.

    Byte j of plane 2p + h belongs to value 2j + h; p counts from the upper byte.
    """
    rounded = np.rint(x[at : at + BLOCK] * up).astype(np.int32)
    for number in range(2 * PLANES):
        down = 8 * (PLANES - 1 - number // 2)
        byte = ((rounded[number % 2 :: 2] + 0x808080) >> down & 255) ^ 128
        planes[to + number * size : to + number * size + 16] = byte
    offset = -12 * rounded.reshape(4, 8).sum(1, dtype=np.int32)
    planes[to + 2 * PLANES * size :][:16] = offset.view(np.uint8)


@vec.leaf(_cut)
def _cut_vectors(
    builder: ir.IRBuilder, x: Value, at: Value, up: Value, planes: Value, to: Value, size: Value
) -> None:
    ints, floats = vec.vector(i32, BLOCK // 2), vec.vector(f32, BLOCK // 2)
    both = [vec.load(builder, x, builder.add(at, index(i)), floats) for i in (0, 16)]
    factor, total = vec.splat(builder, up, BLOCK // 2), ints(None)
    for high in range(2):
        values = vec.shuffle(builder, both[0], range(high, BLOCK, 2), both[1])
        scaled = builder.fmul(values, factor)
        rounded = vec.call(builder, f"llvm.rint.v{BLOCK // 2}f32", floats, scaled)
        rounded = builder.fptosi(rounded, ints)
        total = builder.add(total, rounded)
        shifted = builder.add(rounded, vec.constant(i32, 0x808080, BLOCK // 2))
        for plane in range(PLANES):
            down = vec.constant(i32, 8 * (PLANES - 1 - plane), BLOCK // 2)
            byte = builder.trunc(builder.lshr(shifted, down), vec.vector(i8, BLOCK // 2))
            byte = builder.xor(byte, vec.constant(i8, -128, BLOCK // 2))
            number = builder.mul(size, index(2 * plane + high))
            vec.store(builder, byte, planes, builder.add(to, number))
    for distance in (1, 2):
        other = [lane ^ distance for lane in range(BLOCK // 2)]
        total = builder.add(total, vec.shuffle(builder, total, other))
    fours = vec.shuffle(builder, total, [0, 4, 8, 12])
    offset = builder.mul(fours, vec.constant(i32, -12, 4))
    end = builder.add(to, builder.mul(size, index(2 * PLANES)))
    vec.store(builder, offset, planes, end)


def _looked_up(builder: ir.IRBuilder, nibbles: Value) -> Value:
    """Return ``_SHIFTED`` of the lower four bits of each byte."""
    lanes = nibbles.type.count
    table = vec.constant(i8, _SHIFTED * (lanes // 16))
    if lanes == 64 and "avx512vbmi" in cpu_features():  # uses six bits; the table repeats
        return vec.call(builder, "llvm.x86.avx512.permvar.qi.512", nibbles.type, table, nibbles)
    name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[lanes]
    nibbles = builder.and_(nibbles, vec.constant(i8, 15, lanes))
    return vec.call(builder, name, nibbles.type, table, nibbles)


def _fours_add(builder: ir.IRBuilder, total: Value, pairs: list[tuple[Value, Value]]) -> Value:
    """Return ``total`` plus products of unsigned and signed bytes, in fours, of two pairs."""
    lanes = total.type.count
    if lanes == 16:
        for a, b in pairs:
            total = vec.call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, a, b)
        return total
    both = []
    for a, b in pairs:  # sums of two products in int16: both together at most 4 · 24 · 128
        halves = [builder.bitcast(v, vec.vector(i8, 4 * lanes)) for v in (a, b)]
        both.append(
            vec.call(builder, "llvm.x86.avx2.pmadd.ub.sw", vec.vector(i16, 2 * lanes), *halves)
        )
    ones = vec.constant(i16, 1, 2 * lanes)
    sums = builder.add(*both)
    return builder.add(total, vec.call(builder, "llvm.x86.avx2.pmadd.wd", total.type, sums, ones))


def dot_planes_of(n: int) -> Any:
    """Return the product of a stored row with a row of planes, 4 or 2 blocks (``n``) at a time."""
    bytes_, ints, floats = vec.vector(i8, 16 * n), vec.vector(i32, 4 * n), vec.vector(f32, 4 * n)
    size, vector = 16 * n, (2 * PLANES + 1) * 16 * n
    group = 4 * vector + size

    def scale(builder: ir.IRBuilder, scales: Value, exponents: Value) -> Value:
        """Return 2^(s + E + 71 − 127) of the 4 n blocks of a group; infinity beyond the range."""
        both = vec.call(builder, f"llvm.uadd.sat.v{4 * n}i8", scales.type, scales, exponents)
        wide = builder.shl(builder.zext(both, ints), vec.constant(i32, 23, 4 * n))
        return builder.bitcast(wide, floats)

    def products(builder: ir.IRBuilder, stored: Value, kept: Value) -> Value:
        """Return exact sums of 8 products of ``stored`` blocks with the activations at ``kept``."""

        def at(number: int) -> Value:
            return vec.load(builder, kept, index(number * size), ints)

        words = builder.bitcast(stored, vec.vector(i16, 8 * n))
        high = builder.bitcast(builder.lshr(words, vec.constant(i16, 4, 8 * n)), bytes_)
        d = [builder.bitcast(_looked_up(builder, v), ints) for v in (stored, high)]
        total = vec.constant(i32, 0, 4 * n)
        for plane in range(PLANES):
            if plane:
                total = builder.shl(total, vec.constant(i32, 8, 4 * n))
            pairs = [(d[half], at(2 * plane + half)) for half in range(2)]
            total = _fours_add(builder, total, pairs)
        return builder.sitofp(builder.add(total, at(2 * PLANES)), floats)

    def emit(
        builder: ir.IRBuilder, blocks: Value, scales: Value, block: Value, groups: Value,
        planes: Value, at: Value
    ) -> Value:  # fmt: skip
        weights = builder.gep(blocks, [builder.mul(block, index(16))])
        bytes_of_scales = builder.gep(scales, [block])
        kept = builder.gep(planes, [at])
        sums = vec.Accumulators(builder, 1, 2, floats)
        whole = builder.udiv(groups, index(4 * n))
        done = builder.mul(whole, index(4 * n))
        with cgutils.for_range(builder, whole) as loop:
            here = builder.mul(loop.index, index(64 * n))
            row = builder.gep(kept, [builder.mul(loop.index, index(group))])
            s_at = builder.mul(loop.index, index(4 * n))
            vec.prefetch(builder, bytes_of_scales, s_at, vec.NEAR // 16)
            s = scale(
                builder,
                vec.load(builder, bytes_of_scales, s_at, vec.vector(i8, 4 * n)),
                vec.load(builder, row, index(4 * vector), vec.vector(i8, 4 * n)),
            )
            for v in range(4):
                place = builder.add(here, index(v * size))
                if v * size % 64 == 0:
                    vec.prefetch_stream(builder, weights, place, 64)
                stored = vec.load(builder, weights, place, bytes_)
                total = products(builder, stored, builder.gep(row, [index(v * vector)]))
                each = vec.shuffle(builder, s, [n * v + lane // 4 for lane in range(4 * n)])
                sums[0, v % 2] = vec.fma(builder, total, each, sums[0, v % 2])
        rest = builder.sub(groups, done)
        with builder.if_then(builder.icmp_unsigned("!=", rest, index(0))):
            row = builder.gep(kept, [builder.mul(whole, index(group))])
            s = scale(
                builder,
                vec.load_first(builder, bytes_of_scales, done, vec.vector(i8, 4 * n), rest),
                vec.load(builder, row, index(4 * vector), vec.vector(i8, 4 * n)),
            )
            vectors = builder.udiv(builder.add(rest, index(n - 1)), index(n))
            with cgutils.for_range(builder, vectors) as loop:
                past = builder.mul(loop.index, index(n))
                here = builder.mul(builder.add(done, past), index(16))
                lanes = builder.mul(builder.sub(rest, past), index(4))
                vec.prefetch_stream(builder, weights, here, size)
                stored = vec.load_first(builder, weights, here, ints, lanes)
                total = products(
                    builder,
                    builder.bitcast(stored, bytes_),
                    builder.gep(row, [builder.mul(loop.index, index(vector))]),
                )
                each = vec.picked(builder, s, past, [lane // 4 for lane in range(4 * n)])
                sums[0, 0] = vec.fma(builder, total, each, sums[0, 0])
        total = vec.lane_sum(builder, builder.fadd(sums[0, 0], sums[0, 1]))
        return builder.fmul(total, ir.Constant(f32, float(_UNIT)))

    return vec.instructions(emit, types.float32)


def _dot_planes(
    path: Any, blocks: Any, scales: Any, block: int, groups: int, planes: Any, at: int
) -> Any:
    """Return the product of the row from ``block`` on with the row of planes at planes[at]."""
    n, total, shifted = blocks_of_vector(path), np.float32(0.0), np.array(_SHIFTED)
    for g in range(groups):
        start, lane = at + g // (4 * n) * group_bytes(n), g % (4 * n)
        base = start + lane // n * vector_bytes(n) + lane % n * 16
        bytes_ = blocks[(block + g) * 16 : (block + g + 1) * 16]
        d = (shifted[bytes_ & 15], shifted[bytes_ >> 4])
        whole = np.zeros(4, np.int64)
        for number in range(2 * PLANES):
            signed = planes[base + number * 16 * n :][:16].view(np.int8)
            products = (d[number % 2] * signed).reshape(4, 4).sum(1)
            whole += products << 8 * (PLANES - 1 - number // 2)
        whole += planes[base + 2 * PLANES * 16 * n :][:16].view(np.int32)
        exponent = int(scales[block + g]) + int(planes[start + 4 * vector_bytes(n) + lane])
        scale = bits_float(np.int32(min(exponent, 255) << 23))
        total += (whole.astype(np.float32) * scale).sum()
    return total * _UNIT


@overload(_dot_planes, **INLINED)
def _dot_planes_on(path: Any, *others: Any) -> Any:
    dot_planes = dot_planes_of(lanes_of(path) // 4)
    return lambda path, blocks, scales, block, groups, planes, at: dot_planes(
        blocks, scales, block, groups, planes, at
    )


@jit_inner
def workspace_int8(prepared: Int8Planes, tokens: int, groups: int) -> Any:
    """Allocate a decoded row."""
    return floats(groups * BLOCK)


@jit_inner
def multiply_int8(
    path: Any, stored: Stored, block: int, rows: int, groups: int, prepared: Int8Planes, of: Any,
    of_at: int, tile: int, count: int, sums: Any, workspace: Any
) -> bool:  # fmt: skip
    """See ``mxfp4_methods.multiply``."""
    size, inputs = prepared.planes.size // prepared.out_of_range.size, groups * BLOCK
    for r in range(rows):
        start = block + r * groups
        for m in range(count):
            row = of[of_at + m]
            total = _dot_planes(
                path, stored.blocks, stored.scales, start, groups, prepared.planes, row * size
            )
            if prepared.out_of_range[row] or not abs(total) < _INFINITY:
                if refused(stored, start, groups):
                    return False
                x = prepared.x[row * inputs : (row + 1) * inputs]
                total = dot_float(stored, start, groups, x, workspace)
            sums[m * ROWS + r] = total
    return True
