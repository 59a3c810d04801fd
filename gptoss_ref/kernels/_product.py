"""Products of MXFP4 rows with activations: which way is taken, and what it needs of activations.

==========  =================  ==========================================================
``mode``    taken for          activations are kept as
==========  =================  ==========================================================
``FEW``     up to 4, narrow    planes of 24-bit integers, ``_planes.py``
``PAIRS``   more               int16 with a factor a block, ``_pairs.py``
``TILES``   more, on AMX       float32 until ``split_tiles`` splits them, ``_decoded.py``
==========  =================  ==========================================================

The plain path has one way for all: rows decoded to float32, in ``_blocks.py``. It is also taken,
on every path, for what integers cannot carry: activations with NaN, infinities, or a block whose
largest is beyond 2⁻⁶⁰ … 2⁴⁸ and not 0 (their rows are **beyond**); rows of weights with extreme
scale bytes. So NaN and infinities propagate as in the layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels import _tiles
from gptoss_ref.kernels._blocks import (
    BLOCK,
    SCALE_255,
    decode_block,
    dot_float,
    half_scale,
    largest_bits,
    largest_scale,
)
from gptoss_ref.kernels._decoded import decoded, scratch_of
from gptoss_ref.kernels._jit import (
    NEEDS,
    PATH_TYPES,
    cpu_features,
    jit,
    jit_inner,
    path_name,
    tiles,
)
from gptoss_ref.kernels._pairs import ROWS, SPARE, pair_block, pairs_of
from gptoss_ref.kernels._panels import dot
from gptoss_ref.kernels._planes import dot_planes_of, group_bytes, plane_block
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4

FEW, PAIRS, TILES = 0, 1, 2
FEW_TOKENS = 4
WIDE = 512
"""Narrower activations are not worth the rounding to int16: ``FEW`` takes any number of them."""
LARGEST_SCALE = 215
"""Rows with a scale byte beyond it do not go through ``PAIRS``: they might overflow a float32."""

_REFUSE_255 = SCALE_255["error"]
_TOO_LARGE = np.float32(2.0**48).view(np.int32)
_TOO_SMALL = np.float32(2.0**-60).view(np.int32)
_INFINITY = np.float32(np.inf)
_BYTE = np.dtype(np.uint8)
_BLOCKS = {PATH_TYPES["avx512"]: 4, PATH_TYPES["avx2"]: 2}  # of a vector


class Stored(NamedTuple):
    """A matrix, or those of all experts, one after the other; both arrays flat and read-only."""

    blocks: Any  # uint8
    scales: Any  # uint8
    scale_255: Any  # int: a value of SCALE_255


class Inputs(NamedTuple):
    """R rows of activations; arrays that the mode does not need are empty."""

    mode: Any  # int
    x: Any  # float32, flat, (R, M)
    beyond: Any  # bool (R,)
    planes: Any  # uint8, flat; on a cache line
    q: Any  # int16, flat, (R + SPARE, M)
    factors: Any  # float32, flat, (R + SPARE, M/32)


def stored_of(weight: MXFP4) -> Stored | None:
    """``weight`` as kernels take it, or None if it is not contiguous.

    Raises:
        GptOssError: blocks that do not fit the scales, other arrays than of bytes, or an unknown
            ``scale_255``.
    """
    blocks, scales = weight.blocks, weight.scales
    if blocks.shape != (*scales.shape, BLOCK // 2):
        raise GptOssError(
            f"{weight.name}: MXFP4 blocks of shape {blocks.shape} do not fit scales of shape "
            f"{scales.shape}: expected {(*scales.shape, BLOCK // 2)}"
        )
    if blocks.dtype != _BYTE or scales.dtype != _BYTE:
        raise GptOssError(
            f"{weight.name}: MXFP4 blocks of {blocks.dtype} and scales of {scales.dtype}: "
            f"expected uint8"
        )
    if not (blocks.flags.c_contiguous and scales.flags.c_contiguous):
        return None
    return Stored(_read_only(blocks), _read_only(scales), scale_255_code(weight.scale_255))


def _read_only(array: Array) -> Array:
    view = array.reshape(-1)
    view.flags.writeable = False
    return view


def scale_255_code(scale_255: str) -> int:
    """The number by which kernels know a meaning of the scale byte 255.

    Raises:
        GptOssError: there is no such meaning.
    """
    if scale_255 not in SCALE_255:
        raise GptOssError(f"unknown scale_255 {scale_255!r}: expected nan, exponent or error")
    return SCALE_255[scale_255]


def refuse_255(scales: Array, name: str) -> None:
    """Raise a CheckpointError that says where ``scales`` holds a byte 255, if it does."""
    if scales.size and scales.max() == 255:
        where = [int(i) for i in np.argwhere(scales == 255)[0]]
        raise CheckpointError(
            f"{name}: scale byte 255 at {where}, NaN in the MX specification: expected 0 to 254 "
            f"(load with scale_255='nan' or 'exponent' to accept it)"
        )


def mode_of(tokens: int, width: int) -> int:
    """The way that products with so many tokens of that width take now."""
    if tokens <= FEW_TOKENS or path_name() == "plain":
        return FEW
    if tiles():
        return TILES
    return PAIRS if width >= WIDE else FEW


@jit_inner
def inputs_of(path: Any, mode: int, x: Any, rows: int) -> Inputs:
    """Room for the rows ``x``, flat (R, M), to be filled by ``keep``: nothing is computed here."""
    groups = x.size // rows // BLOCK
    pairs = (rows + SPARE) * groups if mode == PAIRS else 0
    planes = rows * planes_bytes(path, groups) if mode == FEW else 0
    buffer = np.zeros(planes + 64, np.uint8)
    start = 63 - (np.int64(buffer.ctypes.data) + 63) % 64
    return Inputs(
        mode,
        x,
        np.zeros(rows, np.bool_),
        buffer[start : start + planes],
        np.empty(pairs * BLOCK, np.int16),
        np.empty(pairs, np.float32),
    )


def planes_bytes(path: Any, groups: int) -> int:
    """Bytes that a row of ``groups`` blocks needs in planes."""
    return 0


@overload(planes_bytes, strict=False)
def _planes_bytes(path: Any, groups: Any) -> Any:
    n = _BLOCKS.get(path, 0)
    if n == 0:
        return planes_bytes
    size = group_bytes(n)
    return lambda path, groups: -(-groups // (4 * n)) * size


@jit
def kept(path: Any, mode: int, x: Any, rows: int) -> Inputs:
    """Inputs of the rows ``x``, flat (R, M)."""
    inputs = inputs_of(path, mode, x, rows)
    groups = x.size // rows // BLOCK
    for row in range(rows):
        for g in range(groups):
            keep(path, inputs, row, g, groups)
    return inputs


@jit_inner
def split_room(mode: int, rows: int, groups: int) -> Any:
    """Room for ``rows`` (whole tiles) of activations as ``split_tiles`` leaves them, if needed."""
    words = rows // _tiles.ROWS * groups * _tiles.STEP_WORDS if mode == TILES else 0
    buffer = np.empty(words + 16, np.uint32)
    start = (63 - (np.int64(buffer.ctypes.data) + 63) % 64) // 4
    return buffer[start : start + words]


def split_tiles(path: Any, mode: int, x: Any, of: Any, planes: Any, team: Any) -> None:
    """Split rows ``of`` (whole tiles) of ``x``, flat, as ``TILES`` needs them, if it is that."""


@overload(split_tiles, strict=False)
def _split_tiles(path: Any, *others: Any) -> Any:
    if not _on_tiles(path):
        return split_tiles
    split_rows = _tiles.split_rows

    def vectors(path, mode, x, of, planes, team):  # type: ignore[no-untyped-def]
        if mode == TILES:
            split_rows(x, of, planes, of.size // _tiles.ROWS, team)

    return vectors


def _on_tiles(path: Any) -> bool:
    """Whether functions compiled for this type of path may be called with ``TILES``."""
    return path is PATH_TYPES["avx512"] and cpu_features() >= NEEDS["amx"]


@jit_inner
def keep(path: Any, inputs: Inputs, row: int, g: int, groups: int) -> None:
    """Block ``g`` of row ``row``, of ``groups`` blocks, has its activations: keep their form."""
    at = (row * groups + g) * BLOCK
    largest = largest_bits(inputs.x, at)
    if largest != 0 and (largest < _TOO_SMALL or largest > _TOO_LARGE):
        inputs.beyond[row] = True
        largest = np.int32(0)
    if inputs.mode == FEW:
        _keep_planes(path, inputs, at, largest, row, g)
    elif inputs.mode == PAIRS:
        pair_block(inputs.x, at, largest, inputs.q, inputs.factors, row * groups + g)


def _keep_planes(path: Any, inputs: Inputs, at: int, largest: Any, row: int, g: int) -> None:
    pass


@overload(_keep_planes, strict=False)
def _keep_planes_on(path: Any, *others: Any) -> Any:
    if path is PATH_TYPES["plain"]:
        return _keep_planes
    n = _BLOCKS[path]

    def vectors(path, inputs, at, largest, row, g):  # type: ignore[no-untyped-def]
        size = inputs.planes.size // inputs.beyond.size
        if not inputs.beyond[row]:
            plane_block(n, inputs.x, at, largest, inputs.planes, row * size, g)

    return vectors


@jit_inner
def room(tokens: int, inputs: Inputs, groups: int) -> Any:
    """Scratch of ``product`` for up to so many tokens: sums, and decoded rows."""
    sums = np.empty((tokens + 32) * ROWS, np.float32)
    return sums, scratch_of(groups if inputs.mode == TILES else 0)


def product(
    path: Any,
    stored: Stored,
    block: int,
    rows: int,
    groups: int,
    inputs: Inputs,
    of: Any,
    of_at: int,
    split: Any,
    tile: int,
    count: int,
    sums: Any,
    scratch: Any,
) -> bool:
    """sums[m · 64 + r] = row r · activations m, for r < rows ≤ 64 and m < count.

    Args:
        block: number of the rows' first block; a row has ``groups``.
        of: the row of ``inputs`` that m stands for is of[of_at + m]; ``SPARE`` entries follow.
        split: for ``TILES``, activations as ``split_tiles`` left them; m counts from tile number
            ``tile``.
        sums, scratch: from :func:`room`.

    Returns:
        False if there is a scale byte 255 that ``stored.scale_255`` refuses.
    """
    blocks, scales, scale_255 = stored
    if refused(stored, block, rows * groups):
        return False
    depth = groups * BLOCK
    if count == 1:
        for r in range(rows):
            sums[r] = dot_float(
                blocks, scales, block + r * groups, groups, scale_255, inputs.x, of[of_at] * depth
            )
        return True
    row = np.empty(depth, np.float32)
    for r in range(rows):
        for g in range(groups):
            at = block + r * groups + g
            decode_block(blocks, at, half_scale(scales[at], scale_255), row, g * BLOCK)
        for m in range(count):
            sums[m * ROWS + r] = dot(path, row, 0, inputs.x, of[of_at + m] * depth, depth)
    return True


@jit_inner
def refused(stored: Stored, block: int, count: int) -> bool:
    """Whether ``count`` blocks have a scale byte 255, and it is an error."""
    refuse = stored.scale_255 == _REFUSE_255
    return bool(refuse and largest_scale(stored.scales, block, count) == 255)


@overload(product, strict=False)
def _product(path: Any, *others: Any) -> Any:
    if path is PATH_TYPES["plain"]:
        return product
    wide = path is PATH_TYPES["avx512"]
    dot_planes, pairs = dot_planes_of(_BLOCKS[path]), pairs_of(wide)
    tiles_product = decoded if _on_tiles(path) else _no_tiles

    # fmt: off
    def vectors(path, stored, block, rows, groups, inputs,  # type: ignore[no-untyped-def]
                of, of_at, split, tile, count, sums, scratch):
        blocks, scales, scale_255 = stored
        size = inputs.planes.size // inputs.beyond.size
        if inputs.mode == FEW:
            fine = True
            for r in range(rows):
                for m in range(count):
                    total = dot_planes(blocks, scales, block + r * groups, groups,
                                       inputs.planes, of[of_at + m] * size)
                    sums[m * ROWS + r] = total
                    fine = fine and abs(total) < _INFINITY
            for m in range(count):
                fine = fine and not inputs.beyond[of[of_at + m]]
            if fine:
                return True
        odd = np.zeros(ROWS, np.bool_)
        if inputs.mode == FEW:
            for r in range(rows):
                for m in range(count):
                    odd[r] = odd[r] or not abs(sums[m * ROWS + r]) < _INFINITY
        elif inputs.mode == PAIRS:
            for r in range(rows):
                odd[r] = largest_scale(scales, block + r * groups, groups) > LARGEST_SCALE
            pairs(blocks, scales, block, rows, groups, inputs.q, inputs.factors,
                  of, of_at, count, sums)
        else:
            tiles_product(blocks, scales, block, rows, groups, split, tile, count,
                          scratch, sums, ROWS, odd)
        for r in range(rows):
            start = block + r * groups
            if odd[r] and refused(stored, start, groups):
                return False
            for m in range(count):
                row = of[of_at + m]
                if odd[r] or inputs.beyond[row]:
                    sums[m * ROWS + r] = dot_float(blocks, scales, start, groups, scale_255,
                                                   inputs.x, row * groups * BLOCK)
        return True
    # fmt: on

    return vectors


@jit_inner
def _no_tiles(
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
    """In the place of ``decoded`` where there is no AMX: never called."""
