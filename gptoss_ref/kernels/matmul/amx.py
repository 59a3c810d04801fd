"""Products of many activations with bfloat16 weights on AMX, the matrix unit of some x86 CPUs.

A tile register holds 16 rows of 64 bytes. One instruction, ``tdpbf16ps``, multiplies 16 rows of 32
bfloat16 weights by 16 rows of 32 activations, and adds the products to 16 x 16 float32 sums.
Weights are loaded as they are stored. Activations are float32; each is split into **planes**,
bfloat16 numbers whose sum is exactly the float32 number:

    x = hi + mid + lo,   hi = bfloat16(x), mid = bfloat16(x − hi), lo = x − hi − mid

because each plane holds 8 of the 24 bits. Three products with exact factors replace one, so the
error is that of a float32 sum: within n · 2⁻²⁴ of Σ |w·x|, relative L2 below 1e-6. Numbers below
2⁻¹²⁶ count as zero, so an x below 2⁻¹⁰⁸ loses some of its last bits. For infinities and NaN, ``hi``
is the value and the other planes are zero. An infinite *weight* gives NaN if the planes have
different signs or are zero: ``linear`` computes such a product again without tiles.

The tile configuration belongs to the thread: a kernel calls ``configure`` before its first product
and ``release`` after the last one. All of this runs on the path ``amx`` only.

The layout of **split** activations: tiles of 16 rows, one after the other; in a tile, for each 32
columns (a *step*), its planes; in a plane, for each pair of columns, the 16 rows' two bfloat16
numbers. That is 1024 bytes per plane, aligned to cache lines: unaligned tiles load at a third of
the speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import overload

from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.buffers import on_cache_line
from gptoss_ref.kernels.runtime.jit import LEAF, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, i8, i32, index
from gptoss_ref.kernels.runtime.tasks import jit_tasks

ROWS = 16
"""Rows of a tile, of weights or of activations."""
STEP = 32
"""Columns that one instruction multiplies."""
PLANES = 3
STEP_WORDS = PLANES * 256
"""Words (uint32) of one step of 16 split rows."""
SUMS = (2 * ROWS) ** 2
"""Number of floats that ``product`` needs for its sums."""

_UPPER, _HALF, _EXPONENT, _QUIET_NAN = -0x10000, 0x8000, 0x7F800000, 0x7FC00000


@jit_tasks
def split_rows(x: Any, of: Any, planes: Any, start: int, stop: int) -> None:
    """Split rows ``of`` of ``x``, flat, into ``planes``: tiles ``start`` … ``stop`` − 1.

    The first tile has rows of[0] … of[15], the next of[16] … of[31] and so on; the last tile
    repeats its last row.
    """
    tiles = (of.size + ROWS - 1) // ROWS
    steps = planes.size // tiles // STEP_WORDS
    for tile in range(start, stop):
        last = min(ROWS, of.size - tile * ROWS) - 1
        for s in range(steps):
            to = (tile * steps + s) * STEP_WORDS
            split_step(x, s * STEP, steps * STEP, of, tile * ROWS, last, planes, to)


@jit_inner
def planes_of(tiles: int, inputs: int) -> Any:
    """Allocate planes for ``tiles`` tiles of rows of ``inputs`` values."""
    return on_cache_line(4 * tiles * (inputs // STEP) * STEP_WORDS).view(np.uint32)


def _instruction(builder: ir.IRBuilder, name: str, *arguments: Value | int) -> None:
    """Call a tile instruction; plain integers are numbers of tile registers."""
    values = [ir.Constant(i8, a) if isinstance(a, int) else a for a in arguments]
    vec.call(builder, f"llvm.x86.{name}", ir.VoidType(), *values)


def configure() -> None:
    """Configure all eight tile registers of this thread as 16 rows of 64 bytes."""


@vec.leaf(configure)
def _configure(builder: ir.IRBuilder) -> None:
    palette, row_bytes, rows = [1, *[0] * 15], [64, 0] * 8 + [0] * 16, [ROWS] * 8 + [0] * 8
    content = ir.Constant(ir.ArrayType(i8, 64), palette + row_bytes + rows)
    where = cgutils.global_constant(builder, "tiles", content)
    _instruction(builder, "ldtilecfg", builder.bitcast(where, i8.as_pointer()))


def release() -> None:
    """Release the tile registers of this thread."""


@vec.leaf(release)
def _release(builder: ir.IRBuilder) -> None:
    _instruction(builder, "tilerelease")


def _rounded(builder: ir.IRBuilder, x: Value) -> Value:
    """Return the nearest bfloat16 number to each float, as the bits of a float; NaN stays NaN.

    A finite number that would round to infinity is truncated instead.
    """

    def constant(value: int) -> Value:
        return vec.constant(i32, value, x.type.count)

    bits = builder.bitcast(x, vec.vector(i32, x.type.count))
    near = builder.and_(builder.add(bits, constant(_HALF)), constant(_UPPER))
    cut = builder.and_(bits, constant(_UPPER))
    large = builder.icmp_unsigned(
        "==", builder.and_(near, constant(_EXPONENT)), constant(_EXPONENT)
    )
    rounded = builder.select(large, cut, near)
    return builder.select(builder.fcmp_unordered("uno", x, x), constant(_QUIET_NAN), rounded)


def _planes(builder: ir.IRBuilder, x: Value) -> list[Value]:
    """Return the bits of bfloat16 numbers whose sum is ``x``, in the upper halves of words."""
    planes, rest = [], x
    for _ in range(PLANES):
        planes.append(_rounded(builder, rest))
        rest = builder.fsub(rest, builder.bitcast(planes[-1], x.type))
        # infinity − infinity, and NaN: the rest is zero
        number = builder.fcmp_ordered("ord", rest, rest)
        rest = builder.select(number, rest, vec.constant(f32, 0.0, x.type.count))
    return planes


def _paired(builder: ir.IRBuilder, a: Value, b: Value) -> Value:
    """Return the upper halves of 32 words, two per word, the earlier one in the lower half."""
    even = vec.shuffle(builder, a, range(0, 2 * ROWS, 2), b)
    odd = vec.shuffle(builder, a, range(1, 2 * ROWS, 2), b)
    return builder.or_(builder.lshr(even, vec.constant(i32, 16, ROWS)), odd)


def split_step(
    x: Any, column: int, width: int, of: Any, of_at: int, last: int, planes: Any, to: int
) -> None:
    """Split one step of 16 rows: columns from ``column`` on of rows of[of_at] … of[of_at + last].

    ``x`` is flat, with rows of ``width`` values; the planes are written from planes[to] on.
    """
    step = planes[to : to + STEP_WORDS].reshape(PLANES, ROWS, ROWS)  # plane, pair, row
    for r in range(ROWS):
        at = of[of_at + min(r, last)] * width + column
        rest = x[at : at + STEP].copy()
        for p in range(PLANES):
            bits = rest.view(np.uint32)
            near = bits + np.uint32(_HALF) & np.uint32(0xFFFF0000)
            large = (near & _EXPONENT) == _EXPONENT
            rounded = np.where(large, bits & np.uint32(0xFFFF0000), near)
            rounded = np.where(np.isnan(rest), np.uint32(_QUIET_NAN), rounded)
            step[p, :, r] = rounded[0::2] >> 16 | rounded[1::2]
            with np.errstate(invalid="ignore"):
                rest = np.nan_to_num(rest - rounded.view(np.float32), nan=0.0)


@vec.leaf(split_step)
def _split_step(
    builder: ir.IRBuilder, x: Value, column: Value, width: Value, of: Value, of_at: Value,
    last: Value, planes: Value, to: Value
) -> None:  # fmt: skip
    source, floats = builder.gep(x, [column]), vec.vector(f32, ROWS)
    words: list[list[Value]] = [[] for _ in range(PLANES)]  # [plane][row]
    for r in range(ROWS):
        inside = builder.icmp_signed("<", index(r), last)
        number = builder.add(of_at, builder.select(inside, index(r), last))
        at = builder.mul(vec.load(builder, of, number, vec.i64), width)
        low, high = (
            _planes(builder, vec.load(builder, source, builder.add(at, index(h)), floats))
            for h in (0, ROWS)
        )
        for p in range(PLANES):
            words[p].append(_paired(builder, low[p], high[p]))
    for p in range(PLANES):
        for pair, words_of_pair in enumerate(vec.transposed(builder, words[p])):
            at = builder.add(to, index(p * 256 + pair * ROWS))
            vec.store(builder, words_of_pair, planes, at)


def _product_of(tiles: int) -> Any:
    """Return the product of 32 rows of weights with 1 or 2 tiles of split activations."""

    def emit(
        builder: ir.IRBuilder, weights: Value, at: Value, planes: Value, tile: Value, steps: Value,
        sums: Value
    ) -> None:  # fmt: skip
        def place(pointer: Value, offset: Value) -> Value:
            return builder.bitcast(builder.gep(pointer, [offset]), i8.as_pointer())

        row_bytes = builder.mul(steps, index(2 * STEP))
        tile_bytes = builder.mul(steps, index(4 * STEP_WORDS))
        rows = [place(weights, at)]
        rows.append(builder.gep(rows[0], [builder.mul(row_bytes, index(ROWS))]))
        tokens = [builder.gep(place(planes, index(0)), [builder.mul(tile_bytes, tile)])]
        tokens.append(builder.gep(tokens[0], [tile_bytes]))
        line = index(64)
        for t in range(2 * tiles):
            _instruction(builder, "tilezero", t)
        with cgutils.for_range(builder, steps) as loop:
            at = builder.mul(loop.index, line)
            for r in range(2):
                _instruction(builder, "tileloadd64", 4 + r, builder.gep(rows[r], [at]), row_bytes)
            at = builder.mul(loop.index, index(4 * STEP_WORDS))
            for p in range(PLANES):
                plane = builder.add(at, index(1024 * p))
                for t in range(tiles):
                    where = builder.gep(tokens[t], [plane])
                    _instruction(builder, "tileloadd64", 6 + t, where, line)
                for t in range(tiles):
                    for r in range(2):
                        _instruction(builder, "tdpbf16ps", 2 * t + r, 4 + r, 6 + t)
        for t in range(tiles):
            for r in range(2):
                where = place(sums, index(r * ROWS * 2 * ROWS + t * ROWS))
                _instruction(builder, "tilestored64", 2 * t + r, where, index(8 * ROWS))

    return vec.instructions(emit)


_product_1, _product_2 = _product_of(1), _product_of(2)


def product(
    weights: Any, at: int, planes: Any, tile: int, steps: int, count: int, bias: Any, sums: Any,
    out: Any, to: int, stride: int
) -> None:  # fmt: skip
    """out[to + m · stride + r] = row r · activations m + bias[r], for r < 32, m < count ≤ 32.

    Args:
        weights: bfloat16 bits, flat; 32 rows of ``steps`` · 32 values, from index ``at`` on.
        planes: split activations in rows of the same length; m counts from tile number ``tile``.
        bias: float32 (32,).
        sums: float32 (SUMS,), overwritten.
    """
    inputs = steps * STEP
    w = (weights[at : at + 32 * inputs].astype(np.uint32) << 16).view(np.float32).reshape(32, -1)
    split = planes.reshape(-1, steps, PLANES, ROWS, ROWS)  # tile, step, plane, pair, row
    for m in range(count):
        words = split[tile + m // ROWS, :, :, :, m % ROWS]  # step, plane, pair
        halves = np.stack([words << 16, words & 0xFFFF0000], -1)  # step, plane, pair, 2
        x = halves.view(np.float32).transpose(1, 0, 2, 3).reshape(PLANES, inputs)
        with np.errstate(invalid="ignore"):
            out[to + m * stride : to + m * stride + 32] = (x @ w.T).sum(0) + bias


@vec.instructions
def _turn(
    builder: ir.IRBuilder, sums: Value, count: Value, bias: Value, out: Value, to: Value,
    stride: Value
) -> None:  # fmt: skip
    """out[to + m · stride + r] = sums[r, m] + bias[r] for m < count."""
    type_ = vec.vector(f32, ROWS)
    for tokens in (0, ROWS):
        with builder.if_then(builder.icmp_signed("<", index(tokens), count)):
            for rows in (0, ROWS):
                square = [
                    vec.load(builder, sums, index((rows + r) * 2 * ROWS + tokens), type_)
                    for r in range(ROWS)
                ]
                b = vec.load(builder, bias, index(rows), type_)
                for m, column in enumerate(vec.transposed(builder, square), tokens):
                    with builder.if_then(builder.icmp_signed("<", index(m), count)):
                        at = builder.add(to, builder.mul(stride, index(m)))
                        at = builder.add(at, index(rows))
                        vec.store(builder, builder.fadd(column, b), out, at)


@overload(product, **LEAF)
def _product_on_tiles(*arguments: Any) -> Any:
    # fmt: off
    def tiles(weights, at, planes, tile, steps, count, bias,  # type: ignore[no-untyped-def]
              sums, out, to, stride):
        if count > ROWS:
            _product_2(weights, at, planes, tile, steps, sums)
        else:
            _product_1(weights, at, planes, tile, steps, sums)
        _turn(sums, count, bias, out, to, stride)
    # fmt: on

    return tiles
