"""Attention with grouped queries, windows and sinks; mirrors ``layers/attention.py``.

A task is one key/value head and some queries; the G query heads that share it are rows of one small
matrix, so that keys and values are read once for all of them. Keys are visited in blocks of 64:

1. the block's keys are packed as panels, and the panel product gives all scores of the block;
2. scores that a query may not see become −∞ (not where positions show that all are visible; blocks
   that no query of the task can see are not visited, so a windowed layer touches its window only);
3. online softmax: with m the largest score so far, sums and results are scaled by e^(m − m_new);
   the sink is the first score, with no value: the sums start at m = sink, 1 and 0;
4. the panel product again, the values being the panel as they lie, adds weights times values.

Accumulators: float32. The exponential is the kernels' own (2e-7). Relative L2 error below 2e-6 of
float64. Faster than the layer because scores stay in cache, whatever the number of keys.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels._arrays import check_policy, positions_of, values, vector_of
from gptoss_ref.kernels._jit import current_path, jit, jit_dot, jit_parallel
from gptoss_ref.kernels._math import bits_float, exp, float_bits, widen
from gptoss_ref.kernels._panels import dot, pack, panel_width, tile
from gptoss_ref.kernels.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy

KEYS = 64
"""Keys of a block; a multiple of every panel's width."""

ROWS = 128
"""Rows (queries times G) of a task, about."""

_NO_WINDOW = 1 << 62
_MASKED = np.float32(-np.inf)


def attention(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    policy: Policy = FLOAT32,
) -> Array:
    """Mix of values ``v`` (S, K, C) that queries ``q`` (T, H, C) find by keys ``k`` (S, K, C).

    Args:
        sinks: (H,) logits.
        q_positions: (T,) absolute positions.
        k_positions: (S,) absolute positions, in any order.
        window: keys a query sees, itself included; None for all.

    Returns:
        (T, H*C) float32.

    Raises:
        GptOssError: another policy, or shapes that do not fit.
    """
    q, k, sinks, q_positions, k_positions = _checked(q, k, sinks, q_positions, k_positions, policy)
    if v.shape != k.shape:
        raise GptOssError(f"attention: values of shape {v.shape}: expected {k.shape}, as the keys")
    (queries, heads, channels), (keys, kv_heads, _) = q.shape, k.shape
    out = np.empty((queries, heads * channels), np.float32)
    per_task = max(1, ROWS * kv_heads // heads)  # queries
    blocks = -(-keys // KEYS)
    lowest, highest = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    arguments = (
        *(current_path(), q, k.reshape(-1), values(v).reshape(-1), kv_heads, sinks),
        *(q_positions, k_positions, lowest, highest, window or _NO_WINDOW, per_task),
        *(np.float32(1 / math.sqrt(channels)), out),
    )
    _bounds(k_positions, lowest, highest)
    tasks = kv_heads * -(-queries // per_task)
    reach = keys if window is None else min(keys, window + queries)
    run(_mix, _mix_parallel, tasks, 2 * q.size * reach, *arguments)
    return out


def _checked(
    q: Array, k: Array, sinks: Array, q_positions: Array, k_positions: Array, policy: Policy
) -> tuple[Array, Array, Array, Array, Array]:
    """The arguments as the kernels take them."""
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
    q_positions, k_positions = positions_of(q_positions), positions_of(k_positions)
    return values(q), values(k), vector_of(sinks, q.shape[1]), q_positions, k_positions


@jit
def _bounds(positions: Any, lowest: Any, highest: Any) -> None:
    """Least and greatest position of each block of keys."""
    for b in range(lowest.size):
        low = high = positions[b * KEYS]
        for j in range(b * KEYS, min((b + 1) * KEYS, positions.size)):
            low, high = min(low, positions[j]), max(high, positions[j])
        lowest[b], highest[b] = low, high


@jit
def _mix(
    path: Any,
    q: Any,
    k: Any,
    v: Any,
    kv_heads: int,
    sinks: Any,
    q_positions: Any,
    k_positions: Any,
    lowest: Any,
    highest: Any,
    window: int,
    per_task: int,
    scale: Any,
    out: Any,
    start: int,
    stop: int,
) -> None:
    """Tasks ``start`` … ``stop`` − 1; task n is queries n // K · per_task … of head n % K."""
    queries, heads, channels = q.shape
    keys, group, width = k_positions.size, heads // kv_heads, panel_width(path)
    padded = -(-channels // width) * width  # channels of a row of results, rounded up to panels
    stride = kv_heads * channels  # from one key to the next
    most = per_task * group
    scaled = np.empty(most * channels, np.float32)  # [rows, C]
    scores = np.empty(most * KEYS, np.float32)  # [rows, KEYS]
    panel = np.empty(channels * width, np.float32)
    copied = np.zeros(KEYS * padded if padded != channels else 0, np.float32)
    mixed = np.empty(most * padded, np.float32)  # [rows, C rounded up]
    top, total = np.empty(most, np.float32), np.empty(most, np.float32)
    for task in range(start, stop):
        head, first = task % kv_heads, task // kv_heads * per_task
        count = min(per_task, queries - first)
        rows = count * group  # row t · G + g
        earliest = latest = q_positions[first]
        for t in range(count):
            earliest = min(earliest, q_positions[first + t])
            latest = max(latest, q_positions[first + t])
            for g in range(group):
                row, h = t * group + g, head * group + g
                top[row] = widen(sinks[h])
                total[row] = np.float32(1.0 if top[row] < np.inf else np.nan)
                for c in range(channels):
                    scaled[row * channels + c] = q[first + t, h, c] * scale
        mixed[: rows * padded] = np.float32(0.0)
        for b in range(lowest.size):
            if lowest[b] > latest or earliest - highest[b] >= window:
                continue
            at, n = b * KEYS, min(KEYS, keys - b * KEYS)
            base = (at * kv_heads + head) * channels
            for l in range(0, n, width):
                pack(path, k, base + l * stride, stride, min(width, n - l), channels, panel)
                tile(
                    path, rows, scaled, 0, channels, panel, 0, width, channels,
                    scores, l, KEYS, False,
                )  # fmt: skip
            if highest[b] > earliest or latest - lowest[b] >= window:
                for t in range(count):
                    p = q_positions[first + t]
                    for j in range(n):
                        if k_positions[at + j] > p or p - k_positions[at + j] >= window:
                            for g in range(group):
                                scores[(t * group + g) * KEYS + j] = _MASKED
            for row in range(rows):
                factor = _softmax_step(scores, row * KEYS, n, top, total, row)
                if factor != np.float32(1.0):
                    for c in range(padded):
                        mixed[row * padded + c] *= factor
            if copied.size:
                for j in range(n):
                    for c in range(channels):
                        copied[j * padded + c] = v[base + j * stride + c]
            for c in range(0, padded, width):
                if copied.size:
                    tile(path, rows, scores, 0, KEYS, copied, c, padded, n, mixed, c, padded, True)
                else:
                    tile(
                        path, rows, scores, 0, KEYS, v, base + c, stride, n, mixed, c, padded, True
                    )
        for row in range(rows):
            t, h = first + row // group, head * group + row % group
            for c in range(channels):
                out[t, h * channels + c] = mixed[row * padded + c] / total[row]


@jit
def _softmax_step(scores: Any, at: int, n: int, top: Any, total: Any, row: int) -> Any:
    """Turn ``n`` scores into weights relative to the new top; the factor for earlier results."""
    before = top[row]
    some = scores[at : at + n]
    after = _largest(some, before)
    if after == _MASKED:  # nothing is visible yet, and the sink is −∞
        some[:] = np.float32(0.0)
        return np.float32(1.0)
    for j in range(n):
        some[j] = exp(np.float32(some[j] - after))
    factor = exp(np.float32(before - after))
    top[row] = after
    total[row] = total[row] * factor + _sum(some)
    return factor


@jit
def _largest(x: Any, least: Any) -> Any:
    """The largest of the values and ``least``; NaN if there is a positive one.

    Compared as integers, which LLVM vectorises: a float's bits, the lower 31 flipped if negative,
    are ordered as the floats are.
    """
    low = np.int32(0x7FFFFFFF)
    bits = float_bits(least)
    largest = np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & low))
    for j in range(x.size):
        bits = float_bits(x[j])
        largest = max(largest, np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & low)))
    return bits_float(np.int32(largest ^ np.int32(np.int32(largest >> np.int32(31)) & low)))


