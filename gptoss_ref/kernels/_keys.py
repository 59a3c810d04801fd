"""What attention does to keys and values, a block of 64 keys at a time.

Rows are queries times the G heads that share a key/value head, so that each key and value is read
once for all of them. For a block of keys, ``absorb``:

1. packs the keys as panels, and the panel product gives all scores of the block;
2. scores that a query may not see become −∞ (not where positions show that all are visible; keys at
   the block's ends that no query sees are left out, so a windowed layer touches its window only);
3. online softmax: with m the largest score so far, sums and results are scaled by e^(m − m_new);
4. the panel product again, the values being the panel as they lie, adds weights times values.

``mix`` goes over the blocks for many queries: a task is one key/value head and some queries; the
sink is the first score, with no value: sums start at m = sink, 1 and 0. For one query see
``_one_query.py``.

Accumulators: float32. The exponential is the kernels' own (2e-7). L2 error to float64 below 2e-6 of
Σ weight · |value|, times the queries' size where it is above 1: scores are rounded to float32, and
their rounding reaches the exponent, as in the layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels._jit import jit, jit_inner
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels._panels import WIDEST, pack, panel_width, tile
from gptoss_ref.kernels._softmax import MASKED, soften
from gptoss_ref.kernels._tasks import jit_tasks

KEYS = 64
"""Keys of a block; a multiple of every panel's width."""


class Keys(NamedTuple):
    """Keys and values, and who may see them."""

    k: Any  # float32, flat, (S, K, C); so are the values
    v: Any
    heads: Any  # K
    channels: Any  # C
    q_positions: Any
    k_positions: Any
    lowest: Any  # least position of each block of keys
    highest: Any  # and greatest
    window: Any


@jit_inner
def keys_of(k: Any, v: Any, q_positions: Any, k_positions: Any, window: int) -> Keys:
    """Of keys and values (S, K, C)."""
    blocks, size = (k_positions.size + KEYS - 1) // KEYS, k_positions.size
    lowest, highest = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    for b in range(blocks):
        low = high = k_positions[b * KEYS]
        for j in range(b * KEYS, min((b + 1) * KEYS, size)):
            low, high = min(low, k_positions[j]), max(high, k_positions[j])
        lowest[b], highest[b] = low, high
    flat = (k.reshape(-1), v.reshape(-1))
    where = (q_positions, k_positions, lowest, highest, window)
    return Keys(flat[0], flat[1], k.shape[1], k.shape[2], *where)


@jit_inner
def visible(
    k_positions: Any, b: int, low: int, high: int, earliest: int, latest: int, window: int
) -> tuple[int, int]:
    """First key of block ``b`` and number of keys, less those at its ends that no query sees.

    ``low`` … ``high`` are the positions of its keys, ``earliest`` … ``latest`` of the queries.
    """
    at, end = b * KEYS, min((b + 1) * KEYS, k_positions.size)
    if low > latest or earliest - high >= window:
        return at, 0
    while k_positions[end - 1] > latest:
        end -= 1
    while earliest - k_positions[at] >= window:
        at += 1
    return at, end - at


