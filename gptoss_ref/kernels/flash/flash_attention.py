"""Flash attention: one block of keys and values at a time, with an online softmax.

A row is one query of one of the G heads that share a key/value head, so each key and value is read
once for all these heads. For a block of keys, ``_flash_step``

1. packs the keys as panels; the register tile computes all scores of the block;
2. sets the scores that a query may not see to −∞. It skips this if the positions show that all keys
   are visible. Keys at the ends of a block that no query sees are left out, so a windowed layer
   reads only its window;
3. updates the online softmax: with m' the new largest score, l and acc are scaled by e^(m − m');
4. adds weights times values with the register tile, with the values as its panel.

``flash_prefill`` processes many queries: a task is one key/value head and some queries. The sink is
the first score, and has no value: m, l and acc start as the sink, 1 and 0. For one query see
``flash_decode.py``.

Accumulators: float32. The exponential is that of the kernels (2e-7). The L2 error against float64
is below 2e-6 of Σ weight · |value|, times the size of the queries if this is above 1: scores are
rounded to float32, and their rounding error enters the exponent, as in the layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels.flash.online_softmax import MASKED, online_softmax
from gptoss_ref.kernels.matmul.register_tile import WIDEST, pack, panel_width, tile
from gptoss_ref.kernels.runtime.buffers import copy, fill, floats, integers
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.scalar import widen
from gptoss_ref.kernels.runtime.tasks import jit_tasks

KEYS = 64
"""Keys of a block; a multiple of the width of every panel."""


class Keys(NamedTuple):
    """Keys and values, their positions and the window."""

    k: Any  # float32, flat, (S, K, C); ``v`` likewise
    v: Any
    heads: Any  # K
    channels: Any  # C
    q_positions: Any
    k_positions: Any
    lowest: Any  # smallest position of each block of keys
    highest: Any  # largest position of each block of keys
    window: Any


@jit_inner
def keys_of(k: Any, v: Any, q_positions: Any, k_positions: Any, window: int) -> Keys:
    """Return the record for keys and values (S, K, C)."""
    blocks, size = (k_positions.size + KEYS - 1) // KEYS, k_positions.size
    lowest, highest = integers(blocks), integers(blocks)
    for b in range(blocks):
        low = high = k_positions[b * KEYS]
        for j in range(b * KEYS, min((b + 1) * KEYS, size)):
            low, high = min(low, k_positions[j]), max(high, k_positions[j])
        lowest[b], highest[b] = low, high
    where = (q_positions, k_positions, lowest, highest, window)
    return Keys(k.reshape(-1), v.reshape(-1), k.shape[1], k.shape[2], *where)


@jit_inner
def visible(
    k_positions: Any, b: int, low: int, high: int, earliest: int, latest: int, window: int
) -> tuple[int, int]:
    """Return the first key of block ``b`` and the number of keys.

    Keys at both ends that no query sees are left out. The positions of the block's keys are
    ``low`` … ``high``, those of the queries ``earliest`` … ``latest``.
    """
    at, end = b * KEYS, min((b + 1) * KEYS, k_positions.size)
    if low > latest or earliest - high >= window:
        return at, 0
    while k_positions[end - 1] > latest:
        end -= 1
    while earliest - k_positions[at] >= window:
        at += 1
    return at, end - at


class State(NamedTuple):
    """State of the online softmax for rows of queries: m, l and acc; and scratch arrays."""

    m: Any
    l: Any
    acc: Any  # rows of ``padded`` floats
    scores: Any  # rows of KEYS floats
    panel: Any
    values: Any  # the values of a block, one row after the other


@jit_inner
def _flash_step(
    path: Any, scaled: Any, keys: Keys, first: int, count: int, group: int, head: int, at: int,
    n: int, hidden: bool, padded: int, state: State
) -> None:  # fmt: skip
    """Add keys ``at`` … ``at`` + ``n`` − 1 to the state of ``count`` queries of one ``head``.

    Args:
        scaled: the queries divided by √C, in rows t · G + g; query t is number first + t.
        hidden: whether some query may not see some of the keys.
        padded: length of a row of ``state.acc``.
    """
    rows, width = count * group, panel_width(path)
    channels, stride = keys.channels, keys.heads * keys.channels  # distance between two keys
    base = at * stride + head * channels
    for l in range(0, n, width):
        some = min(width, n - l)
        pack(path, keys.k, base + l * stride, stride, some, channels, 0, state.panel)
        tile(
            path, rows, scaled, 0, channels, 1, state.panel, 0, width, channels,
            state.scores, l, KEYS, False,
        )  # fmt: skip
    if hidden:
        _hide(state.scores, keys, first, count, group, at, n)
    online_softmax(state.scores, KEYS, rows, n, state.m, state.l, state.acc, padded)
    for j in range(n):
        value = keys.v[base + j * stride : base + j * stride + channels]
        copy(value, state.values[j * padded : j * padded + channels])
    for c in range(0, padded, width):
        tile(
            path, rows, state.scores, 0, KEYS, 1, state.values, c, padded, n,
            state.acc, c, padded, True,
        )  # fmt: skip


@jit_inner
def _hide(scores: Any, keys: Keys, first: int, count: int, group: int, at: int, n: int) -> None:
    """Set the scores that a query may not see to −∞."""
    positions = keys.k_positions[at : at + n]
    for t in range(count):
        p, window = keys.q_positions[first + t], keys.window
        for g in range(group):
            row = scores[(t * group + g) * KEYS : (t * group + g) * KEYS + n]
            for j in range(n):
                seen = positions[j] <= p and p - positions[j] < window
                row[j] = row[j] if seen else MASKED


@jit
def flash_prefill(
    path: Any, q: Any, k: Any, v: Any, sinks: Any, q_positions: Any, k_positions: Any, window: int,
    per_task: int, scale: Any, out: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    """Attend with many queries. Task n has ``per_task`` queries from n // K · ``per_task`` on.

    They belong to key/value head n % K.
    """
    keys = keys_of(k, v, q_positions, k_positions, window)
    _prefill_tasks(path, q, keys, sinks, per_task, scale, out, tasks, team)


@jit_tasks
def _prefill_tasks(
    path: Any, q: Any, keys: Keys, sinks: Any, per_task: int, scale: Any, out: Any, start: int,
    stop: int
) -> None:  # fmt: skip
    queries, heads, channels = q.shape
    group, width = heads // keys.heads, panel_width(path)
    padded = (channels + WIDEST - 1) // WIDEST * WIDEST  # length of a row of acc: whole panels
    most, q_positions = per_task * group, keys.q_positions
    scaled = floats(most * channels)
    state = State(
        floats(most), floats(most), floats(most * padded), floats(most * KEYS),
        floats(channels * width), floats(KEYS * padded),
    )  # fmt: skip
    fill(state.values, np.float32(0.0))
    for task in range(start, stop):
        head, first = task % keys.heads, task // keys.heads * per_task
        count = min(per_task, queries - first)
        earliest = latest = q_positions[first]
        for t in range(count):
            earliest = min(earliest, q_positions[first + t])
            latest = max(latest, q_positions[first + t])
            for g in range(group):
                row, h = t * group + g, head * group + g
                state.m[row] = widen(sinks[h])
                state.l[row] = np.float32(1.0 if state.m[row] < np.inf else np.nan)
                query, to = q[first + t, h], scaled[row * channels : (row + 1) * channels]
                for c in range(channels):
                    to[c] = query[c] * scale
        fill(state.acc[: count * group * padded], np.float32(0.0))
        for b in range(keys.lowest.size):
            low, high = keys.lowest[b], keys.highest[b]
            at, n = visible(keys.k_positions, b, low, high, earliest, latest, keys.window)
            if n:
                hidden = high > earliest or latest - low >= keys.window
                _flash_step(
                    path, scaled, keys, first, count, group, head, at, n, hidden, padded, state
                )
        for row in range(count * group):
            t, h = first + row // group, head * group + row % group
            to = out[t, h * channels : (h + 1) * channels]
            acc = state.acc[row * padded : row * padded + channels]
            for c in range(channels):
                to[c] = acc[c] / state.l[row]
