"""Products of stored rows with one token: one dot product per row.

Rows are read once, in order, in pieces. Before a piece is multiplied, the cache lines ``NEAR`` and
``FAR`` bytes ahead are prefetched, into L1 and into L2. Prefetches into L1 alone are too few at a
time to keep the memory busy (docs/decisions/0017).

Accumulators: float32, several partial sums per piece (LLVM uses four vectors), pieces in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.runtime.jit import jit_dot_inner, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import prefetch_lines
from gptoss_ref.kernels.runtime.scalar import widen

PIECE = 512
"""Products that are summed at a time. The sums stay short even if there are few partial sums, as
without vectors.
"""


@jit_dot_inner
def dot_piece(w: Any, x: Any) -> Any:
    """Σ w[k] · x[k]; ``w`` is uint16 (bfloat16 bits) or float32."""
    total = np.float32(0.0)
    for k in range(w.size):
        total += widen(w[k]) * x[k]
    return total


@jit_dot_inner
def dot(w: Any, x: Any) -> Any:
    """Σ w[k] · x[k] over arrays of the same length; prefetches the memory after ``w``."""
    total = np.float32(0.0)
    for k in range(0, w.size, PIECE):
        piece = w[k : k + PIECE]
        prefetch_lines(piece)
        total += dot_piece(piece, x[k : k + PIECE])
    return total


@jit_inner
def gemv_rows(x: Any, weight: Any, bias: Any, y: Any, first: int, last: int) -> None:
    """Compute y[n] for ``first`` ≤ n < ``last``, within the N rows; ``weight`` (N, M) is flat."""
    inputs = x.size
    for n in range(max(first, 0), min(last, y.size)):
        total = dot(weight[n * inputs : (n + 1) * inputs], x)
        y[n] = total + widen(bias[n]) if bias.size else total
