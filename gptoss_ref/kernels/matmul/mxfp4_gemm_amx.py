"""Products of MXFP4 rows with many activations on AMX: rows become bfloat16, then ``amx.py``.

An E2M1 number times its scale is exactly a bfloat16 number. A table has 16 words, the bfloat16
number of each code. Adding the exponent of the scale to the words that are not zero gives the table
of a block, and one look-up of 32 words decodes the block in order.

Loop order: 32 rows at a time are decoded into a scratch array that stays in L2, and multiplied by
all activations, 32 at a time. Accumulators: float32 in tile registers. Error: that of a float32
sum, relative L2 below 1e-6 (``amx.py``). It is faster than the other methods because one tile
instruction computes 16 x 16 x 32 products.

If the largest scale byte of a row is outside 40 … 215, the sums might leave the range of AMX's
floats, and the row is computed in float32 (``mxfp4_block.dot_float``). In other rows a scale byte
below 2 counts as 2, which is 2⁻¹²⁵.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gptoss_ref.kernels.matmul import amx
from gptoss_ref.kernels.matmul.mxfp4_block import (
    BLOCK,
    ROWS,
    Stored,
    largest_bits,
    out_of_range,
    redo_out_of_range,
)
from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.buffers import falses, fill, floats, on_cache_line
from gptoss_ref.kernels.runtime.jit import jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, i8, i16, i32, index

DECODED = 32
"""Rows decoded at a time."""

SMALLEST_SCALE, LARGEST_SCALE = 40, 215

_MAGNITUDES = [0, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0]  # bfloat16 0, ½, 1 … 6
_CODES = [*_MAGNITUDES, *[magnitude - 0x8000 for magnitude in _MAGNITUDES]]


class AmxPlanes(NamedTuple):
    """R rows of activations; :func:`settle` splits them in the order of the experts' tiles."""

    x: Any  # float32, flat, (R, M)
    out_of_range: Any  # bool (R,)
    split: Any  # uint32, flat: up to R + 15 E rows


def _decode_row(blocks: Any, scales: Any, block: int, groups: int, out: Any, to: int) -> None:
    """Write the bfloat16 bits of the row whose first block is number ``block``, from out[to] on."""
    codes = np.array(_CODES) & 0xFFFF
    for g in range(groups):
        bytes_ = blocks[(block + g) * 16 : (block + g + 1) * 16]
        word = codes[np.stack([bytes_ & 15, bytes_ >> 4], 1).reshape(-1)]
        exponent = max(int(scales[block + g]), 2) - 127 << 7
        out[to + g * BLOCK : to + (g + 1) * BLOCK] = np.where(
            word & 0x7FFF, word + exponent & 0xFFFF, word
        )


@vec.leaf(_decode_row)
def _decode_row_vectors(
    builder: ir.IRBuilder, blocks: Value, scales: Value, block: Value, groups: Value, out: Value,
    to: Value
) -> None:  # fmt: skip
    words, target = vec.vector(i16, BLOCK), builder.gep(out, [to])
    table = vec.constant(i16, 2 * _CODES)  # a look-up index has five bits, a code has four
    numbers = vec.constant(i16, [-1 if code & 0x7FFF else 0 for code in 2 * _CODES])
    with cgutils.for_range(builder, groups) as loop:
        number = builder.add(block, loop.index)
        scale = builder.zext(vec.load(builder, scales, number, i8), i16)
        scale = builder.select(builder.icmp_unsigned("<", scale, i16(2)), i16(2), scale)
        exponent = vec.splat(builder, builder.shl(builder.sub(scale, i16(127)), i16(7)), BLOCK)
        scaled = builder.add(table, builder.and_(exponent, numbers))
        stored = vec.load(builder, blocks, builder.mul(number, index(16)), vec.vector(i8, 16))
        pairs = builder.zext(stored, vec.vector(i32, 16))  # low code: bits 0-3
        pairs = builder.or_(pairs, builder.shl(pairs, vec.constant(i32, 12, 16)))  # high: 16-19
        pairs = builder.bitcast(pairs, words)
        values = vec.call(builder, "llvm.x86.avx512.permvar.hi.512", words, scaled, pairs)
        vec.store(builder, values, target, builder.mul(loop.index, index(BLOCK)))


PREPARED = AmxPlanes


@jit_inner
def new(path: Any, method: Any, x: Any, rows: int, tiles: int) -> AmxPlanes:
    """Allocate planes for ``tiles`` tiles of split rows."""
    return AmxPlanes(x, falses(rows), amx.planes_of(tiles, x.size // rows))


@jit_inner
def quantise(path: Any, prepared: AmxPlanes, row: int, g: int, groups: int) -> None:
    """Note whether a block is out of range; :func:`settle` splits the rows later."""
    at = (row * groups + g) * BLOCK
    if out_of_range(largest_bits(prepared.x[at : at + BLOCK])):
        prepared.out_of_range[row] = True


@jit_inner
def settle(path: Any, prepared: AmxPlanes, of: Any, team: Any) -> None:
    """Split the rows ``of``, tile by tile."""
    amx.split_rows(prepared.x, of, prepared.split, (of.size + amx.ROWS - 1) // amx.ROWS, team)


@jit_inner
def workspace(prepared: AmxPlanes, tokens: int, groups: int) -> Any:
    """Return scratch arrays: decoded rows, a bias of zeros, and tiles of sums."""
    none = floats(DECODED)
    fill(none, np.float32(0.0))
    return on_cache_line(2 * DECODED * groups * BLOCK).view(np.uint16), none, floats(amx.SUMS)


@jit_inner
def multiply(
    path: Any, stored: Stored, block: int, rows: int, groups: int, prepared: AmxPlanes, of: Any,
    of_at: int, tile: int, count: int, sums: Any, workspace: Any
) -> bool:  # fmt: skip
    """See ``mxfp4_methods.multiply``."""
    decoded, none, tile_sums = workspace
    amx.configure()
    for first in range(0, rows, DECODED):
        for r in range(min(DECODED, rows - first)):
            start = block + (first + r) * groups
            _decode_row(stored.blocks, stored.scales, start, groups, decoded, r * groups * BLOCK)
        for m in range(0, count, 2 * amx.ROWS):
            amx.product(
                decoded, 0, prepared.split, tile + m // amx.ROWS, groups, min(32, count - m),
                none, tile_sums, sums, m * ROWS + first, ROWS,
            )  # fmt: skip
    amx.release()
    return redo_out_of_range(
        stored, block, rows, groups, prepared, of, of_at, count, sums,
        LARGEST_SCALE, SMALLEST_SCALE,
    )  # fmt: skip
