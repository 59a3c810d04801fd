"""Products of MXFP4 rows with activations, in 16-bit integers or in float32.

A block is 16 bytes and one scale byte s: byte j holds values 2j (low nibble) and 2j + 1 (high), and
every value is an E2M1 number times 2^(s − 127). Twice an E2M1 number is an integer d.

**Integers** (AVX2, AVX-512). Each block of 32 activations is rounded to int16 with one float32
factor, its largest magnitude becoming 32767. A table look-up turns nibbles into d, which goes to
the high byte of an int16 (256 d, no sign extension needed); one instruction then multiplies and
adds pairs, twice as many products as a fused multiply-add of the same width. Sums of a block are
exact: at most 32 · 3072 · 32767 < 2³¹·1.5 spread over several lanes, each below 2³⁰. The block's
sum is converted to float32 and added with one fused multiply-add.

Error: each activation is off by at most 2⁻¹⁶ of its *block's* largest, so the relative L2 error is
about 2e-5 on Gaussian activations and below 1e-4 where one is 1000 times the rest. Activations that
int16 cannot carry (NaN, infinities, blocks whose largest is beyond 2¹⁰⁰ or below 2⁻⁸⁰ but not 0),
and rows with a scale byte over 215, whose values might overflow a float32, take the float way.

**Float32** (plain). d = m + max(m − 4, 0) + 2 max(m − 6, 0) of the magnitude bits m: arithmetic
that LLVM vectorises on any CPU. Each weight is formed exactly, each product in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from gptoss_ref.kernels import _ir
from gptoss_ref.kernels._ir import f32, i8, i16, i32, index
from gptoss_ref.kernels._jit import PATH_TYPES, jit, jit_dot
from gptoss_ref.kernels._math import bits_float, float_bits
from gptoss_ref.kernels._panels import dot

BLOCK = 32
ROWS = 64
"""Rows of a task: 64 rows of gate and up make one block of 32 activations."""

SPARE = 8
"""Readable entries that must follow the list of activation rows, and rows their arrays."""

PREFETCH_BYTES = 8192
"""How far ahead of a row's reading its cache lines are asked for: more than for bfloat16, because
these bytes are consumed sooner."""

LARGEST_SCALE = 215
SCALE_255 = {"nan": 0, "exponent": 1, "error": 2}

_MAGIC = np.float32(12582912.0)  # 1.5 · 2²³: a float32 added to it is rounded to an integer
_TOO_LARGE = np.float32(2.0**100).view(np.int32)
_TOO_SMALL = np.float32(2.0**-80).view(np.int32)
_UNIT = np.float32(1 / (32767 * 1024))  # 1024: 256 of the high byte, 2 of d, 2 of the scale's form
_DOUBLED = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]


@jit
def quantise(
    x: Any, at: int, q: Any, to: int, plane: int, factors: Any, factor_at: int, repeat: int
) -> bool:
    """Round the 32 activations at x[at] to int16; False if they are beyond int16.

    Args:
        q: int16. With ``plane`` = 0 they go to q[to] in their order, for panels. Else
            four groups of 8 go to q[to + i · plane], in the order in which ``dot_int16`` unpacks
            weights: values 0, 2, … 14; 16, 18, … 30; and the odd ones likewise.
        factors: float32; the factor goes to ``repeat`` places from ``factor_at``.
    """
    largest = np.int32(0)
    for i in range(BLOCK):
        bits = np.int32(float_bits(x[at + i]) & np.int32(0x7FFFFFFF))
        largest = max(largest, bits)
    fits = largest == 0 or (largest >= _TOO_SMALL and largest <= _TOO_LARGE)
    magnitude = bits_float(largest) if fits else np.float32(0.0)
    up = np.float32(32767.0) / magnitude if magnitude > 0 else np.float32(0.0)
    if not fits:
        for i in range(BLOCK):
            q[to + (i // 8) * plane + (i % 8 if plane else i)] = np.int16(0)
    elif plane == 0:
        for i in range(BLOCK):
            q[to + i] = _rounded(x[at + i], up)
    else:
        for half in range(2):
            for i in range(8):
                q[to + half * plane + i] = _rounded(x[at + 16 * half + 2 * i], up)
                q[to + (2 + half) * plane + i] = _rounded(x[at + 16 * half + 2 * i + 1], up)
    for i in range(repeat):
        factors[factor_at + i] = magnitude * _UNIT
    return bool(fits)


@jit
def _rounded(x: Any, up: Any) -> Any:
    return np.int16(np.int32(float_bits(np.float32(np.float32(x * up) + _MAGIC)) << 16) >> 16)


@jit
def half_scale(byte: Any, scale_255: int) -> Any:
    """Half of a block's scale, 2^(byte − 128), which float32 holds exactly for every byte."""
    if byte >= 2:
        if byte == 255 and scale_255 != 1:
            return np.float32(np.nan)
        return bits_float(np.int32((np.int32(byte) - np.int32(1)) << np.int32(23)))
    return bits_float(np.int32(np.int32(0x00200000) << np.int32(byte)))