@jit_inner
def absorb(
    path: Any,
    scaled: Any,
    scaled_at: Any,
    keys: Keys,
    first: Any,
    count: Any,
    group: int,
    head: int,
    at: int,
    n: int,
    hidden: bool,
    ahead: Any,
    padded: int,
    scores: Any,
    panel: Any,
    copied: Any,
    top: Any,
    total: Any,
    mixed: Any,
    row_at: Any,
) -> None:
    """Keys ``at`` … ``at`` + ``n`` − 1 onto the sums of ``count`` queries of key/value ``head``.

    Args:
        scaled: queries over √C, rows t · G + g from ``scaled_at``; query t is number first + t.
        hidden: some of the keys may not be seen by some query.
        ahead: how many elements further the cache lines of the next block lie.
        copied: room for the values side by side; empty, they are used where they lie.
        top, total, mixed: largest score, sum of weights, and weighted sum of values (each row
            ``padded`` long), from row ``row_at``.
    """
    rows, width = count * group, panel_width(path)
    channels, stride = keys.channels, keys.heads * keys.channels  # from one key to the next
    base = at * stride + head * channels
    for l in range(0, n, width):
        pack(path, keys.k, base + l * stride, stride, min(width, n - l), channels, ahead, panel)
        tile(
            path, rows, scaled, scaled_at, channels, panel, 0, width, channels, 0,
            scores, l, KEYS, False,
        )  # fmt: skip
    if hidden:
        _hide(scores, keys.q_positions, first, count, group, keys.k_positions, at, n, keys.window)
    soften(path, scores, KEYS, rows, n, top, total, mixed, padded, row_at)
    if copied.size:
        for j in range(n):
            for c in range(channels):
                copied[j * padded + c] = keys.v[base + j * stride + c]
    for c in range(0, padded, width):
        to = row_at * padded + c
        if copied.size:
            tile(
                path, rows, scores, 0, KEYS, copied, c, padded, n, 0, mixed, to, padded, True
            )  # fmt: skip
        else:
            tile(
                path, rows, scores, 0, KEYS, keys.v, base + c, stride, n, ahead,
                mixed, to, padded, True,
            )  # fmt: skip


@jit_inner
def _hide(
    scores: Any,
    q_positions: Any,
    first: int,
    count: int,
    group: int,
    k_positions: Any,
    at: int,
    n: int,
    window: int,
) -> None:
    """Scores that a query may not see become −∞."""
    seen = np.empty(n, np.int32)
    for t in range(count):
        p = q_positions[first + t]
        for j in range(n):
            distance = p - k_positions[at + j]
            seen[j] = np.int32(distance >= 0 and distance < window)
        for row in range(t * group * KEYS, (t + 1) * group * KEYS, KEYS):
            for j in range(n):
                scores[row + j] = scores[row + j] if seen[j] else MASKED


@jit
def mix(
    path: Any,
    q: Any,
    k: Any,
    v: Any,
    sinks: Any,
    q_positions: Any,
    k_positions: Any,
    window: int,
    per_task: int,
    scale: Any,
    out: Any,
    tasks: int,
    team: Any,
) -> None:
    """Many queries; task n is queries n // K · ``per_task`` … of key/value head n % K."""
    keys = keys_of(k, v, q_positions, k_positions, window)
    _mix(path, q, keys, sinks, per_task, scale, out, tasks, team)


@jit_tasks
def _mix(
    path: Any,
    q: Any,
    keys: Keys,
    sinks: Any,
    per_task: int,
    scale: Any,
    out: Any,
    start: Any,
    stop: Any,
) -> None:
    queries, heads, channels = q.shape
    group, width = heads // keys.heads, panel_width(path)
    padded = -(-channels // WIDEST) * WIDEST  # channels of a row of results, rounded up to panels
    most, q_positions = per_task * group, keys.q_positions
    none = np.int64(0)  # a literal would be a type of its own, and ``absorb`` compiled for it
    scaled = np.empty(most * channels, np.float32)
    scores = np.empty(most * KEYS, np.float32)
    panel = np.empty(channels * width, np.float32)
    copied = np.zeros(KEYS * padded, np.float32)
    mixed = np.empty(most * padded, np.float32)
    top, total = np.empty(most, np.float32), np.empty(most, np.float32)
    for task in range(start, stop):
        head, first = task % keys.heads, task // keys.heads * per_task
        count = min(per_task, queries - first)
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
        mixed[: count * group * padded] = np.float32(0.0)
        for b in range(keys.lowest.size):
            low, high = keys.lowest[b], keys.highest[b]
            at, n = visible(keys.k_positions, b, low, high, earliest, latest, keys.window)
            if n:
                hidden = high > earliest or latest - low >= keys.window
                absorb(
                    path, scaled, none, keys, first, count, group, head, at, n, hidden, none,
                    padded, scores, panel, copied, top, total, mixed, none,
                )  # fmt: skip
        for row in range(count * group):
            t, h = first + row // group, head * group + row % group
            for c in range(channels):
                out[t, h * channels + c] = mixed[row * padded + c] / total[row]