@jit_dot
def _sum(x: Any) -> Any:
    total = np.float32(0.0)
    for j in range(x.size):
        total += x[j]
    return total


@jit_parallel
def _mix_parallel(
    path: Any,
    q: Any,
    k: Any,
    v: Any,
    kv_heads: int,
    sinks: Any,
    q_positions: Any,
    k_positions: Any,
    lowest: Any,
    highest: Any,
    window: int,
    per_task: int,
    scale: Any,
    out: Any,
    tasks: int,
    n: int,
) -> None:
    for t in prange(n):
        _mix(
            path, q, k, v, kv_heads, sinks, q_positions, k_positions, lowest, highest, window,
            per_task, scale, out, t * tasks // n, (t + 1) * tasks // n,
        )  # fmt: skip


def attention_weights(
    q: Array,
    k: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    policy: Policy = FLOAT32,
) -> Array:
    """Weights of keys ``k`` (S, K, C) for queries ``q`` (T, H, C), sink column dropped: (H, T, S).

    For those who watch: the model itself never forms them. Arguments as :func:`attention`.
    """
    q, k, sinks, q_positions, k_positions = _checked(q, k, sinks, q_positions, k_positions, policy)
    weights = np.empty((q.shape[1], len(q), len(k)), np.float32)
    _weights(
        *(current_path(), q.reshape(-1), k.reshape(-1), k.shape[1], q.shape[2], sinks),
        *(q_positions, k_positions, window or _NO_WINDOW, weights),
    )
    return weights


@jit
def _weights(
    path: Any,
    q: Any,
    k: Any,
    kv_heads: int,
    channels: int,
    sinks: Any,
    q_positions: Any,
    k_positions: Any,
    window: int,
    weights: Any,
) -> None:
    heads, queries, keys = weights.shape
    scale = np.float32(1.0 / math.sqrt(channels))
    for h in range(heads):
        head = h // (heads // kv_heads)
        for t in range(queries):
            row = weights[h, t]
            for j in range(keys):
                distance = q_positions[t] - k_positions[j]
                row[j] = _MASKED
                if distance >= 0 and distance < window:
                    at = (j * kv_heads + head) * channels
                    row[j] = dot(path, q, (t * heads + h) * channels, k, at, channels) * scale
            sink = widen(sinks[h])
            top = _largest(row, sink)
            total = exp(np.float32(sink - top))
            for j in range(keys):
                row[j] = exp(np.float32(row[j] - top))
            total += _sum(row)
            for j in range(keys):
                row[j] /= total
