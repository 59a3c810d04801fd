"""Attention of one query, as in decoding: a task is a chunk of some blocks of keys, for all heads.

The query heads that share a key/value head are the lanes of a vector, at most 8, and keys are the
rows of the register tile (``tile_8``). So keys and values are used as they are stored, each is read
once, and the softmax works on whole vectors. Meanwhile the next block is prefetched into L2. In the
end the sums of the chunks and the sink are combined, always in the same order.

More than 8 heads per key/value head are several sets of lanes. Lanes without a head have a query of
0, and their results are not used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels.flash.flash_attention import KEYS, Keys, keys_of, visible
from gptoss_ref.kernels.flash.online_softmax import MASKED, online_softmax_lanes
from gptoss_ref.kernels.matmul.register_tile import LANES, NARROW, tile_8, tile_v, values_width
from gptoss_ref.kernels.runtime.buffers import copy, fill, floats
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import prefetch_later
from gptoss_ref.kernels.runtime.scalar import exp, widen
from gptoss_ref.kernels.runtime.tasks import jit_tasks

TOGETHER = 12
"""Keys whose scores are computed together; then some keys of the next block are prefetched."""


class State(NamedTuple):
    """State of the online softmax for a chunk's sets of lanes: m, l and acc; and scratch arrays."""

    m: Any  # (sets, 8), flat
    l: Any
    acc: Any  # (sets, 8, padded), flat
    scores: Any  # (KEYS, 8) for one block and one set, flat
    factors: Any  # (8,): the factors of ``acc``
    values: Any  # a block's values in rows of ``padded`` floats, if C is smaller


