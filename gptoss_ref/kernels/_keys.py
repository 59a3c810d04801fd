"""What attention does to keys and values, a block of 64 keys at a time.

Rows are queries times the G heads that share a key/value head, so that each key and value is read
once for all of them. For a block of keys, ``_absorb``:

1. packs the keys as panels, and the panel product gives all scores of the block;
2. scores that a query may not see become −∞ (not where positions show that all are visible; keys at
   the block's ends that no query sees are left out, so a windowed layer touches its window only);
3. online softmax: with m the largest score so far, sums and results are scaled by e^(m − m_new);
4. the panel product again, the values being the panel as they lie, adds weights times values.

Two kernels go over the blocks. ``mix`` is for many queries: a task is one key/value head and some
queries; the sink is the first score, with no value: sums start at m = sink, 1 and 0. ``mix_one``
is for one query: a task is a chunk of 256 keys, of all heads, so that memory is read in order, and
the next block is asked for while one is computed with; ``merge`` then folds the chunks' sums and
the sink in order, whichever thread had which.

Accumulators: float32. The exponential is the kernels' own (2e-7). Relative L2 error below 2e-6 of
float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from gptoss_ref.kernels._jit import jit, jit_parallel
from gptoss_ref.kernels._math import exp, widen
from gptoss_ref.kernels._panels import WIDEST, pack, panel_width, tile
from gptoss_ref.kernels._softmax import MASKED, soften

KEYS = 64
"""Keys of a block; a multiple of every panel's width."""

CHUNK = 4
"""Blocks of a task of ``mix_one``."""


@jit
def bounds(positions: Any, lowest: Any, highest: Any) -> None:
    """Least and greatest position of each block of keys."""
    for b in range(lowest.size):
        low = high = positions[b * KEYS]
        for j in range(b * KEYS, min((b + 1) * KEYS, positions.size)):
            low, high = min(low, positions[j]), max(high, positions[j])
        lowest[b], highest[b] = low, high


