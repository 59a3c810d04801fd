"""Products of stored rows with one token: one dot product per row.

Rows are read once, in order, 32 values at a time (one cache line of bfloat16). On some CPUs the
lines further on must be prefetched. LLVM's own form of the loop reads at 0.75 of the rate.

Accumulators: four float32 vectors of 8 lanes; the values after the last 32 are added to their sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import overload

from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.isa import cpu_name
from gptoss_ref.kernels.runtime.jit import INLINED, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import Value, f32, index
from gptoss_ref.kernels.runtime.scalar import widen

PREFETCHES = () if cpu_name().startswith("znver") else ((1024, 3), (4096, 2))
"""Prefetches for each cache line of bfloat16: distance in bytes, and cache (3: L1, 2: L2).

On a Xeon these two give 0.98 of the rate of a loop that only reads, the first alone 0.84
(docs/decisions/0017). AMD Zen 4 reads 31 to 41 GB/s with them and 46 to 48 without (0060), and
float32 at 49 GB/s with them and at 59 without in L3, 29 and 33 from memory."""

_LANES, _SUMS = 8, 4
"""Vectors of 16 lanes are slower with AVX-512: 47 to 49 GB/s where 8 lanes have 52 (Zen 4)."""
_STEP = _LANES * _SUMS


def dot(w: Any, x: Any) -> Any:
    """Return Σ w[k] · x[k] of contiguous float32 ``x`` and ``w``, bfloat16 bits or float32."""
    sums = np.zeros(_STEP, np.float32)
    for k in range(w.size):
        sums[k % _STEP] += widen(w[k]) * x[k]
    return sums.sum()


@overload(dot, **INLINED)
def _dot(w: Any, x: Any) -> Any:
    if config.BOUNDSCHECK:
        return dot
    product = vec.instructions(_emit_dot, types.float32)

    def whole_and_rest(w, x):  # type: ignore[no-untyped-def]
        whole = w.size // _STEP * _STEP
        total = product(w, x, whole)
        for k in range(whole, w.size):
            total += widen(w[k]) * x[k]
        return total

    return whole_and_rest


def _emit_dot(builder: ir.IRBuilder, w: Value, x: Value, size: Value) -> Value:
    """Return the product of the first ``size`` values, a multiple of 32."""
    stored, floats = w.type.pointee, vec.vector(f32, _LANES)
    sums = vec.Accumulators(builder, 1, _SUMS, floats)
    with cgutils.for_range_slice(builder, index(0), size, index(_STEP)) as (at, _):
        for ahead, cache in PREFETCHES if stored != f32 else ():
            vec.prefetch(builder, w, at, ahead, keep=cache)
        for i in range(_SUMS):
            here = builder.add(at, index(i * _LANES))
            weights = vec.widened(builder, vec.load(builder, w, here, vec.vector(stored, _LANES)))
            values = vec.load(builder, x, here, floats)
            sums[0, i] = vec.multiply_add(builder, weights, values, sums[0, i])
    halves = [builder.fadd(sums[0, i], sums[0, i + 1]) for i in (0, 2)]
    return vec.lane_sum(builder, builder.fadd(*halves))


@jit_inner
def gemv_rows(x: Any, weight: Any, bias: Any, y: Any, first: int, last: int) -> None:
    """Compute y[n] for ``first`` ≤ n < ``last``, within the N rows; ``weight`` (N, M) is flat."""
    inputs = x.size
    for n in range(max(first, 0), min(last, y.size)):
        total = dot(weight[n * inputs : (n + 1) * inputs], x)
        y[n] = total + widen(bias[n]) if bias.size else total
