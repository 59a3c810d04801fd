"""Attention with grouped queries, windows and sinks; mirrors ``layers/attention.py``.

For many queries, a task is one key/value head and some queries; for one query, a task is a chunk of
keys. Both process the keys block by block with an online softmax; ``flash/`` describes it, with its
accumulators and its error bound. The kernel is faster than the layer because the scores stay in
cache for any number of keys, and because the G query heads of a key/value head share each key and
value that is read.
"""

from __future__ import annotations

import math

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.flash.flash_attention import KEYS, flash_prefill
from gptoss_ref.kernels.flash.flash_decode import flash_decode
from gptoss_ref.kernels.runtime.arrays import check_policy, positions_of, values, vector_of
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy

ROWS = 256
"""Approximate number of rows (queries times G) of a task."""

CHUNK, FEW = 4, 4
"""For one query: blocks of keys of a task, and the number of such tasks up to which a task has one
block instead, so that each thread gets some. Results depend on these numbers, so they must not
depend on the number of threads."""

_NO_WINDOW = 1 << 62


def attention(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    policy: str | Policy = FLOAT32,
) -> Array:
    """Compute attention of queries ``q`` (T, H, C) over keys ``k`` and values ``v`` (S, K, C).

    Args:
        sinks: (H,) logits.
        q_positions: (T,) absolute positions.
        k_positions: (S,) absolute positions, in any order.
        window: number of keys that a query sees, including its own; None for all.

    Returns:
        The weighted sums of values, (T, H*C) float32.

    Raises:
        GptOssError: a policy other than float32, shapes that do not match, or a window below 1.
    """
    check_policy(policy)
    fitting = (
        q.ndim == k.ndim == 3
        and q.shape[2] == k.shape[2]
        and k.shape[1] > 0
        and q.shape[1] % k.shape[1] == 0
        and q_positions.shape == (len(q),)
        and k_positions.shape == (len(k),)
    )
    if not fitting:
        raise GptOssError(
            f"attention: queries {q.shape} at positions {q_positions.shape}, keys {k.shape} at "
            f"positions {k_positions.shape}: expected (T, H, C), (T,), (S, K, C), (S,), with K "
            f"dividing H"
        )
    if v.shape != k.shape:
        raise GptOssError(f"attention: values of shape {v.shape}: expected {k.shape}, as the keys")
    (queries, heads, channels), (keys, kv_heads, _) = q.shape, k.shape
    out = np.empty((queries, heads * channels), np.float32)
    positions = (positions_of(q_positions), positions_of(k_positions))
    where = (values(k), values(v), vector_of(sinks, heads), *positions, reach(window))
    scale = np.float32(1 / math.sqrt(channels))
    seen = keys if window is None else min(keys, window + queries)
    work = 2 * q.size * seen
    if queries == 1:
        size, chunks = chunks_of(keys)
        one = (values(q), *where, scale, size, out[0])
        run(flash_decode, chunks, work, current_path(), *one)
    else:
        per_task = max(1, ROWS * kv_heads // heads)  # queries
        tasks = kv_heads * -(-queries // per_task)
        many = (values(q), *where, per_task, scale, out)
        run(flash_prefill, tasks, work, current_path(), *many)
    return out


def chunks_of(keys: int) -> tuple[int, int]:
    """Return, for one query, the number of blocks of a task and the number of tasks."""
    blocks = -(-keys // KEYS)
    size = CHUNK if blocks > FEW * CHUNK else 1
    return size, -(-blocks // size)


def reach(window: int | None) -> int:
    """Return the window as a number; no window is a very large one.

    Raises:
        GptOssError: the window is below 1.
    """
    if window is None:
        return _NO_WINDOW
    if window < 1:
        raise GptOssError(f"attention: a window of {window} keys: expected 1 or more, or None")
    return int(window)