@jit
def doubled(code: Any) -> Any:
    """Twice the E2M1 value of a code 0 … 15, as float32, by arithmetic."""
    m = np.int32(code & np.int32(7))
    d = np.int32(m + max(np.int32(m - np.int32(4)), np.int32(0)))
    d = np.int32(d + np.int32(2) * max(np.int32(m - np.int32(6)), np.int32(0)))
    sign = np.int32(np.int32(code & np.int32(8)) << np.int32(28))
    return bits_float(np.int32(float_bits(np.float32(d)) | sign))


@jit
def decode_block(blocks: Any, block: int, half: Any, out: Any, to: int) -> None:
    """The 32 values of one block, in their order, to out[to]."""
    for j in range(16):
        byte = np.int32(blocks[block * 16 + j])
        out[to + 2 * j] = doubled(np.int32(byte & np.int32(15))) * half
        out[to + 2 * j + 1] = doubled(np.int32(byte >> np.int32(4))) * half


@jit_dot
def dot_float(
    blocks: Any, scales: Any, block: int, groups: int, scale_255: int, x: Any, at: int
) -> Any:
    """The row whose first block is number ``block``, times the activations at x[at], in float32."""
    total = np.float32(0.0)
    for g in range(groups):
        half = half_scale(scales[block + g], scale_255)
        start, values = (block + g) * 16, at + g * BLOCK
        for j in range(16):
            byte = np.int32(blocks[start + j])
            low = doubled(np.int32(byte & np.int32(15))) * half
            high = doubled(np.int32(byte >> np.int32(4))) * half
            total += low * x[values + 2 * j] + high * x[values + 2 * j + 1]
    return total


@jit
def largest_scale(scales: Any, start: int, count: int) -> int:
    """The largest scale byte of ``count`` blocks from ``start``.

    Over a slice: an index that is a sum might be negative, which keeps LLVM from vectorising.
    """
    largest = np.uint8(0)
    for byte in scales[start : start + count]:
        if byte > largest:
            largest = byte
    return int(largest)


def product(
    path: Any,
    blocks: Any,
    scales: Any,
    block: int,
    rows: int,
    groups: int,
    scale_255: int,
    x: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    of_at: int,
    count: int,
    planes: bool,
    sums: Any,
) -> None:
    """sums[m · 64 + r] = row r · activations m, for r < rows ≤ 64 and m < count.

    Args:
        blocks: uint8, flat; the rows' first block has number ``block``, a row has ``groups``.
        x: float32 activations, flat, a row being ``groups`` · 32 long; ``q``, ``factors`` and
            ``beyond`` (a row is beyond int16) hold the same rows as :func:`quantise` left them.
        of: number of the row of activations that m stands for is of[of_at + m].
        planes: the activations are in planes, for one row of them; else in order, for panels.
        sums: float32, with room for ``count`` + ``SPARE`` rows of 64.
    """
    depth = groups * BLOCK
    if count == 1:
        for r in range(rows):
            sums[r] = dot_float(
                blocks, scales, block + r * groups, groups, scale_255, x, of[of_at] * depth
            )
        return
    row = np.empty(depth, np.float32)
    for r in range(rows):
        for g in range(groups):
            at = block + r * groups + g
            decode_block(blocks, at, half_scale(scales[at], scale_255), row, g * BLOCK)
        for m in range(count):
            sums[m * ROWS + r] = dot(path, row, 0, x, of[of_at + m] * depth, depth)


@overload(product, strict=False)
def _product(path: Any, *others: Any) -> Any:
    if path is PATH_TYPES["plain"]:
        return product
    wide = path is PATH_TYPES["avx512"]
    width = 32 if wide else 16
    dot_int16, pack_int16 = _dot_int16(wide), _pack_int16(wide)
    tile_most, tile_some = _tile_int16(wide, 8 if wide else 4), _tile_int16(wide, 4)
    most = 8 if wide else 4

    # fmt: off
    def vectors(path, blocks, scales, block, rows, groups,  # type: ignore[no-untyped-def]
                scale_255, x, q, factors, beyond, of, of_at, count, planes, sums):
        depth = groups * BLOCK
        all_beyond = largest_scale(scales, block, rows * groups) > LARGEST_SCALE
        if planes:
            if not (all_beyond or beyond[of[of_at]]):
                at, factor_at = of[of_at] * depth, of[of_at] * groups * 4
                for r in range(rows):
                    sums[r] = dot_int16(blocks, scales, block + r * groups, groups,
                                        q, at, factors, factor_at)
        elif not all_beyond:
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
                        panel_scales[l] = bits_float(
                            np.int32((byte + np.int32(1)) << np.int32(23)))
                    pack_int16(blocks, start, groups, last, panel)
                    m = 0
                    while m + 4 < count:
                        tile_most(panel, panel_scales, q, factors, groups, g, of, of_at + m,
                                  sums, m * ROWS + first)
                        m += most
                    if m < count:
                        tile_some(panel, panel_scales, q, factors, groups, g, of, of_at + m,
                                  sums, m * ROWS + first)
        for m in range(count):
            if all_beyond or beyond[of[of_at + m]]:
                for r in range(rows):
                    sums[m * ROWS + r] = dot_float(blocks, scales, block + r * groups, groups,
                                                   scale_255, x, of[of_at + m] * depth)
    # fmt: on

    return vectors


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
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd"}[lanes]
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
        16: "llvm.x86.ssse3.pshuf.b.128",
        32: "llvm.x86.avx2.pshuf.b",
        64: "llvm.x86.avx512.pshuf.b.512",
    }[lanes]
    return _ir.call(builder, name, nibbles.type, table, nibbles)


