"""MXFP4 to floats and back, and products with an MXFP4 matrix; mirrors ``layers/mxfp4.py``.

``decode`` and ``encode`` are one pass over the blocks, by arithmetic, where the layer builds index
arrays; both give the layer's result exactly. ``matmul`` reads 4.25 bits a weight and never forms
the matrix: tasks of 64 rows, whose loops and error bound (1e-4 relative L2) are in ``_blocks.py``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numba import prange
from numpy.typing import DTypeLike, NDArray

from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels._blocks import (
    BLOCK,
    ROWS,
    SCALE_255,
    SPARE,
    doubled,
    product,
    quantise,
)
from gptoss_ref.kernels._jit import current_path, jit, jit_parallel
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels.threads import run
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4, MXFP4_BLOCK

Scale255 = Literal["nan", "exponent", "error"]
ScaleRule = Literal["floor", "ceil", "even", "fit"]
_RULES = {"floor": 0, "ceil": 1, "even": 2, "fit": 3}


def decode(
    blocks: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    *,
    scale_255: Scale255 = "nan",
    dtype: DTypeLike = np.float32,
    name: str = "MXFP4 scales",
) -> Array:
    """Values of ``blocks`` (…, M/32, 16) under ``scales`` (…, M/32): (…, M).

    Raises:
        CheckpointError: a scale byte is 255 and ``scale_255`` is ``"error"``.
        GptOssError: shapes that do not fit, or an unknown ``scale_255``.
    """
    if blocks.shape != (*scales.shape, MXFP4_BLOCK // 2):
        raise GptOssError(
            f"{name}: MXFP4 blocks of shape {blocks.shape} do not fit scales of shape "
            f"{scales.shape}: expected {(*scales.shape, MXFP4_BLOCK // 2)}"
        )
    code = scale_255_code(scale_255)
    if scale_255 == "error":
        refuse_255(scales, name)
    halves = np.ldexp(1.0, np.arange(256) - 128)  # float64 holds them all
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
    for block in range(scales.size):
        half = halves[scales[block]]
        for j in range(16):
            byte = np.int32(blocks[block * 16 + j])
            out[block * BLOCK + 2 * j] = doubled(np.int32(byte & np.int32(15))) * half
            out[block * BLOCK + 2 * j + 1] = doubled(np.int32(byte >> np.int32(4))) * half


def encode(x: Array, *, rule: ScaleRule = "floor") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise ``x`` (…, M), M a multiple of 32, to blocks (…, M/32, 16) and scales (…, M/32).

    Raises:
        GptOssError: M is no multiple of 32, or the rule is unknown.
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
    """E2M1 code nearest to value · to_unit, ties to the even code; the sign of zero is kept."""
    ratio = abs(value) * to_unit
    code = int(ratio > 0.25) + int(ratio >= 0.75) + int(ratio > 1.25) + int(ratio >= 1.75)
    code += int(ratio > 2.5) + int(ratio >= 3.5) + int(ratio > 5.0)
    return code | int(np.signbit(value)) << 3


@jit
def _scale_exponent(largest: float, rule: int) -> int:
    """Exponent of the shared scale: see the table of rules at ``layers.mxfp4.encode``."""
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


def scale_255_code(scale_255: str) -> int:
    """The number by which kernels know a meaning of the scale byte 255.

    Raises:
        GptOssError: there is no such meaning.
    """
    if scale_255 not in SCALE_255:
        raise GptOssError(f"unknown scale_255 {scale_255!r}: expected nan, exponent or error")
    return SCALE_255[scale_255]


def refuse_255(scales: NDArray[np.uint8], name: str) -> None:
    """Raise a CheckpointError that says where ``scales`` holds a byte 255, if it does."""
    if scales.size and scales.max() == 255:
        where = [int(i) for i in np.argwhere(scales == 255)[0]]
        raise CheckpointError(
            f"{name}: scale byte 255 at {where}, NaN in the MX specification: expected 0 to 254 "
            f"(load with scale_255='nan' or 'exponent' to accept it)"
        )


def flat(weight: MXFP4) -> tuple[Array, Array] | None:
    """Blocks and scales as flat read-only arrays, or None if they are not contiguous."""
    blocks, scales = weight.blocks, weight.scales
    if not (blocks.flags.c_contiguous and scales.flags.c_contiguous):
        return None
    return _read_only(blocks), _read_only(scales)


def _read_only(array: Array) -> Array:
    view = array.reshape(-1)
    view.flags.writeable = False
    return view


def matmul(x: Array, weight: MXFP4, bias: Array, y: Array) -> None:
    """y (T, N) = x (T, M) times ``weight`` (N, M) transposed, plus ``bias`` ((N,) or empty).

    Raises:
        CheckpointError: a scale byte is 255 and the weight's ``scale_255`` is ``"error"``.
    """
    tokens, outputs = y.shape
    stored = flat(weight)
    if stored is None:  # an awkward view: gathered some rows at a time
        for start in range(0, outputs, 4 * ROWS):
            rows = slice(start, start + 4 * ROWS)
            blocks, scales = weight.blocks[rows].copy(), weight.scales[rows].copy()
            part = np.empty((tokens, len(scales)), np.float32)
            matmul(x, MXFP4(blocks, scales, weight.name, weight.scale_255), bias[rows], part)
            y[:, rows] = part
        return
    if weight.scale_255 == "error":
        refuse_255(weight.scales, weight.name)
    planes = tokens == 1
    rounded = rounded_activations(x, planes)
    of = np.arange(tokens + SPARE) % tokens
    code = scale_255_code(weight.scale_255)
    work, tasks = x.size * outputs, -(-outputs // ROWS)
    arguments = (*stored, x.reshape(-1), *rounded, of, planes, code, bias, y)
    run(_matmul, _matmul_parallel, tasks, work, current_path(), *arguments)


def rounded_activations(x: Array, planes: bool) -> tuple[Array, Array, Array]:
    """``x`` (T, M) as int16 (T, M), factors float32 (T, M/32, or four times that), beyond (T,)."""
    tokens, width = x.shape
    q = np.empty(x.size, np.int16)
    factors = np.empty(x.size // BLOCK * (4 if planes else 1), np.float32)
    beyond = np.empty(tokens, np.bool_)
    _round(x.reshape(-1), width, planes, q, factors, beyond)
    return q, factors, beyond


@jit
def _round(x: Any, width: int, planes: bool, q: Any, factors: Any, beyond: Any) -> None:
    groups = width // BLOCK
    repeat = 4 if planes else 1
    for t in range(beyond.size):
        fits = True
        for g in range(groups):
            to, plane = (t * width + g * 8, groups * 8) if planes else (t * width + g * BLOCK, 0)
            at = (t * groups + g) * repeat
            good = quantise(x, t * width + g * BLOCK, q, to, plane, factors, at, repeat)
            fits = fits and good
        beyond[t] = not fits


@jit
def _matmul(
    path: Any,
    blocks: Any,
    scales: Any,
    x: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    planes: bool,
    scale_255: int,
    bias: Any,
    y: Any,
    start: int,
    stop: int,
) -> None:
    """Columns of y (T, N) for the rows of tasks ``start`` … ``stop`` − 1."""
    tokens, outputs = y.shape
    groups = x.size // tokens // BLOCK
    sums = np.empty((tokens + SPARE) * ROWS, np.float32)
    for first in range(start * ROWS, min(stop * ROWS, outputs), ROWS):
        rows = min(ROWS, outputs - first)
        product(
            path, blocks, scales, first * groups, rows, groups, scale_255,
            x, q, factors, beyond, of, 0, tokens, planes, sums,
        )  # fmt: skip
        for t in range(tokens):
            for r in range(rows):
                total = sums[t * ROWS + r]
                y[t, first + r] = total + widen(bias[first + r]) if bias.size else total


@jit_parallel
def _matmul_parallel(
    path: Any,
    blocks: Any,
    scales: Any,
    x: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    planes: bool,
    scale_255: int,
    bias: Any,
    y: Any,
    tasks: int,
    n: int,
) -> None:
    for t in prange(n):
        _matmul(
            path, blocks, scales, x, q, factors, beyond, of, planes, scale_255, bias, y,
            t * tasks // n, (t + 1) * tasks // n,
        )  # fmt: skip
