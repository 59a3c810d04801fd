"""MXFP4 to floats and back, and products with an MXFP4 matrix; mirrors ``layers/mxfp4.py``.

``decode`` and ``encode`` make one pass over the blocks and compute each value by arithmetic; the
layer builds index arrays. Both give exactly the layer's result. ``matmul`` reads 4.25 bits per
weight and never forms the matrix: a task has 64 rows. The methods and their error bounds (relative
L2 of 1e-4 at most) are in ``matmul/``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.matmul.amx import ROWS as TILE
from gptoss_ref.kernels.matmul.gemm import add_all, widen_all
from gptoss_ref.kernels.matmul.mxfp4_block import BLOCK, ROWS, SCALE_255, Stored, decode_values
from gptoss_ref.kernels.matmul.mxfp4_gemm_int16 import SPARE
from gptoss_ref.kernels.matmul.mxfp4_methods import (
    method_of,
    multiply,
    prepare,
    refuse_255,
    scale_255_code,
    settle,
    stored_of,
    sums_of,
    workspace,
)
from gptoss_ref.kernels.runtime.buffers import fill
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4, MXFP4_BLOCK

Scale255 = Literal["nan", "exponent", "error"]
"""The meaning of a scale byte of 255."""

ScaleRule = Literal["floor", "ceil", "even", "fit"]
"""The rule that derives the scale of a block from its largest magnitude, see :func:`encode`."""

_RULES = {"floor": 0, "ceil": 1, "even": 2, "fit": 3}


def decode(
    blocks: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    *,
    scale_255: Scale255 = "nan",
    dtype: DTypeLike = np.float32,
    name: str = "MXFP4 scales",
) -> Array:
    """Decode ``blocks`` (…, M/32, 16) with ``scales`` (…, M/32) to values (…, M).

    Raises:
        CheckpointError: a scale byte is 255 and ``scale_255`` is ``"error"``.
        GptOssError: shapes that do not match, or an unknown ``scale_255``.
    """
    if blocks.shape != (*scales.shape, MXFP4_BLOCK // 2):
        raise GptOssError(
            f"{name}: MXFP4 blocks of shape {blocks.shape} do not fit scales of shape "
            f"{scales.shape}: expected {(*scales.shape, MXFP4_BLOCK // 2)}"
        )
    code = scale_255_code(scale_255)
    if scale_255 == "error":
        refuse_255(scales, name)
    halves = np.ldexp(1.0, np.arange(256) - 128)  # float64 holds all of them
    if code == SCALE_255["nan"]:
        halves[255] = np.nan
    *lead, groups = scales.shape
    out = np.empty((*lead, groups * MXFP4_BLOCK), dtype)
    _decode(
        np.ascontiguousarray(blocks).reshape(-1),
        np.ascontiguousarray(scales).reshape(-1),
        halves.astype(out.dtype),
        out.reshape(-1),
    )
    return out


@jit
def _decode(blocks: Any, scales: Any, halves: Any, out: Any) -> None:
    for g in range(scales.size):
        bytes_, values = blocks[g * 16 : g * 16 + 16], out[g * BLOCK : (g + 1) * BLOCK]
        decode_values(bytes_, halves[scales[g]], values)


def encode(x: Array, *, rule: ScaleRule = "floor") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise ``x`` (…, M), with M a multiple of 32, to blocks (…, M/32, 16) and scales (…, M/32).

    Raises:
        GptOssError: M is not a multiple of 32, or the rule is unknown.
    """
    x = np.ascontiguousarray(x, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] % MXFP4_BLOCK:
        raise GptOssError(
            f"MXFP4 encodes blocks of {MXFP4_BLOCK} along the last axis: got shape {x.shape}"
        )
    if rule not in _RULES:
        raise GptOssError(f"unknown MXFP4 scale rule {rule!r}: expected floor, ceil, even or fit")
    shape = (*x.shape[:-1], x.shape[-1] // MXFP4_BLOCK)
    blocks = np.empty((*shape, MXFP4_BLOCK // 2), np.uint8)
    scales = np.empty(shape, np.uint8)
    _encode(x.reshape(-1), _RULES[rule], blocks.reshape(-1), scales.reshape(-1))
    return blocks, scales


@jit
def _encode(x: Any, rule: int, blocks: Any, scales: Any) -> None:
    for block in range(scales.size):
        at = block * BLOCK
        largest = 0.0
        finite = True
        for i in range(BLOCK):
            magnitude = abs(x[at + i])
            finite = finite and magnitude < np.inf  # False for NaN too
            largest = max(largest, magnitude) if finite else 1.0
        exponent = _scale_exponent(largest, rule) if finite else 0
        scales[block] = exponent + 127 if finite else 255
        to_unit = math.ldexp(1.0, -exponent)
        for j in range(16):
            low, high = _code(x[at + 2 * j], to_unit), _code(x[at + 2 * j + 1], to_unit)
            blocks[block * 16 + j] = low | high << 4


@jit
def _code(value: float, to_unit: float) -> int:
    """Return the E2M1 code nearest to value · to_unit (ties to even); zero keeps its sign."""
    ratio = abs(value) * to_unit
    code = int(ratio > 0.25) + int(ratio >= 0.75) + int(ratio > 1.25) + int(ratio >= 1.75)
    code += int(ratio > 2.5) + int(ratio >= 3.5) + int(ratio > 5.0)
    return code | int(np.signbit(value)) << 3


@jit
def _scale_exponent(largest: float, rule: int) -> int:
    """Return the exponent of the shared scale; ``layers.mxfp4.encode`` has the table of rules."""
    if largest == 0.0:
        return -127
    mantissa, exponent = math.frexp(largest)  # largest = mantissa · 2^exponent, ½ ≤ mantissa < 1
    chosen = int(exponent) - 3
    if rule == 1:
        chosen += int(mantissa > 0.5)
    elif rule == 2:
        chosen += int(mantissa >= 0.875)
    elif rule == 3:
        chosen += int(mantissa > 0.75)
    return min(max(chosen, -127), 127)


def matmul(x: Array, weight: MXFP4, bias: Array, y: Array) -> None:
    """Compute y (T, N) = x (T, M) times ``weight`` (N, M) transposed, plus ``bias``, if any.

    Raises:
        CheckpointError: a scale byte is 255 and the weight's ``scale_255`` is ``"error"``.
    """
    tokens, outputs = y.shape
    stored = stored_of(weight)
    if stored is None:  # a non-contiguous view: copied some rows at a time
        for start in range(0, outputs, 4 * ROWS):
            rows = slice(start, start + 4 * ROWS)
            blocks, scales = weight.blocks[rows].copy(), weight.scales[rows].copy()
            part = np.empty((tokens, len(scales)), np.float32)
            matmul(x, MXFP4(blocks, scales, weight.name, weight.scale_255), bias[rows], part)
            y[:, rows] = part
        return
    failed = np.zeros(1, np.bool_)
    tasks = -(-outputs // ROWS)
    run(
        _matmul, tasks, x.size * outputs, current_path(), method_of(*x.shape), x, *stored, bias, y,
        failed,
    )  # fmt: skip
    if failed[0]:
        refuse_255(weight.scales, weight.name)


@jit
def _matmul(
    path: Any, method: Any, x: Any, blocks: Any, scales: Any, scale_255: int, bias: Any, y: Any,
    failed: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    tokens = x.shape[0]
    tiles = (tokens + TILE - 1) // TILE
    of = np.arange(tokens + SPARE) % tokens
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
    sums, scratch = sums_of(tokens), workspace(prepared, tokens, groups)
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
            if bias.size:
                widen_all(bias[first : first + rows], row)
            else:
                fill(row, np.float32(0.0))
            add_all(sums[t * ROWS : t * ROWS + rows], row)