@jit
def flash_decode(
    path: Any, q: Any, k: Any, v: Any, sinks: Any, q_positions: Any, k_positions: Any, window: int,
    scale: Any, size: int, out: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    """Attend with one query; a task is a chunk of ``size`` blocks of keys."""
    keys = keys_of(k, v, q_positions, k_positions, window)
    group, channels = q.shape[1] // keys.heads, keys.channels
    sets = (group + NARROW - 1) // NARROW  # per key/value head
    panels = floats(keys.heads * sets * channels * NARROW)  # (K, sets, C, 8)
    fill(panels, np.float32(0.0))
    for h in range(q.shape[1]):
        g = h % group
        at = (h // group * sets + g // NARROW) * channels * NARROW + g % NARROW
        panel = panels[at : at + (channels - 1) * NARROW + 1]
        for c in range(channels):
            panel[c * NARROW] = q[0, h, c] * scale
    rows = tasks * keys.heads * sets * NARROW
    padded = (channels + LANES - 1) // LANES * LANES
    m, l, acc = floats(rows), floats(rows), floats(rows * padded)
    _decode_tasks(path, panels, group, keys, size, m, l, acc, tasks, team)
    _merge(sinks, group, sets, m, l, acc, out)


@jit_tasks
def _decode_tasks(
    path: Any, panels: Any, group: int, keys: Keys, size: int, m: Any, l: Any, acc: Any,
    start: int, stop: int
) -> None:  # fmt: skip
    """Compute m, l and acc of chunks ``start`` … ``stop`` − 1, those of all sets side by side."""
    channels, p = keys.channels, keys.q_positions[0]
    padded = (channels + LANES - 1) // LANES * LANES
    per_head = (group + NARROW - 1) // NARROW
    rows, ahead = keys.heads * per_head * NARROW, KEYS * keys.heads * channels
    scores, factors = floats(KEYS * NARROW), floats(NARROW)
    values = floats(KEYS * padded if padded != channels else 0)
    fill(values, np.float32(0.0))
    fill(m[start * rows : stop * rows], MASKED)
    fill(l[start * rows : stop * rows], np.float32(0.0))
    fill(acc[start * rows * padded : stop * rows * padded], np.float32(0.0))
    for chunk in range(start, stop):
        for b in range(chunk * size, min((chunk + 1) * size, keys.lowest.size)):
            low, high = keys.lowest[b], keys.highest[b]
            at, n = visible(keys.k_positions, b, low, high, p, p, keys.window)
            if n == 0:
                continue
            hidden = high > p or p - low >= keys.window
            for head in range(keys.heads):
                base = (at * keys.heads + head) * channels
                for s in range(per_head):
                    panel = (head * per_head + s) * channels * NARROW
                    row = chunk * rows + (head * per_head + s) * NARROW
                    end = row + NARROW
                    state = State(
                        m[row:end], l[row:end], acc[row * padded : end * padded], scores, factors,
                        values,
                    )  # fmt: skip
                    _decode_step(
                        path, panels[panel : panel + channels * NARROW], keys, base, at, n, hidden,
                        min(NARROW, group - s * NARROW), ahead, padded, state,
                    )  # fmt: skip


@jit_inner
def _decode_step(
    path: Any, panel: Any, keys: Keys, base: int, at: int, n: int, hidden: bool, heads: int,
    ahead: int, padded: int, state: State
) -> None:  # fmt: skip
    """Add keys ``at`` … ``at`` + ``n`` − 1 to the state of a set of ``heads`` lanes.

    Args:
        panel: the queries divided by √C, (C, 8) flat.
        base: index of the first element of the first key, and of its value.
        ahead: distance in elements to the keys of the next block.
    """
    stride, scores = keys.heads * keys.channels, state.scores
    for j in range(0, n, TOGETHER):
        of, some = base + j * stride, min(TOGETHER, n - j)
        _ask(keys.k, of + ahead, some, stride, keys.channels)
        tile_8(
            path, some, keys.k, of, stride, 1, panel, 0, NARROW, keys.channels,
            scores, j * NARROW, NARROW, False,
        )  # fmt: skip
    if hidden:
        for j in range(n):
            distance = keys.q_positions[0] - keys.k_positions[at + j]
            if distance < 0 or distance >= keys.window:
                fill(scores[j * NARROW : (j + 1) * NARROW], MASKED)
    online_softmax_lanes(scores, n, state.m, state.l, state.factors)
    for g in range(heads):
        if state.factors[g] != np.float32(1.0):
            row = state.acc[g * padded : (g + 1) * padded]
            for c in range(row.size):
                row[c] *= state.factors[g]
    values, v_at, v_stride = keys.v, base, stride
    if state.values.size:
        for j in range(n):
            value = keys.v[base + j * stride : base + j * stride + keys.channels]
            copy(value, state.values[j * padded : j * padded + keys.channels])
        values, v_at, v_stride = state.values, 0, padded
    width = values_width(path)
    some = (n * width + padded - 1) // padded  # keys to prefetch per tile
    for c in range(0, padded, width):
        j = c // width * some
        _ask(keys.v, base + j * stride + ahead, min(some, n - j), stride, keys.channels)
        tile_v(
            path, heads, scores, 0, 1, NARROW, values, v_at + c, v_stride, n,
            state.acc, c, padded, True,
        )  # fmt: skip


@jit_inner
def _ask(array: Any, first: int, count: int, stride: int, size: int) -> None:
    """Prefetch ``count`` rows of ``size`` floats into L2."""
    for i in range(count):
        for c in range(0, size, 16):
            prefetch_later(array, first + i * stride + c)


@jit_inner
def _merge(sinks: Any, group: int, sets: int, m: Any, l: Any, acc: Any, out: Any) -> None:
    """Combine the sums of all chunks, in order, and the sink into the result ``out`` (H·C)."""
    heads = sinks.size
    channels, lanes = out.size // heads, sets * NARROW
    padded = (channels + LANES - 1) // LANES * LANES
    for h in range(heads):
        most = widen(sinks[h])
        total = np.float32(1.0 if most < np.inf else np.nan)
        result = out[h * channels : (h + 1) * channels]
        fill(result, np.float32(0.0))
        for row in range(h // group * lanes + h % group, m.size, heads // group * lanes):
            if l[row] == 0:  # no key was visible; if scores were NaN the total is NaN
                continue
            after = most if most > m[row] else m[row]
            old, new = exp(np.float32(most - after)), exp(np.float32(m[row] - after))
            most, total = after, total * old + l[row] * new
            part = acc[row * padded : row * padded + channels]
            for c in range(channels):
                result[c] = result[c] * old + part[c] * new
        for c in range(channels):
            result[c] /= total
