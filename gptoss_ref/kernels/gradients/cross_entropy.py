"""Cross entropy and its gradient; mirrors ``gradients/cross_entropy.py``.

Row by row, while the logits of the row are in cache: the largest logit, the sum of exponentials,
the result. Accumulators: float32 in several partial sums, float64 over rows. Error: that of the
kernels' exponential; relative L2 below 2e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.arrays import check_policy, positions_of, values
from gptoss_ref.kernels.runtime.buffers import fill
from gptoss_ref.kernels.runtime.jit import jit, jit_dot_inner
from gptoss_ref.kernels.runtime.scalar import exp
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy

WORK = 8
"""Operations per logit, to decide whether to use threads."""


def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    count: float | None = None,
    policy: str | Policy = FLOAT32,
) -> tuple[float, Array]:
    """Return the loss (natural logarithm) and its gradient (T, V).

    Args:
        logits: (T, V).
        targets: (T,) token ids; targets that the mask excludes are not checked.
        mask: (T,) booleans, True if a position counts; None: all count.
        count: divisor of the sum, if the rows are a part of a larger batch; None: the number of
            positions that count.

    Raises:
        GptOssError: a policy other than float32, or a target that counts and is not in [0, V).
    """
    check_policy(policy)
    counts = np.ones(len(logits), np.bool_) if mask is None else np.ascontiguousarray(mask, bool)
    wanted = positions_of(targets)
    used = wanted[counts]
    if used.size and not 0 <= used.min() <= used.max() < logits.shape[1]:
        raise GptOssError(
            f"targets range from {used.min()} to {used.max()}: expected 0 to {logits.shape[1] - 1}"
        )
    divisor = float(counts.sum() if count is None else count)
    losses, d_logits = np.zeros(len(logits)), np.empty(logits.shape, np.float32)
    run(
        _cross_entropy, len(logits), WORK * logits.size, values(logits), wanted, counts,
        np.float32(divisor), losses, d_logits,
    )  # fmt: skip
    return float(losses.sum()) / divisor, d_logits


@jit
def _cross_entropy(
    logits: Any, targets: Any, counts: Any, divisor: Any, losses: Any, d_logits: Any, tasks: int,
    team: Any
) -> None:  # fmt: skip
    _cross_entropy_tasks(logits, targets, counts, divisor, losses, d_logits, tasks, team)


@jit_tasks
def _cross_entropy_tasks(
    logits: Any, targets: Any, counts: Any, divisor: Any, losses: Any, d_logits: Any, start: int,
    stop: int
) -> None:  # fmt: skip
    for t in range(start, stop):
        if not counts[t]:
            fill(d_logits[t], np.float32(0.0))
            continue
        top, total = _softmax(logits[t], divisor, d_logits[t])
        losses[t] = np.log(np.float64(total)) + np.float64(top) - np.float64(logits[t, targets[t]])
        d_logits[t, targets[t]] -= np.float32(1.0) / divisor


@jit_dot_inner
def _softmax(logits: Any, divisor: Any, out: Any) -> Any:
    """Return the largest logit and Σ exp(ℓ − largest); ``out`` becomes softmax / ``divisor``."""
    top = logits[0]
    for v in range(logits.size):
        top = max(top, logits[v])
    total = np.float32(0.0)
    for v in range(logits.size):
        out[v] = exp(np.float32(logits[v] - top))
        total += out[v]
    factor = np.float32(1.0) / np.float32(total * divisor)
    for v in range(out.size):
        out[v] *= factor
    return top, total
