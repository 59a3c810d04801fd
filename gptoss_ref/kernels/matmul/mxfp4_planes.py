"""Activations for ``mxfp4_gemv_int8``: integers as planes of bytes.

Each block of 32 activations is rounded to integers X with one float32 factor, in the same way as
for many activations (``mxfp4_gemm_int16``). X is split into signed bytes, X = 256 hi + lo: two
**planes**.

If a block dominates its row (the square of its largest magnitude is more than an eighth of the
row's sum of squares), the block is **refined**: a third plane has 256 (x / step − X), rounded.

Error: at most half a step for each activation, where the largest of its block has 32639 steps, and
2⁻⁷ of that in refined blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels.matmul.gemv import dot
from gptoss_ref.kernels.matmul.mxfp4_block import (
    BLOCK,
    LARGEST_WHOLE,
    largest_bits,
    out_of_range,
    whole_number,
)
from gptoss_ref.kernels.runtime.buffers import falses, fill, floats, on_cache_line
from gptoss_ref.kernels.runtime.jit import jit_inner
from gptoss_ref.kernels.runtime.scalar import bits_float, fused

GROUP = 8
"""Number of blocks in four vectors."""


class Int8Planes(NamedTuple):
    """R rows of activations as planes of bytes.

    A row has at least 8 blocks, in K groups of four vectors of two. Lane 4 b + v of a group is for
    block 2 v + b, which is block b of vector v. Bytes of even and of odd activations are apart
    (index h). The last group ends with the row; blocks that the group before has are 0 in it.
    """

    x: Any  # float32, flat, (R, M)
    out_of_range: Any  # bool (R,)
    upper: Any  # bytes of hi and lo, flat, (R·K, 4 v, 2 planes, 2 h, 32)
    third: Any  # bytes of refined blocks, flat, (R·K, 4 v, 2 h, 32)
    offsets: Any  # int32, flat, (R·K, 2, 8): −12 · the sum of X, and of the third plane
    factors: Any  # float32, flat, (R·K, 8): a quarter of the step
    refined: Any  # bool (R·K,): whether a group has refined blocks


@jit_inner
def new(path: Any, method: Any, x: Any, rows: int, tiles: int) -> Int8Planes:
    """Allocate the planes; what belongs to no block is 0."""
    count = rows * -(-x.size // (rows * BLOCK * GROUP))  # R·K
    upper, third = on_cache_line(count * 512), on_cache_line(count * 256)
    offsets, factors = np.empty(count * 16, np.int32), floats(count * 8)
    fill(upper, np.uint8(0))
    fill(third, np.uint8(0))
    fill(offsets, np.int32(0))
    fill(factors, np.float32(0.0))
    return Int8Planes(x, falses(rows), upper, third, offsets, factors, falses(count))


@jit_inner
def place(row: int, g: int, groups: int) -> Any:
    """Return the number of a block's group, its vector there, and its place in the vector."""
    group = g // GROUP
    at = g - min(group * GROUP, groups - GROUP)
    return row * -(-groups // GROUP) + group, at // 2, at % 2


@jit_inner
def quantise(path: Any, prepared: Int8Planes, row: int, g: int, groups: int) -> None:
    """Write block ``g`` of a row to the upper planes, unless the row is out of range."""
    at = (row * groups + g) * BLOCK
    largest = largest_bits(prepared.x[at : at + BLOCK])
    if out_of_range(largest):
        prepared.out_of_range[row] = True
    elif largest != 0:
        (group, v, b), magnitude = place(row, g, groups), bits_float(largest)
        up, total = np.float32(LARGEST_WHOLE / magnitude), np.int32(0)
        for h in range(2):
            to = (group * 4 + v) * 128 + 32 * h + 16 * b
            high, low = prepared.upper[to : to + 16], prepared.upper[to + 64 : to + 80]
            for j in range(16):
                whole = whole_number(prepared.x[at + 2 * j + h], up)
                total += whole
                high[j] = np.uint8((whole + np.int32(128)) >> np.int32(8))
                low[j] = np.uint8(whole & np.int32(255))
        prepared.offsets[group * 16 + 4 * b + v] = np.int32(-12) * total
        # a quarter: d is twice a value, and scales are doubled, too
        prepared.factors[group * 8 + 4 * b + v] = magnitude * np.float32(0.25) / LARGEST_WHOLE


@jit_inner
def settle(path: Any, prepared: Int8Planes, of: Any, team: Any) -> None:
    """Refine the blocks that dominate their rows."""
    rows = prepared.out_of_range.size
    inputs = prepared.x.size // rows
    groups = inputs // BLOCK
    for row in range(rows):
        x = prepared.x[row * inputs : (row + 1) * inputs]
        most = dot(x, x) / np.float32(8.0)
        for g in range(groups):
            magnitude = bits_float(largest_bits(x[g * BLOCK : (g + 1) * BLOCK]))
            if magnitude * magnitude > most and not prepared.out_of_range[row]:
                _refine(prepared, row * inputs + g * BLOCK, magnitude, row, g, groups)


@jit_inner
def _refine(prepared: Int8Planes, at: int, magnitude: Any, row: int, g: int, groups: int) -> None:
    """Write block ``g`` of a row, x[at …], to the third plane."""
    group, v, b = place(row, g, groups)
    up, total = np.float32(LARGEST_WHOLE / magnitude), np.int32(0)
    for h in range(2):
        to = (group * 4 + v) * 64 + 32 * h + 16 * b
        third = prepared.third[to : to + 16]
        for j in range(16):
            x = prepared.x[at + 2 * j + h]
            rest = fused(x, up, -np.float32(whole_number(x, up)))
            whole = min(whole_number(rest, np.float32(256.0)), np.int32(127))
            total += whole
            third[j] = np.uint8(whole & np.int32(255))
    prepared.offsets[group * 16 + 8 + 4 * b + v] = np.int32(-12) * total
    prepared.refined[group] = True
