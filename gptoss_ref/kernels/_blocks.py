"""What a block of MXFP4 is, and the product of a stored row with activations in float32.

A block is 16 bytes and one scale byte s: byte j holds values 2j (low nibble) and 2j + 1 (high), and
every value is an E2M1 number times 2^(s − 127). Twice an E2M1 number is an integer d, −12 … 12,
whose magnitude is m + max(m − 4, 0) + 2 max(m − 6, 0) of the magnitude bits m: arithmetic that LLVM
vectorises on any CPU.

``dot_float`` is what every CPU can run, and what the faster ways (``_product.py``) leave to it:
activations or scales of extreme size. Each weight is formed exactly; products and sums are float32,
so that the error is that of any float32 sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels._jit import (
    jit_dot,
    jit_inner,
)
from gptoss_ref.kernels._math import bits_float, float_bits

BLOCK = 32
"""Values of a block."""

SCALE_255 = {"nan": 0, "exponent": 1, "error": 2}
"""The numbers by which kernels know the meanings of a scale byte 255."""


@jit_inner
def half_scale(byte: Any, scale_255: int) -> Any:
    """Half of a block's scale, 2^(byte − 128), which float32 holds exactly for every byte."""
    if byte >= 2:
        if byte == 255 and scale_255 != 1:
            return np.float32(np.nan)
        return bits_float(np.int32((np.int32(byte) - np.int32(1)) << np.int32(23)))
    return bits_float(np.int32(np.int32(0x00200000) << np.int32(byte)))


@jit_inner
def doubled(code: Any) -> Any:
    """Twice the E2M1 value of a code 0 … 15, as float32, by arithmetic."""
    m = np.int32(code & np.int32(7))
    d = np.int32(m + max(np.int32(m - np.int32(4)), np.int32(0)))
    d = np.int32(d + np.int32(2) * max(np.int32(m - np.int32(6)), np.int32(0)))
    sign = np.int32(np.int32(code & np.int32(8)) << np.int32(28))
    return bits_float(np.int32(float_bits(np.float32(d)) | sign))


@jit_inner
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


@jit_inner
def largest_scale(scales: Any, start: int, count: int) -> int:
    """The largest scale byte of ``count`` blocks from ``start``.

    Over a slice: an index that is a sum might be negative, which keeps LLVM from vectorising.
    """
    largest = np.uint8(0)
    for byte in scales[start : start + count]:
        if byte > largest:
            largest = byte
    return int(largest)


@jit_inner
def largest_bits(x: Any, at: int) -> Any:
    """The bits of the largest magnitude of a block of activations; NaN is above infinity."""
    largest = np.int32(0)
    for value in x[at : at + BLOCK]:  # a slice, as in largest_scale
        bits = np.int32(float_bits(value) & np.int32(0x7FFFFFFF))
        largest = bits if bits > largest else largest
    return largest
