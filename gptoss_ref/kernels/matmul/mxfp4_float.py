"""Products of MXFP4 rows with activations in float32, for every CPU.

==========  ========================================================================================
tokens      method
==========  ========================================================================================
1 to 4      a row is decoded into a scratch array in L1, then one dot product per token
more        16 rows of 256 columns are decoded, packed as a panel, and multiplied with register
            tiles; a panel serves all tokens
==========  ========================================================================================

Error: that of a float32 sum, relative L2 below 1e-6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels.matmul.gemv import dot
from gptoss_ref.kernels.matmul.mxfp4_block import BLOCK, ROWS, Stored, decode_row, refused
from gptoss_ref.kernels.matmul.register_tile import WIDEST, pack, panel_width, tile
from gptoss_ref.kernels.runtime.buffers import copy, fill, floats, integers
from gptoss_ref.kernels.runtime.jit import jit_inner

FEW = 4
GROUPS = 8
"""Blocks of a row that make a panel: 256 columns."""


class Floats(NamedTuple):
    """R rows of activations, unchanged."""

    x: Any  # float32, flat, (R, M)
    rows: int  # R


PREPARED = Floats


@jit_inner
def new(path: Any, method: Any, x: Any, rows: int, tiles: int) -> Floats:
    """Return the activations; there is nothing to prepare."""
    return Floats(x, rows)


@jit_inner
def quantise(path: Any, prepared: Floats, row: int, g: int, groups: int) -> None:
    """Do nothing."""


@jit_inner
def workspace(prepared: Floats, tokens: int, groups: int) -> Any:
    """Return scratch: a decoded row or slab, a panel, gathered activations and their start."""
    depth, begin = GROUPS * BLOCK, integers(1)
    begin[0] = -1
    return (
        floats(max(groups * BLOCK, WIDEST * depth)),
        floats(WIDEST * depth),
        floats(tokens * groups * BLOCK),
        begin,
    )


@jit_inner
def multiply(
    path: Any, stored: Stored, block: int, rows: int, groups: int, prepared: Floats, of: Any,
    of_at: int, tile_number: int, count: int, sums: Any, workspace: Any
) -> bool:  # fmt: skip
    """See ``mxfp4_methods.multiply``."""
    if refused(stored, block, rows * groups):
        return False
    decoded, panel, gathered, begin = workspace
    inputs = groups * BLOCK
    if count <= FEW:
        row = decoded[:inputs]
        for r in range(rows):
            decode_row(stored, block + r * groups, groups, row)
            for m in range(count):
                at = of[of_at + m] * inputs
                sums[m * ROWS + r] = dot(row, prepared.x[at : at + inputs])
        return True
    fill(sums[: count * ROWS], np.float32(0.0))
    width, start_of = panel_width(path), of[of_at]
    in_order = True  # consecutive rows are used without a copy
    for m in range(count):
        in_order = in_order and of[of_at + m] == start_of + m
    x, x_at = (prepared.x, start_of * inputs) if in_order else (gathered, 0)
    if not in_order and begin[0] != of_at:  # once for all rows of an expert
        for m in range(count):
            at = of[of_at + m] * inputs
            copy(prepared.x[at : at + inputs], gathered[m * inputs : (m + 1) * inputs])
        begin[0] = of_at
    for g in range(0, groups, GROUPS):
        some = min(GROUPS, groups - g)
        depth = some * BLOCK
        for first in range(0, rows, width):
            n = min(width, rows - first)
            for r in range(n):
                start = block + (first + r) * groups + g
                decode_row(stored, start, some, decoded[r * depth : (r + 1) * depth])
            pack(path, decoded, 0, depth, n, depth, 0, panel)
            tile(
                path, count, x, x_at + g * BLOCK, inputs, 1, panel, 0, width, depth,
                sums, first, ROWS, True,
            )  # fmt: skip
    return True