@jit
def _visible(
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


@jit
def _absorb(
    path: Any,
    scaled: Any,
    scaled_at: int,
    q_positions: Any,
    first: int,
    count: int,
    group: int,
    k: Any,
    v: Any,
    k_positions: Any,
    at: int,
    n: int,
    base: int,
    stride: int,
    hidden: bool,
    window: int,
    ahead: int,
    channels: int,
    padded: int,
    scores: Any,
    panel: Any,
    copied: Any,
    top: Any,
    total: Any,
    mixed: Any,
    row_at: int,
) -> None:
    """One block of keys onto the sums of ``count`` queries of one key/value head.

    Args:
        scaled: queries over √C, rows t · G + g from ``scaled_at``; query t is number first + t.
        base: where key ``at`` begins, ``stride`` from one to the next; there are ``n``.
        hidden: some of the keys may not be seen by some query.
        ahead: how many elements further the cache lines of the next block lie.
        copied: room for the values side by side; empty, they are used where they lie.
        top, total, mixed: largest score, sum of weights, and weighted sum of values (each row
            ``padded`` long), from row ``row_at``.
    """
    rows, width = count * group, panel_width(path)
    for l in range(0, n, width):
        pack(path, k, base + l * stride, stride, min(width, n - l), channels, ahead, panel)
        tile(
            path, rows, scaled, scaled_at, channels, panel, 0, width, channels, 0,
            scores, l, KEYS, False,
        )  # fmt: skip
    if hidden:
        _hide(scores, q_positions, first, count, group, k_positions, at, n, window)
    soften(path, scores, KEYS, rows, n, top, total, mixed, padded, row_at)
    if copied.size:
        for j in range(n):
            for c in range(channels):
                copied[j * padded + c] = v[base + j * stride + c]
    for c in range(0, padded, width):
        to = row_at * padded + c
        if copied.size:
            tile(
                path, rows, scores, 0, KEYS, copied, c, padded, n, 0, mixed, to, padded, True
            )  # fmt: skip
        else:
            tile(
                path, rows, scores, 0, KEYS, v, base + c, stride, n, ahead,
                mixed, to, padded, True,
            )  # fmt: skip


@jit
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
    group, width = heads // kv_heads, panel_width(path)
    padded = -(-channels // WIDEST) * WIDEST  # channels of a row of results, rounded up to panels
    stride = kv_heads * channels  # from one key to the next
    most = per_task * group
    scaled = np.empty(most * channels, np.float32)
    scores = np.empty(most * KEYS, np.float32)
    panel = np.empty(channels * width, np.float32)
    copied = np.zeros(KEYS * padded, np.float32)
    mixed = np.empty(most * padded, np.float32)
    top, total = np.empty(most, np.float32), np.empty(most, np.float32)
    for task in range(start, stop):
        head, first = task % kv_heads, task // kv_heads * per_task
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
        for b in range(lowest.size):
            at, n = _visible(k_positions, b, lowest[b], highest[b], earliest, latest, window)
            if n:
                hidden = highest[b] > earliest or latest - lowest[b] >= window
                _absorb(
                    path, scaled, 0, q_positions, first, count, group, k, v, k_positions, at, n,
                    (at * kv_heads + head) * channels, stride, hidden, window, 0, channels, padded,
                    scores, panel, copied, top, total, mixed, 0,
                )  # fmt: skip
        for row in range(count * group):
            t, h = first + row // group, head * group + row % group
            for c in range(channels):
                out[t, h * channels + c] = mixed[row * padded + c] / total[row]


@jit_parallel
def mix_parallel(
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
        mix(
            path, q, k, v, kv_heads, sinks, q_positions, k_positions, lowest, highest, window,
            per_task, scale, out, t * tasks // n, (t + 1) * tasks // n,
        )  # fmt: skip


@jit
def mix_one(
    path: Any,
    scaled: Any,
    k: Any,
    v: Any,
    kv_heads: int,
    channels: int,
    q_positions: Any,
    k_positions: Any,
    lowest: Any,
    highest: Any,
    window: int,
    top: Any,
    total: Any,
    mixed: Any,
    start: int,
    stop: int,
) -> None:
    """Sums of chunks ``start`` … ``stop`` − 1 of keys; rows of chunk n are n · H … of the sums."""
    heads, width = scaled.size // channels, panel_width(path)
    group, padded = heads // kv_heads, -(-channels // WIDEST) * WIDEST
    stride = kv_heads * channels
    scores = np.empty(group * KEYS, np.float32)
    panel = np.empty(channels * width, np.float32)
    copied = np.zeros(KEYS * padded if padded != channels else 0, np.float32)
    p = q_positions[0]
    for chunk in range(start, stop):
        top[chunk * heads : (chunk + 1) * heads] = MASKED
        total[chunk * heads : (chunk + 1) * heads] = np.float32(0.0)
        mixed[chunk * heads * padded : (chunk + 1) * heads * padded] = np.float32(0.0)
        for b in range(chunk * CHUNK, min((chunk + 1) * CHUNK, lowest.size)):
            at, n = _visible(k_positions, b, lowest[b], highest[b], p, p, window)
            if n:
                hidden = highest[b] > p or p - lowest[b] >= window
                for head in range(kv_heads):
                    _absorb(
                        path, scaled, head * group * channels, q_positions, 0, 1, group, k, v,
                        k_positions, at, n, (at * kv_heads + head) * channels, stride, hidden,
                        window, KEYS * stride, channels, padded, scores, panel, copied, top, total,
                        mixed, chunk * heads + head * group,
                    )  # fmt: skip


@jit_parallel
def mix_one_parallel(
    path: Any,
    scaled: Any,
    k: Any,
    v: Any,
    kv_heads: int,
    channels: int,
    q_positions: Any,
    k_positions: Any,
    lowest: Any,
    highest: Any,
    window: int,
    top: Any,
    total: Any,
    mixed: Any,
    tasks: int,
    n: int,
) -> None:
    for t in prange(n):
        mix_one(
            path, scaled, k, v, kv_heads, channels, q_positions, k_positions, lowest, highest,
            window, top, total, mixed, t * tasks // n, (t + 1) * tasks // n,
        )  # fmt: skip


@jit
def merge(sinks: Any, top: Any, total: Any, mixed: Any, out: Any) -> None:
    """Fold the sums of all chunks, in order, and the sink into the result ``out`` (H·C)."""
    heads = sinks.size
    channels = out.size // heads
    padded = -(-channels // WIDEST) * WIDEST
    for h in range(heads):
        most = widen(sinks[h])
        sum_ = np.float32(1.0 if most < np.inf else np.nan)
        out[h * channels : (h + 1) * channels] = np.float32(0.0)
        for row in range(h, top.size, heads):
            if top[row] == MASKED:  # nothing was visible
                continue
            after = most if most > top[row] else top[row]
            old, new = exp(np.float32(most - after)), exp(np.float32(top[row] - after))
            most, sum_ = after, sum_ * old + total[row] * new
            for c in range(channels):
                at = h * channels + c
                out[at] = out[at] * old + mixed[row * padded + c] * new
        for c in range(h * channels, (h + 1) * channels):
            out[c] /= sum_
