"""Online softmax: turn a block of scores into weights, and rescale the earlier sums.

For each row of scores there are m, the largest score so far, l, the sum of the weights
e^(score − m), and acc, the sum of weights times values (Milakov and Gimelshein, arXiv 1805.02867;
Dao et al., arXiv 2205.14135).

The code is written as vectors of 16 lanes without instructions of a particular CPU. Loops over
slices took 2.2 times as long with AVX-512 and 1.8 times with AVX2: LLVM does not vectorise a
maximum of floats that ignores NaN, and a maximum of ordered integers costs four operations.

e^x is 2^n · e^r with |r| ≤ ln 2 / 2, within 2e-7 relative. No score exceeds the largest, so x ≤ 0:
below −87.3 a weight is 0, and nothing overflows. NaN, and ∞ − ∞, give NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime import scalar
from gptoss_ref.kernels.runtime.jit import jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, i32, index
from gptoss_ref.kernels.runtime.scalar import exp

LANES, HALF = 16, 8
MASKED = np.float32(-np.inf)


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
        factor = _row(scores[row * stride : row * stride + n], m, l, row)
        for c in range(row * width, (row + 1) * width):
            acc[c] *= factor


@jit_inner
def _row(scores: Any, m: Any, l: Any, at: int) -> Any:
    """Turn the scores of a row into weights, update m[at] and l[at], and return e^(m − m')."""
    most, total = m[at], np.float32(0.0)
    for score in scores:
        most = score if score > most else most
    base = np.float32(0.0) if most == MASKED else most  # −∞ − 0 gives weight 0; NaN stays NaN
    factor = exp(np.float32(m[at] - base))
    for j in range(scores.size):
        scores[j] = exp(np.float32(scores[j] - base))
        total += scores[j]
    m[at], l[at] = most, l[at] * factor + total
    return factor


def _constant(value: Any) -> Value:
    return vec.constant(f32, value, LANES)


def _exp(builder: ir.IRBuilder, x: Value) -> Value:
    """Return e^x for x ≤ 0 or NaN."""
    shifted = vec.multiply_add(builder, x, _constant(scalar.LOG2E), _constant(scalar.MAGIC))
    n = builder.fsub(shifted, _constant(scalar.MAGIC))
    r = vec.multiply_add(builder, n, _constant(-scalar.LN2_HIGH), x)
    r = vec.multiply_add(builder, n, _constant(-scalar.LN2_LOW), r)
    p = _constant(scalar.EXP_COEFFICIENTS[0])
    for coefficient in scalar.EXP_COEFFICIENTS[1:]:
        p = vec.multiply_add(builder, p, r, _constant(coefficient))
    y = builder.fadd(vec.multiply_add(builder, p, builder.fmul(r, r), r), _constant(1.0))
    bits = builder.bitcast(shifted, vec.vector(i32, LANES))
    power = builder.shl(
        builder.add(bits, vec.constant(i32, 127, LANES)), vec.constant(i32, 23, LANES)
    )
    y = builder.fmul(y, builder.bitcast(power, x.type))
    return builder.select(
        builder.fcmp_ordered("<", x, _constant(scalar.SMALLEST)), _constant(0.0), y
    )


def _weights(
    builder: ir.IRBuilder, scores: Value, steps: Value, before: Value, distances: Sequence[int]
) -> tuple[Value, Value, Value]:
    """Turn vectors of scores into weights, given the largest scores so far.

    The lanes of a row are those at these ``distances`` (by exclusive or).

    Returns:
        The largest score, the factor of the earlier sums and the sum of the weights, in each lane.
    """

    def combined(a: Value, combine: Callable[[Value, Value], Value]) -> Value:
        for distance in distances:
            a = combine(a, vec.shuffle(builder, a, [lane ^ distance for lane in range(LANES)]))
        return a

    def larger(a: Value, b: Value) -> Value:
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    state = vec.Accumulators(builder, 1, 2, before.type)  # the largest, the sum
    state[0, 0] = before
    with cgutils.for_range(builder, steps) as loop:
        at = builder.mul(loop.index, index(LANES))
        state[0, 0] = larger(vec.load(builder, scores, at, before.type), state[0, 0])
    most = combined(state[0, 0], larger)
    masked = builder.fcmp_ordered("==", most, _constant(-np.inf))
    base = builder.select(masked, _constant(0.0), most)  # −∞ − 0 gives weight 0
    with cgutils.for_range(builder, steps) as loop:
        at = builder.mul(loop.index, index(LANES))
        score = vec.load(builder, scores, at, before.type)
        weight = _exp(builder, builder.fsub(score, base))
        vec.store(builder, weight, scores, at)
        state[0, 1] = builder.fadd(state[0, 1], weight)
    factor = _exp(builder, builder.fsub(before, base))
    return most, factor, combined(state[0, 1], builder.fadd)


@vec.leaf(online_softmax, checked=True)
def _rows(
    builder: ir.IRBuilder, scores: Value, stride: Value, rows: Value, n: Value, m: Value, l: Value,
    acc: Value, width: Value
) -> None:  # fmt: skip
    """Lanes from ``n`` on count as −∞."""
    type_, first = vec.vector(f32, LANES), i32(0)
    steps = builder.udiv(builder.add(n, index(LANES - 1)), index(LANES))
    left = builder.urem(n, index(LANES))
    inside = vec.first_lanes(builder, left, LANES)
    with cgutils.for_range(builder, rows) as outer:
        row = outer.index
        start = builder.gep(scores, [builder.mul(row, stride)])
        with builder.if_then(builder.icmp_unsigned("!=", left, index(0))):
            at = builder.sub(n, left)
            score = vec.load(builder, start, at, type_)
            vec.store(builder, builder.select(inside, score, _constant(-np.inf)), start, at)
        before = vec.splat(builder, vec.load(builder, m, row, f32), LANES)
        each = _weights(builder, start, steps, before, (8, 4, 2, 1))
        most, factor, total = (builder.extract_element(a, first) for a in each)
        vec.store(builder, most, m, row)
        old = builder.fmul(vec.load(builder, l, row, f32), factor)
        vec.store(builder, builder.fadd(old, total), l, row)
        with builder.if_then(builder.fcmp_unordered("!=", factor, f32(1.0))):
            line = builder.gep(acc, [builder.mul(row, width)])
            with cgutils.for_range(builder, builder.udiv(width, index(LANES))) as loop:
                at = builder.mul(loop.index, index(LANES))
                scaled = builder.fmul(vec.load(builder, line, at, type_), each[1])
                vec.store(builder, scaled, line, at)


def online_softmax_lanes(scores: Any, n: int, m: Any, l: Any, factors: Any) -> None:
    """Like :func:`online_softmax`, if the rows are the 8 lanes of ``scores`` (n, 8), flat.

    It does not change acc; the caller multiplies it by ``factors``.

    Args:
        scores: row ``n`` may be overwritten if n is odd.
        factors: overwritten with e^(m − m') of each lane.
    """
    for lane in range(HALF):
        factors[lane] = _row(scores[lane : n * HALF : HALF], m, l, lane)


@vec.leaf(online_softmax_lanes, checked=True)
def _lanes(
    builder: ir.IRBuilder, scores: Value, n: Value, m: Value, l: Value, factors: Value
) -> None:
    """Two keys per vector; if n is odd, the last one has a key of −∞."""
    half, zero = vec.vector(f32, HALF), index(0)
    steps = builder.udiv(builder.add(n, index(1)), index(2))
    with builder.if_then(builder.icmp_unsigned("!=", builder.urem(n, index(2)), index(0))):
        end = builder.mul(n, index(HALF))
        vec.store(builder, vec.constant(f32, -np.inf, HALF), scores, end)
    before = vec.shuffle(builder, vec.load(builder, m, zero, half), [*range(HALF), *range(HALF)])
    each = _weights(builder, scores, steps, before, (HALF,))
    most, factor, total = (vec.shuffle(builder, a, range(HALF)) for a in each)
    total = builder.fadd(builder.fmul(vec.load(builder, l, zero, half), factor), total)
    for value, to in ((most, m), (total, l), (factor, factors)):
        vec.store(builder, value, to, zero)
