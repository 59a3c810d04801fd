"""One interface to the methods of MXFP4 products; Numba selects the method by a type.

==============  ===================  ===============================  ==============================
method          used for             activations are prepared as      file
==============  ===================  ===============================  ==============================
``FLOAT``       the plain path, and  they are                         ``mxfp4_float.py``
                short rows (on AMX,
                1 to 4 tokens)
``INT8``        1 to 4 tokens        16-bit integers in planes        ``mxfp4_gemv_int8.py``
                                     (``mxfp4_planes.py``)
``INT16``       more tokens          the same integers as int16       ``mxfp4_gemm_int16.py``
``AMX``         more tokens on AMX   bfloat16 planes in tiles         ``mxfp4_gemm_amx.py``
==============  ===================  ===============================  ==============================

**Short** rows have fewer than 512 activations, in one of the two matrices of experts. So a small
model needs one method, which halves its compilation, and is as fast (docs/decisions/0061).

Integers cannot represent all values. A row of activations is **out of range** if it has NaN,
infinities, or a block whose largest magnitude is not 0 and outside 2⁻⁶⁰ … 2⁴⁸; a row of weights, if
its scale bytes are extreme. All methods compute such rows with ``mxfp4_block.dot_float``, so that
NaN and infinities propagate as in the layer.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numba import types

from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels.matmul import mxfp4_float as plain
from gptoss_ref.kernels.matmul import mxfp4_gemm_amx as amx
from gptoss_ref.kernels.matmul import mxfp4_gemm_int16 as int16
from gptoss_ref.kernels.matmul import mxfp4_gemv_int8 as int8
from gptoss_ref.kernels.matmul.amx import ROWS as TILE
from gptoss_ref.kernels.matmul.mxfp4_block import BLOCK, ROWS, SCALE_255, Stored
from gptoss_ref.kernels.matmul.mxfp4_planes import GROUP
from gptoss_ref.kernels.runtime.arrays import read_only
from gptoss_ref.kernels.runtime.buffers import add_all, copy_bias, floats
from gptoss_ref.kernels.runtime.isa import current_path, path_name
from gptoss_ref.kernels.runtime.jit import dispatched, jit, jit_inner
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4

FLOAT, INT8, INT16, AMX = np.uint8(0), np.uint16(1), np.uint32(2), np.uint64(3)
"""Arguments that select a method; Numba looks at their types only."""

FEW_TOKENS, WIDE = 4, 512
"""WIDE: the length from which a row is not short, at least a group of 8 blocks."""


def method_of(tokens: int, width: int) -> Any:
    """Return the method for ``tokens`` rows of ``width`` activations on the current path.

    For experts, ``width`` is the length of the shorter rows of the two matrices.
    """
    path = path_name()
    assert WIDE >= BLOCK * GROUP
    if path == "amx" and tokens > FEW_TOKENS:
        return AMX
    if path == "plain" or width < WIDE:
        return FLOAT
    return INT8 if tokens <= FEW_TOKENS else INT16


_METHODS: dict[Any, ModuleType] = {FLOAT: plain, INT8: int8, INT16: int16, AMX: amx}
"""Each module has PREPARED, the type of its prepared activations, and the functions below of the
same names; ``settle`` may be missing."""


def _named(method: Any) -> Any:
    """Return the method selected by an argument or, during compilation, by its type."""
    tokens = {types.uint8: FLOAT, types.uint16: INT8, types.uint32: INT16, types.uint64: AMX}
    return _METHODS[tokens.get(method, method)]


def _of(prepared: Any) -> Any:
    """Return the method of prepared activations or of their type."""
    class_ = getattr(prepared, "instance_class", type(prepared))
    return next(method for method in _METHODS.values() if method.PREPARED is class_)


@dispatched
def new(path: Any, method: Any, x: Any, rows: int, tiles: int) -> Any:
    """Allocate the prepared form of the rows ``x``, flat (R, M); ``quantise`` fills it.

    ``tiles``: number of tiles of 16 rows that :func:`settle` will get.
    """
    return _named(method).new


@dispatched
def quantise(path: Any, prepared: Any, row: int, g: int, groups: int) -> Any:
    """Prepare block ``g`` of row ``row``, which has ``groups`` blocks; its activations are set."""
    return _of(prepared).quantise


@dispatched
def settle(path: Any, prepared: Any, of: Any, team: Any) -> Any:
    """Finish the preparation of all rows. ``of``: the rows of the tiles, by expert (for AMX)."""
    return getattr(_of(prepared), "settle", _do_nothing)


@jit_inner
def _do_nothing(path: Any, prepared: Any, of: Any, team: Any) -> None:
    """There is nothing to finish."""


@dispatched
def workspace(prepared: Any, tokens: int, groups: int) -> Any:
    """Allocate the scratch arrays that :func:`multiply` needs for at most ``tokens`` tokens."""
    return _of(prepared).workspace


@dispatched
def multiply(
    path: Any, stored: Stored, block: int, rows: int, groups: int, prepared: Any, of: Any,
    of_at: int, tile: int, count: int, sums: Any, workspace: Any
) -> Any:  # fmt: skip
    """sums[m · 64 + r] = row r · activations m, for r < rows ≤ 64 and m < count.

    Args:
        block: number of the first block of the rows; each row has ``groups`` blocks.
        of: column m uses row of[of_at + m] of ``prepared``; ``of`` has ``SPARE`` more entries that
            can be read.
        tile: number of the tile in which m starts, among those given to :func:`settle`.
        sums: float32, with space for 32 more tokens.

    Returns:
        False if ``stored.scale_255`` refuses a scale byte 255.
    """
    return _of(prepared).multiply


@jit_inner
def prepare(path: Any, method: Any, x: Any, rows: int, tiles: int) -> Any:
    """Prepare the rows ``x``, flat (R, M), without :func:`settle`."""
    prepared = new(path, method, x, rows, tiles)
    groups = x.size // rows // BLOCK
    for row in range(rows):
        for g in range(groups):
            quantise(path, prepared, row, g, groups)
    return prepared


def stored_of(weight: MXFP4) -> Stored | None:
    """Return ``weight`` as kernels take it, or None if it is not contiguous.

    Raises:
        GptOssError: blocks that do not match the scales, arrays of other types than uint8, or an
            unknown ``scale_255``.
    """
    blocks, scales = weight.blocks, weight.scales
    if blocks.shape != (*scales.shape, BLOCK // 2):
        raise GptOssError(
            f"{weight.name}: MXFP4 blocks of shape {blocks.shape} do not fit scales of shape "
            f"{scales.shape}: expected {(*scales.shape, BLOCK // 2)}"
        )
    if not blocks.dtype == scales.dtype == np.uint8:
        raise GptOssError(
            f"{weight.name}: MXFP4 blocks of {blocks.dtype} and scales of {scales.dtype}: "
            f"expected uint8"
        )
    if not (blocks.flags.c_contiguous and scales.flags.c_contiguous):
        return None
    if weight.scale_255 not in SCALE_255:
        raise GptOssError(
            f"unknown scale_255 {weight.scale_255!r}: expected nan, exponent or error"
        )
    return Stored(
        read_only(blocks.reshape(-1)), read_only(scales.reshape(-1)), SCALE_255[weight.scale_255]
    )


def stored_or_copy(weight: MXFP4) -> Stored:
    """Return ``weight`` as kernels take it, copied if it is not contiguous; errors as above."""
    stored = stored_of(weight)
    if stored is None:
        blocks, scales = weight.blocks.copy(), weight.scales.copy()
        stored = stored_of(MXFP4(blocks, scales, weight.name, weight.scale_255))
        assert stored is not None
    return stored


def refuse_255(scales: Array, name: str) -> None:
    """Raise a CheckpointError with the place of a scale byte 255, if ``scales`` has one."""
    if scales.size and scales.max() == 255:
        where = [int(i) for i in np.argwhere(scales == 255)[0]]
        raise CheckpointError(
            f"{name}: scale byte 255 at {where}, NaN in the MX specification: expected 0 to 254 "
            f"(load with scale_255='nan' or 'exponent' to accept it)"
        )


def multiply_mxfp4(x: Array, weight: MXFP4, bias: Array, y: Array) -> None:
    """Compute y (T, N) = x (T, M) times ``weight`` (N, M) transposed, plus ``bias``, if any.

    Raises:
        CheckpointError: a scale byte is 255 and the weight's ``scale_255`` is ``"error"``.
    """
    outputs, failed = y.shape[1], np.zeros(1, np.bool_)
    arguments = (current_path(), method_of(*x.shape), x, *stored_or_copy(weight), bias, y, failed)
    run(_matmul, -(-outputs // ROWS), x.size * outputs, *arguments)
    if failed[0]:
        refuse_255(weight.scales, weight.name)


@jit
def _matmul(
    path: Any, method: Any, x: Any, blocks: Any, scales: Any, scale_255: int, bias: Any, y: Any,
    failed: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    tokens = x.shape[0]
    tiles = (tokens + TILE - 1) // TILE
    of = np.arange(tokens + int16.SPARE) % tokens
    prepared = prepare(path, method, x.reshape(-1), tokens, tiles)
    settle(path, prepared, of[:tokens], team)
    stored = Stored(blocks, scales, scale_255)
    _matmul_tasks(path, stored, prepared, of, bias, y, failed, tasks, team)


@jit_tasks
def _matmul_tasks(
    path: Any, stored: Stored, prepared: Any, of: Any, bias: Any, y: Any, failed: Any, start: int,
    stop: int
) -> None:  # fmt: skip
    """Compute the columns of y (T, N) for the rows of tasks ``start`` … ``stop`` − 1."""
    tokens, outputs = y.shape
    groups = prepared.x.size // tokens // BLOCK
    sums, scratch = floats((tokens + 32) * ROWS), workspace(prepared, tokens, groups)
    y_flat = y.reshape(-1)
    for first in range(start * ROWS, min(stop * ROWS, outputs), ROWS):
        rows = min(ROWS, outputs - first)
        block = first * groups
        if not multiply(
            path, stored, block, rows, groups, prepared, of, 0, 0, tokens, sums, scratch
        ):
            failed[0] = True
            break
        for t in range(tokens):
            row = y_flat[t * outputs + first : t * outputs + first + rows]
            copy_bias(bias, first, row)
            add_all(sums[t * ROWS : t * ROWS + rows], row)
