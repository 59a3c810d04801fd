"""The format of an MXFP4 block, and the product of a stored row with activations in float32.

A block is 16 bytes and one scale byte s. Byte j holds values 2j (low nibble) and 2j + 1 (high
nibble); each value is an E2M1 number times 2^(s − 127). Twice an E2M1 number is an integer d,
−12 … 12. Its magnitude is m + max(m − 4, 0) + 2 max(m − 6, 0) with m the magnitude bits: vector
arithmetic of any CPU, on 32 bytes.

Every CPU can run ``dot_float``. The integer methods use it for activations or scales of extreme
size. Each weight is decoded exactly; products and sums are float32, so the error is that of any
float32 sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from gptoss_ref.kernels.matmul.gemv import dot
from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.buffers import floats
from gptoss_ref.kernels.runtime.jit import INLINED, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, i8, i32, index
from gptoss_ref.kernels.runtime.scalar import MAGIC, bits_float, float_bits, fused

BLOCK = 32
"""Values per block."""

ROWS = 64
"""Rows of a task: 64 rows of gate and up make one block of 32 activations."""

SCALE_255 = {"nan": 0, "exponent": 1, "error": 2}
"""The numbers that stand for the meanings of a scale byte 255 in kernels."""

LARGEST_WHOLE = np.float32(127 * 257)
"""The integer to which the largest magnitude of a block is rounded: 256 · 127 + 127, two bytes."""

_TOO_LARGE = np.float32(2.0**48).view(np.int32)
_TOO_SMALL = np.float32(2.0**-60).view(np.int32)


class Stored(NamedTuple):
    """A matrix, or the matrices of all experts one after the other; flat and read-only."""

    blocks: Any  # uint8
    scales: Any  # uint8
    scale_255: Any  # int: a value of SCALE_255


@jit_inner
def half_scale(byte: Any, scale_255: int) -> Any:
    """Return half of a block's scale, 2^(byte − 128), which float32 can represent exactly."""
    if byte >= 2:
        if byte == 255 and scale_255 != 1:
            return np.float32(np.nan)
        return bits_float(np.int32((np.int32(byte) - np.int32(1)) << np.int32(23)))
    return bits_float(np.int32(np.int32(0x00200000) << np.int32(byte)))


_DOUBLED = np.array([*(0, 1, 2, 3, 4, 6, 8, 12), *(0, -1, -2, -3, -4, -6, -8, -12)], np.float32)


def decode_values(bytes_: Any, half: Any, out: Any) -> None:
    """Decode one block (16,) to ``out`` (32,); ``half`` is half of its scale."""
    for j in range(16):
        out[2 * j] = _DOUBLED[bytes_[j] & 15] * half
        out[2 * j + 1] = _DOUBLED[bytes_[j] >> 4] * half


@vec.leaf(decode_values, checked=True, **INLINED)
def _decode_values(builder: ir.IRBuilder, bytes_: Value, half: Value, out: Value) -> None:
    zero, seven, eight = (vec.constant(i8, value, BLOCK) for value in (0, 7, 8))
    low = vec.load(builder, bytes_, index(0), vec.vector(i8, 16))
    high = builder.lshr(low, vec.constant(i8, 4, 16))
    codes = vec.shuffle(builder, low, [j // 2 + j % 2 * 16 for j in range(BLOCK)], high)
    m = d = builder.and_(codes, seven)
    for least, times in ((4, 1), (6, 2)):
        above = builder.sub(m, vec.constant(i8, least, BLOCK))
        above = vec.call(builder, f"llvm.smax.v{BLOCK}i8", m.type, above, zero)
        d = builder.add(d, builder.mul(above, vec.constant(i8, times, BLOCK)))
    negative = builder.icmp_unsigned("!=", builder.and_(codes, eight), zero)
    d = builder.select(negative, builder.neg(d), d)
    d = builder.sitofp(builder.sext(d, vec.vector(i32, BLOCK)), vec.vector(f32, BLOCK))
    values = builder.fmul(d, vec.splat(builder, half, BLOCK))
    vec.store(builder, values, out, index(0))


@jit_inner
def decode_row(stored: Stored, block: int, groups: int, out: Any) -> None:
    """Decode ``groups`` blocks from number ``block`` on, to ``out`` (groups · 32,)."""
    for g in range(groups):
        at = block + g
        half = half_scale(stored.scales[at], stored.scale_255)
        bytes_ = stored.blocks[at * 16 : at * 16 + 16]
        decode_values(bytes_, half, out[g * BLOCK : (g + 1) * BLOCK])


@jit_inner
def dot_float(stored: Stored, block: int, groups: int, x: Any, room: Any) -> Any:
    """Return the product of a row with ``x`` (groups · 32,), in float32.

    The first block of the row is number ``block``; ``room`` is as long as ``x`` and is overwritten.
    """
    decode_row(stored, block, groups, room)
    return dot(room, x)


@jit_inner
def largest_scale(scales: Any) -> int:
    """Return the largest scale byte."""
    largest = np.uint8(0)
    for byte in scales:
        largest = byte if byte > largest else largest
    return int(largest)


@jit_inner
def refused(stored: Stored, block: int, count: int) -> bool:
    """Return whether ``count`` blocks from ``block`` on have a scale byte 255 that is an error."""
    refuse = stored.scale_255 == 2
    return bool(refuse and largest_scale(stored.scales[block : block + count]) == 255)


@jit_inner
def out_of_range(largest: Any) -> bool:
    """Return whether a block is out of range, given the bits of its largest magnitude."""
    return bool(largest != 0 and (largest < _TOO_SMALL or largest > _TOO_LARGE))


@jit_inner
def largest_bits(x: Any) -> Any:
    """Return the bits of the largest magnitude of a block of activations; NaN is above infinity."""
    largest = np.int32(0)
    for value in x:
        bits = np.int32(float_bits(value) & np.int32(0x7FFFFFFF))
        largest = bits if bits > largest else largest
    return largest


@jit_inner
def whole_number(x: Any, up: Any) -> Any:
    """Return x · up, below 2²², rounded once, to an int32."""
    return np.int32(float_bits(fused(x, up, MAGIC)) - float_bits(MAGIC))


@jit_inner
def redo_out_of_range(
    stored: Stored, block: int, rows: int, groups: int, prepared: Any, of: Any, of_at: int,
    count: int, sums: Any, largest: int, smallest: int
) -> bool:  # fmt: skip
    """Compute the products of rows that are out of range again, in float32.

    These are rows of activations that were marked, and rows of weights whose largest scale byte is
    not within ``smallest`` … ``largest``. Return False if a scale byte 255 is refused.
    """
    inputs = groups * BLOCK
    room = floats(inputs)
    some = False
    for m in range(count):
        some = some or prepared.out_of_range[of[of_at + m]]
    for r in range(rows):
        start = block + r * groups
        scale = largest_scale(stored.scales[start : start + groups])
        odd = scale > largest or scale < smallest
        if odd and refused(stored, start, groups):
            return False
        if odd or some:
            for m in range(count):
                row = of[of_at + m]
                if odd or prepared.out_of_range[row]:
                    x = prepared.x[row * inputs : (row + 1) * inputs]
                    sums[m * ROWS + r] = dot_float(stored, start, groups, x, room)
    return True