def _dot_int16(wide: bool) -> Any:
    """The product of one row with one row of activations in planes; the fastest way for one token.

    A register holds 4 blocks (AVX-512) or 2; what is left over goes one block at a time.
    """

    @intrinsic
    def dot_int16(
        typing_context: Any,
        blocks: Any,
        scales: Any,
        block: Any,
        groups: Any,
        q: Any,
        at: Any,
        factors: Any,
        factor_at: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first = args[2]
            weights = builder.gep(
                _ir.data(context, builder, blocks, args[0]), [builder.mul(first, index(16))]
            )
            scale_bytes = builder.gep(_ir.data(context, builder, scales, args[1]), [first])
            values = builder.gep(_ir.data(context, builder, q, args[4]), [args[5]])
            units = builder.gep(_ir.data(context, builder, factors, args[6]), [args[7]])
            plane = builder.mul(args[3], index(8))

            def step(g: Any, n: int, sums: Any) -> None:
                """Add the products of ``n`` blocks from block ``g``."""
                raw = _ir.load(builder, weights, builder.mul(g, index(16)), _ir.vector(i8, 16 * n))
                low = builder.and_(raw, _ir.constant(i8, 15, 16 * n))
                high = builder.lshr(raw, _ir.constant(i8, 4, 16 * n))
                zero = _ir.constant(i8, 0, 16 * n)
                dots = _ir.constant(i32, 0, 4 * n)
                for i, nibbles in enumerate((low, high)):
                    d = _looked_up(builder, wide, nibbles)
                    for half in range(2):  # bytes 0-7, then 8-15, of each block, to high bytes
                        lanes = [
                            lane
                            for b in range(n)
                            for j in range(8)
                            for lane in (16 * b, 16 * n + 16 * b + 8 * half + j)
                        ]
                        a = builder.bitcast(
                            _ir.shuffle(builder, zero, lanes, d), _ir.vector(i32, 4 * n)
                        )
                        x_at = builder.add(
                            builder.mul(plane, index(2 * i + half)), builder.mul(g, index(8))
                        )
                        x = _ir.load(builder, values, x_at, _ir.vector(i16, 8 * n))
                        x = builder.bitcast(x, a.type)
                        dots = _pairs_add(builder, wide, dots, a, x)
                s = _ir.load(builder, scale_bytes, g, _ir.vector(i8, n))
                s = builder.zext(s, _ir.vector(i32, n))
                s = builder.add(s, _ir.constant(i32, 1, n))
                s = builder.bitcast(builder.shl(s, _ir.constant(i32, 23, n)), _ir.vector(f32, n))
                s = _ir.shuffle(builder, s, [b for b in range(n) for _ in range(4)])
                type_ = _ir.vector(f32, 4 * n)
                unit = _ir.load(builder, units, builder.mul(g, index(4)), type_)
                scaled = builder.fmul(builder.sitofp(dots, type_), s)
                sums[0, 0] = _ir.fma(builder, scaled, unit, sums[0, 0])

            n = 4 if wide else 2
            sums = _ir.Accumulators(builder, 1, 1, _ir.vector(f32, 4 * n))
            rest = _ir.Accumulators(builder, 1, 1, _ir.vector(f32, 4))
            whole = builder.udiv(args[3], index(n))
            with cgutils.for_range(builder, whole) as loop:
                g = builder.mul(loop.index, index(n))
                _ir.prefetch(builder, weights, builder.mul(g, index(16)), PREFETCH_BYTES)
                step(g, n, sums)
            done = builder.mul(whole, index(n))
            with cgutils.for_range(builder, builder.sub(args[3], done)) as loop:
                step(builder.add(done, loop.index), 1, rest)
            return builder.fadd(
                _ir.lane_sum(builder, sums[0, 0]), _ir.lane_sum(builder, rest[0, 0])
            )

        n = types.intp
        return types.float32(blocks, scales, n, n, q, n, factors, n), generate

    return dot_int16


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
