"""Online softmax: turn a block of scores into weights, and rescale the earlier sums.

For each row of scores there are m, the largest score so far, l, the sum of the weights
e^(score − m), and acc, the sum of weights times values (Milakov and Gimelshein, arXiv 1805.02867;
Dao et al., arXiv 2205.14135).

The code is written as vectors of 16 lanes without instructions of a particular CPU; LLVM splits
them into the vectors of the CPU. The Python function runs under ``NUMBA_DISABLE_JIT=1``. Loops over
slices that LLVM vectorises took 2.2 times as long with AVX-512 and 1.8 times with AVX2: LLVM does
not vectorise a maximum of floats that ignores NaN, and a maximum of ordered integers costs four
operations.

e^x is 2^n · e^r with |r| ≤ ln 2 / 2, within 2e-7 relative. No score exceeds the largest, so x ≤ 0:
below −87.3 a weight is 0, and nothing overflows. NaN, and ∞ − ∞, give NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config
from numba.extending import overload

from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.jit import LEAF
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, i32, index
from gptoss_ref.kernels.runtime.scalar import EXP_COEFFICIENTS, exp

LANES, HALF = 16, 8
MASKED = np.float32(-np.inf)

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_MAGIC = 12582912.0
"""1.5 · 2²³. Adding it rounds a number to an integer, in the low bits."""
_SMALLEST = -87.33654


def online_softmax(
    scores: Any, stride: int, rows: int, n: int, m: Any, l: Any, acc: Any, width: int
) -> None:  # fmt: skip
    """Add one block of ``n`` keys to m and l of ``rows`` rows; the caller adds the values.

    With m' the largest of m[r] and the row's scores, scores[r · stride + j] becomes e^(score − m');
    l and the row of ``acc`` are multiplied by e^(m − m'); the weights are added to l; m becomes m'.
    If all scores are −∞, the weights are 0. A NaN makes l NaN, and m ignores it.

    Args:
        stride: distance of the rows of scores, a multiple of 16; columns from ``n`` on may be
            overwritten.
        width: length of a row of ``acc``, a multiple of 16.
    """
    for row in range(rows):
        some = scores[row * stride : row * stride + n]
        most = m[row]
        for score in some:
            most = score if score > most else most
        base = np.float32(0.0) if most == MASKED else most  # −∞ − 0 gives weight 0; NaN stays NaN
        factor = exp(np.float32(m[row] - base))
        total = np.float32(0.0)
        for j in range(n):
            some[j] = exp(np.float32(some[j] - base))
            total += some[j]
        m[row], l[row] = most, l[row] * factor + total
        for c in range(row * width, (row + 1) * width):
            acc[c] *= factor


def _constant(value: float) -> Value:
    return vec.constant(f32, value, LANES)


def _exp(builder: ir.IRBuilder, x: Value) -> Value:
    """Return e^x for x ≤ 0 or NaN."""
    shifted = vec.multiply_add(builder, x, _constant(_LOG2E), _constant(_MAGIC))
    n = builder.fsub(shifted, _constant(_MAGIC))
    r = vec.multiply_add(builder, n, _constant(-_LN2_HIGH), x)
    r = vec.multiply_add(builder, n, _constant(-_LN2_LOW), r)
    p = _constant(EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = vec.multiply_add(builder, p, r, _constant(coefficient))
    y = builder.fadd(vec.multiply_add(builder, p, builder.fmul(r, r), r), _constant(1.0))
    bits = builder.bitcast(shifted, vec.vector(i32, LANES))
    power = builder.shl(
        builder.add(bits, vec.constant(i32, 127, LANES)), vec.constant(i32, 23, LANES)
    )
    y = builder.fmul(y, builder.bitcast(power, x.type))
    return builder.select(builder.fcmp_ordered("<", x, _constant(_SMALLEST)), _constant(0.0), y)


def _larger(builder: ir.IRBuilder, a: Value, b: Value) -> Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _in_all_lanes(builder: ir.IRBuilder, combine: Any, a: Value) -> Value:
    """Return a vector with ``combine`` of all lanes of ``a`` in each lane."""
    for distance in (8, 4, 2, 1):
        a = combine(a, vec.shuffle(builder, a, [lane ^ distance for lane in range(LANES)]))
    return a


@vec.instructions
def _vectors(
    builder: ir.IRBuilder, scores: Value, stride: Value, rows: Value, n: Value, m: Value, l: Value,
    acc: Value, width: Value
) -> None:  # fmt: skip
    """Compute :func:`online_softmax`; lanes from ``n`` on count as −∞."""
    type_, first = vec.vector(f32, LANES), i32(0)
    steps = builder.udiv(builder.add(n, index(LANES - 1)), index(LANES))
    numbers = vec.constant(i32, list(range(LANES)))
    state = vec.Accumulators(builder, 1, 2, type_)  # the largest, the sum

    with cgutils.for_range(builder, rows) as outer:
        row = outer.index
        start = builder.gep(scores, [builder.mul(row, stride)])
        before = vec.splat(builder, vec.load(builder, m, row, f32), LANES)
        state[0, 0], state[0, 1] = before, _constant(0.0)
        with cgutils.for_range(builder, steps) as loop:
            at = builder.mul(loop.index, index(LANES))
            left = vec.splat(builder, builder.trunc(builder.sub(n, at), i32), LANES)
            inside = builder.icmp_signed("<", numbers, left)
            loaded = vec.load(builder, start, at, type_)
            score = builder.select(inside, loaded, _constant(-np.inf))
            vec.store(builder, score, start, at)
            state[0, 0] = _larger(builder, score, state[0, 0])
        most = _in_all_lanes(builder, lambda a, b: _larger(builder, a, b), state[0, 0])
        masked = builder.fcmp_ordered("==", most, _constant(-np.inf))
        base = builder.select(masked, _constant(0.0), most)  # −∞ − 0 gives weight 0
        with cgutils.for_range(builder, steps) as loop:
            at = builder.mul(loop.index, index(LANES))
            score = vec.load(builder, start, at, type_)
            weight = _exp(builder, builder.fsub(score, base))
            vec.store(builder, weight, start, at)
            state[0, 1] = builder.fadd(state[0, 1], weight)
        sum_ = _in_all_lanes(builder, builder.fadd, state[0, 1])
        factor = _exp(builder, builder.fsub(before, base))

        vec.store(builder, builder.extract_element(most, first), m, row)
        old = builder.fmul(vec.load(builder, l, row, f32), builder.extract_element(factor, first))
        vec.store(builder, builder.fadd(old, builder.extract_element(sum_, first)), l, row)
        changed = builder.fcmp_unordered("!=", builder.extract_element(factor, first), f32(1.0))
        with builder.if_then(changed):
            line = builder.gep(acc, [builder.mul(row, width)])
            with cgutils.for_range(builder, builder.udiv(width, index(LANES))) as loop:
                at = builder.mul(loop.index, index(LANES))
                scaled = builder.fmul(vec.load(builder, line, at, type_), factor)
                vec.store(builder, scaled, line, at)


@overload(online_softmax, **LEAF)
def _online_softmax(*arguments: Any) -> Any:
    if config.BOUNDSCHECK:
        return online_softmax

    def vectors(scores, stride, rows, n, m, l, acc, width):  # type: ignore[no-untyped-def]
        _vectors(scores, stride, rows, n, m, l, acc, width)

    return vectors


def online_softmax_lanes(scores: Any, n: int, m: Any, l: Any, factors: Any) -> None:
    """Like :func:`online_softmax`, if the rows are the 8 lanes of ``scores`` (n, 8), flat.

    It does not change acc; the caller multiplies it by ``factors``.

    Args:
        scores: row ``n`` may be overwritten if n is odd.
        factors: overwritten with e^(m − m') of each lane.
    """
    for lane in range(HALF):
        most = m[lane]
        for score in scores[lane : n * HALF : HALF]:
            most = score if score > most else most
        base = np.float32(0.0) if most == MASKED else most
        factors[lane], total = exp(np.float32(m[lane] - base)), np.float32(0.0)
        for j in range(lane, n * HALF, HALF):
            scores[j] = exp(np.float32(scores[j] - base))
            total += scores[j]
        m[lane], l[lane] = most, l[lane] * factors[lane] + total


@overload(online_softmax_lanes, **LEAF)
def _online_softmax_lanes(*arguments: Any) -> Any:
    if config.BOUNDSCHECK:
        return online_softmax_lanes

    def vectors(scores, n, m, l, factors):  # type: ignore[no-untyped-def]
        for j in range(n * HALF, (n + 1) // 2 * LANES):
            scores[j] = MASKED
        _lanes(scores, (n + 1) // 2, m, l, factors)

    return vectors


@vec.instructions
def _lanes(
    builder: ir.IRBuilder, scores: Value, steps: Value, m: Value, l: Value, factors: Value
) -> None:
    """Compute :func:`online_softmax_lanes` with two keys per vector."""
    type_, half = vec.vector(f32, LANES), vec.vector(f32, HALF)
    zero, twice, once = index(0), [*range(HALF), *range(HALF)], range(HALF)
    across = [lane ^ HALF for lane in range(LANES)]
    state = vec.Accumulators(builder, 1, 2, type_)  # the largest, the sum
    before = vec.shuffle(builder, vec.load(builder, m, zero, half), twice)
    state[0, 0] = before
    with cgutils.for_range(builder, steps) as loop:
        score = vec.load(builder, scores, builder.mul(loop.index, index(LANES)), type_)
        state[0, 0] = _larger(builder, score, state[0, 0])
    most = _larger(builder, state[0, 0], vec.shuffle(builder, state[0, 0], across))
    masked = builder.fcmp_ordered("==", most, _constant(-np.inf))
    base = builder.select(masked, _constant(0.0), most)
    with cgutils.for_range(builder, steps) as loop:
        at = builder.mul(loop.index, index(LANES))
        weight = _exp(builder, builder.fsub(vec.load(builder, scores, at, type_), base))
        vec.store(builder, weight, scores, at)
        state[0, 1] = builder.fadd(state[0, 1], weight)
    sum_ = builder.fadd(state[0, 1], vec.shuffle(builder, state[0, 1], across))
    factor = vec.shuffle(builder, _exp(builder, builder.fsub(before, base)), once)
    total = builder.fmul(vec.load(builder, l, zero, half), factor)
    total = builder.fadd(total, vec.shuffle(builder, sum_, once))
    for value, to in ((vec.shuffle(builder, most, once), m), (total, l), (factor, factors)):
        vec.store(builder, value, to, zero)
