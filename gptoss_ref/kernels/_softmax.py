"""Online softmax: a block's scores become weights, and earlier sums are brought to their scale.

``soften`` exists twice, as plain loops and in vectors of 16. Both compute e^x as 2^n · e^r with
|r| ≤ ln 2 / 2 and the same polynomial, within 2e-7 relative. No score is above the largest, so
x ≤ 0: below −87.3 a weight is 0, and nothing overflows. NaN, and ∞ − ∞, give NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from gptoss_ref.kernels import _ir
from gptoss_ref.kernels._ir import Value, f32, i32, index
from gptoss_ref.kernels._jit import PATH_TYPES
from gptoss_ref.kernels._math import EXP_COEFFICIENTS, exp

LANES = 16
MASKED = np.float32(-np.inf)

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_MAGIC = 12582912.0
"""1.5 · 2²³: adding it rounds to an integer, held in the low bits."""
_SMALLEST = -87.33654


def soften(
    path: Any,
    scores: Any,
    stride: int,
    rows: int,
    n: int,
    top: Any,
    total: Any,
    mixed: Any,
    width: int,
    row_at: int,
) -> None:
    """One block of ``n`` keys onto the sums of ``rows`` rows, but for its values.

    With m the largest of top[row_at + r] and the row's scores: scores[r · stride + j] becomes
    e^(score − m); ``total`` and the row of ``mixed`` are multiplied by e^(top − m), and the weights
    added to ``total``; ``top`` becomes m. All −∞: weights are 0. NaN among them makes ``total``
    NaN, and leaves ``top`` to the others.

    Args:
        stride: of the rows of scores, a multiple of 16; what is beyond ``n`` may be overwritten.
        width: of the rows of ``mixed``, a multiple of 16.
    """
    for row in range(row_at, row_at + rows):
        at = (row - row_at) * stride
        most = top[row]
        for j in range(at, at + n):
            most = scores[j] if scores[j] > most else most
        base = np.float32(0.0) if most == MASKED else most  # −∞ − 0: no weight; NaN stays NaN
        factor = exp(np.float32(top[row] - base))
        sum_ = np.float32(0.0)
        for j in range(at, at + n):
            scores[j] = exp(np.float32(scores[j] - base))
            sum_ += scores[j]
        top[row], total[row] = most, total[row] * factor + sum_
        for c in range(row * width, (row + 1) * width):
            mixed[c] *= factor


@overload(soften, strict=False)
def _soften(path: Any, *others: Any) -> Any:
    if path is PATH_TYPES["plain"]:
        return soften

    # fmt: off
    def vectors(path, scores, stride, rows, n, top, total,  # type: ignore[no-untyped-def]
                mixed, width, row_at):
        _soften_vectors(scores, stride, rows, n, top, total, mixed, width, row_at)
    # fmt: on

    return vectors


def _constant(value: float) -> Value:
    return _ir.constant(f32, value, LANES)


def _exp(builder: Any, x: Value) -> Value:
    """e^x for x ≤ 0 (and NaN)."""
    shifted = _ir.fma(builder, x, _constant(_LOG2E), _constant(_MAGIC))
    n = builder.fsub(shifted, _constant(_MAGIC))
    r = _ir.fma(builder, n, _constant(-_LN2_HIGH), x)
    r = _ir.fma(builder, n, _constant(-_LN2_LOW), r)
    p = _constant(EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = _ir.fma(builder, p, r, _constant(coefficient))
    y = builder.fadd(_ir.fma(builder, p, builder.fmul(r, r), r), _constant(1.0))
    bits = builder.bitcast(shifted, _ir.vector(i32, LANES))
    power = builder.shl(
        builder.add(bits, _ir.constant(i32, 127, LANES)), _ir.constant(i32, 23, LANES)
    )
    y = builder.fmul(y, builder.bitcast(power, x.type))
    return builder.select(builder.fcmp_ordered("<", x, _constant(_SMALLEST)), _constant(0.0), y)


def _larger(builder: Any, a: Value, b: Value) -> Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _in_all_lanes(builder: Any, combine: Any, a: Value) -> Value:
    """``combine`` of all lanes of ``a``, in all lanes."""
    for distance in (8, 4, 2, 1):
        a = combine(a, _ir.shuffle(builder, a, [lane ^ distance for lane in range(LANES)]))
    return a


@intrinsic
def _soften_vectors(
    typing_context: Any,
    scores: Any,
    stride: Any,
    rows: Any,
    n: Any,
    top: Any,
    total: Any,
    mixed: Any,
    width: Any,
    row_at: Any,
) -> Any:
    """``soften``; lanes beyond ``n`` count as −∞."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores_, stride_, rows_, n_, top_, total_, mixed_, width_, row_at_ = args
        type_ = _ir.vector(f32, LANES)
        values = _ir.data(context, builder, scores, scores_)
        tops = builder.gep(_ir.data(context, builder, top, top_), [row_at_])
        totals = builder.gep(_ir.data(context, builder, total, total_), [row_at_])
        results = _ir.data(context, builder, mixed, mixed_)
        steps = builder.udiv(builder.add(n_, index(LANES - 1)), index(LANES))
        numbers = _ir.constant(i32, list(range(LANES)))
        state = _ir.Accumulators(builder, 1, 2, type_)  # the largest, the sum

        with cgutils.for_range(builder, rows_) as outer:
            row = outer.index
            start = builder.gep(values, [builder.mul(row, stride_)])
            before = _ir.splat(builder, _ir.load(builder, tops, row, f32), LANES)
            state[0, 0], state[0, 1] = before, _constant(0.0)
            with cgutils.for_range(builder, steps) as loop:
                at = builder.mul(loop.index, index(LANES))
                left = _ir.splat(builder, builder.trunc(builder.sub(n_, at), i32), LANES)
                inside = builder.icmp_signed("<", numbers, left)
                loaded = _ir.load(builder, start, at, type_)
                score = builder.select(inside, loaded, _constant(-np.inf))
                _ir.store(builder, score, start, at)
                state[0, 0] = _larger(builder, score, state[0, 0])
            most = _in_all_lanes(builder, lambda a, b: _larger(builder, a, b), state[0, 0])
            masked = builder.fcmp_ordered("==", most, _constant(-np.inf))
            base = builder.select(masked, _constant(0.0), most)  # −∞ − 0: no weight
            with cgutils.for_range(builder, steps) as loop:
                at = builder.mul(loop.index, index(LANES))
                score = _ir.load(builder, start, at, type_)
                weight = _exp(builder, builder.fsub(score, base))
                _ir.store(builder, weight, start, at)
                state[0, 1] = builder.fadd(state[0, 1], weight)
            sum_ = _in_all_lanes(builder, builder.fadd, state[0, 1])
            factor = _exp(builder, builder.fsub(before, base))

            first = i32(0)
            _ir.store(builder, builder.extract_element(most, first), tops, row)
            old = builder.fmul(
                _ir.load(builder, totals, row, f32), builder.extract_element(factor, first)
            )
            _ir.store(builder, builder.fadd(old, builder.extract_element(sum_, first)), totals, row)
            changed = builder.fcmp_unordered("!=", builder.extract_element(factor, first), f32(1.0))
            with builder.if_then(changed):
                line = builder.gep(results, [builder.mul(builder.add(row_at_, row), width_)])
                with cgutils.for_range(builder, builder.udiv(width_, index(LANES))) as loop:
                    at = builder.mul(loop.index, index(LANES))
                    scaled = builder.fmul(_ir.load(builder, line, at, type_), factor)
                    _ir.store(builder, scaled, line, at)
        return context.get_dummy_value()

    i = types.intp
    return types.void(scores, i, i, i, top, total, mixed, i, i), generate
