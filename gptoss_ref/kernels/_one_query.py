"""Attention of one query, as in decoding: a task is a chunk of some blocks of keys, of all heads.

So memory is read in order, and the next block is asked for while one is computed with
(``_keys.absorb``). Then the chunks' sums and the sink are folded in order, whichever thread had
which.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels._jit import jit, jit_inner
from gptoss_ref.kernels._keys import KEYS, Keys, absorb, keys_of, visible
from gptoss_ref.kernels._math import exp, widen
from gptoss_ref.kernels._panels import WIDEST, panel_width
from gptoss_ref.kernels._softmax import MASKED
from gptoss_ref.kernels._tasks import jit_tasks


class _Sums(NamedTuple):
    """Of one query's chunks, rows of H: largest scores, sums of weights, sums of values."""

    top: Any
    total: Any
    mixed: Any


@jit_inner
def _one_begun(
    q: Any, k: Any, v: Any, q_positions: Any, k_positions: Any, window: int, scale: Any, size: int
) -> Any:
    """The query over √C, what it looks at, and room for its sums."""
    keys = keys_of(k, v, q_positions, k_positions, window)
    rows = (keys.lowest.size + size - 1) // size * q.shape[1]
    padded = -(-keys.channels // WIDEST) * WIDEST
    sums = _Sums(
        np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty(rows * padded, np.float32)
    )
    return q.reshape(-1) * scale, keys, sums


@jit
def mix_one(
    path: Any,
    q: Any,
    k: Any,
    v: Any,
    sinks: Any,
    q_positions: Any,
    k_positions: Any,
    window: int,
    scale: Any,
    size: int,
    out: Any,
    tasks: int,
    team: Any,
) -> None:
    """One query, chunks of ``size`` blocks of keys being tasks."""
    scaled, keys, sums = _one_begun(q, k, v, q_positions, k_positions, window, scale, size)
    _chunks(path, scaled, keys, size, sums, tasks, team)
    _merge(sinks, sums.top, sums.total, sums.mixed, out)


@jit_tasks
def _chunks(
    path: Any, scaled: Any, keys: Keys, size: int, sums: _Sums, start: Any, stop: Any
) -> None:
    """Sums of chunks ``start`` … ``stop`` − 1; rows of chunk n are n · H … of them."""
    channels, p = keys.channels, keys.q_positions[0]
    heads, width = scaled.size // channels, panel_width(path)
    group, padded = heads // keys.heads, -(-channels // WIDEST) * WIDEST
    first, one = np.int64(0), np.int64(1)  # no literals, as in ``_mix``
    scores = np.empty(group * KEYS, np.float32)
    panel = np.empty(channels * width, np.float32)
    copied = np.zeros(KEYS * padded if padded != channels else 0, np.float32)
    sums.top[start * heads : stop * heads] = MASKED
    sums.total[start * heads : stop * heads] = np.float32(0.0)
    sums.mixed[start * heads * padded : stop * heads * padded] = np.float32(0.0)
    for chunk in range(start, stop):
        for b in range(chunk * size, min((chunk + 1) * size, keys.lowest.size)):
            low, high = keys.lowest[b], keys.highest[b]
            at, n = visible(keys.k_positions, b, low, high, p, p, keys.window)
            if n:
                hidden = high > p or p - low >= keys.window
                for head in range(keys.heads):
                    absorb(
                        path, scaled, head * group * channels, keys, first, one, group, head, at, n,
                        hidden, KEYS * keys.heads * channels, padded, scores, panel, copied,
                        sums.top, sums.total, sums.mixed, chunk * heads + head * group,
                    )  # fmt: skip


@jit_inner
def _merge(sinks: Any, top: Any, total: Any, mixed: Any, out: Any) -> None:
    """Fold the sums of all chunks, in order, and the sink into the result ``out`` (H·C)."""
    heads = sinks.size
    channels = out.size // heads
    padded = -(-channels // WIDEST) * WIDEST
    for h in range(heads):
        most = widen(sinks[h])
        sum_ = np.float32(1.0 if most < np.inf else np.nan)
        out[h * channels : (h + 1) * channels] = np.float32(0.0)
        for row in range(h, top.size, heads):
            if total[row] == 0:  # nothing was visible; where scores were NaN the total is NaN
                continue
            after = most if most > top[row] else top[row]
            old, new = exp(np.float32(most - after)), exp(np.float32(top[row] - after))
            most, sum_ = after, sum_ * old + total[row] * new
            for c in range(channels):
                at = h * channels + c
                out[at] = out[at] * old + mixed[row * padded + c] * new
        for c in range(h * channels, (h + 1) * channels):
            out[c] /= sum_
