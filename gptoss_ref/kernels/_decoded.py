"""Products of MXFP4 rows with many activations on AMX: rows become bfloat16, then ``_tiles.py``.

An E2M1 number times its scale is a bfloat16 number exactly. The 16 words of a table hold the
bfloat16 of each code; adding the scale's exponent to the words that are not zero makes the table
of a block, and one look-up of 32 words decodes the block, in its order.

Loop order: 32 rows at a time are decoded into a scratch that stays in the second-level cache, and
multiplied with all activations, 32 at a time. Accumulators: float32 in tile registers. Error: that
of a float32 sum, below 1e-6 relative L2 (``_tiles.py``). Faster than the other ways because a tile
instruction does 16 x 16 x 32 products.

Rows whose largest scale byte is beyond 40 … 215, whose sums might leave the range of AMX's floats,
take the float way; a scale byte below 2 in another row counts as 2, which is 2⁻¹²⁵.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gptoss_ref.kernels import _ir, _tiles
from gptoss_ref.kernels._blocks import BLOCK, largest_scale
from gptoss_ref.kernels._ir import i8, i16, i32, index
from gptoss_ref.kernels._jit import (
    jit_inner,
)

ROWS = 32
"""Rows decoded at a time."""

SMALLEST_SCALE, LARGEST_SCALE = 40, 215

_MAGNITUDES = [0, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0]  # bfloat16 0, ½, 1 … 6
_CODES = [*_MAGNITUDES, *[magnitude - 0x8000 for magnitude in _MAGNITUDES]]


@intrinsic
def _decode_row(
    typing_context: Any, blocks: Any, scales: Any, block: Any, groups: Any, out: Any, to: Any
) -> Any:
    """out[to …] = the row of ``groups`` blocks whose first is number ``block``, bfloat16 bits."""
    words = _ir.vector(i16, BLOCK)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source = _ir.data(context, builder, blocks, args[0])
        scales_ = _ir.data(context, builder, scales, args[1])
        target = builder.gep(_ir.data(context, builder, out, args[4]), [args[5]])
        table = _ir.constant(i16, 2 * _CODES)  # an index has five bits, a code four
        numbers = _ir.constant(i16, [-1 if code & 0x7FFF else 0 for code in 2 * _CODES])
        with cgutils.for_range(builder, args[3]) as loop:
            number = builder.add(args[2], loop.index)
            scale = builder.zext(_ir.load(builder, scales_, number, i8), i16)
            scale = builder.select(builder.icmp_unsigned("<", scale, i16(2)), i16(2), scale)
            exponent = _ir.splat(builder, builder.shl(builder.sub(scale, i16(127)), i16(7)), BLOCK)
            scaled = builder.add(table, builder.and_(exponent, numbers))
            stored = _ir.load(builder, source, builder.mul(number, index(16)), _ir.vector(i8, 16))
            pairs = builder.zext(stored, _ir.vector(i32, 16))  # low code in bits 0-3 …
            pairs = builder.or_(pairs, builder.shl(pairs, _ir.constant(i32, 12, 16)))  # high 16-19
            values = _ir.call(
                builder, "llvm.x86.avx512.permvar.hi.512", words, scaled,
                builder.bitcast(pairs, words),
            )  # fmt: skip
            _ir.store(builder, values, target, builder.mul(loop.index, index(BLOCK)))
        return context.get_dummy_value()

    n = types.intp
    return types.void(blocks, scales, n, n, out, n), generate


@jit_inner
def scratch_of(groups: int) -> Any:
    """Room for decoded rows, from a cache line on."""
    size = ROWS * groups * BLOCK
    room = np.empty(size + 32, np.uint16)
    start = (63 - (np.int64(room.ctypes.data) + 63) % 64) // 2
    return room[start : start + size]


@jit_inner
def decoded(
    blocks: Any,
    scales: Any,
    block: int,
    rows: int,
    groups: int,
    split: Any,
    tile: int,
    count: int,
    scratch: Any,
    sums: Any,
    stride: int,
    odd: Any,
) -> None:
    """sums[m · stride + r] = row r · activations m; odd[r]: that row is left to the float way.

    Args:
        split: activations as ``split_tiles`` left them; m counts from tile number ``tile``.
        sums: float32, with room for a multiple of 32 rows.
    """
    none, tile_sums = np.zeros(ROWS, np.float32), np.empty(_tiles.SUMS, np.float32)
    _tiles.configure()
    for first in range(0, rows, ROWS):
        for r in range(min(ROWS, rows - first)):
            start = block + (first + r) * groups
            largest = largest_scale(scales, start, groups)
            odd[first + r] = largest < SMALLEST_SCALE or largest > LARGEST_SCALE
            _decode_row(blocks, scales, start, groups, scratch, r * groups * BLOCK)
        for m in range(0, count, 2 * _tiles.ROWS):
            _tiles.product(
                scratch, 0, split, tile + m // _tiles.ROWS, groups, min(32, count - m),
                none, tile_sums, sums, m * stride + first, stride,
            )  # fmt: skip
    _tiles.release()
