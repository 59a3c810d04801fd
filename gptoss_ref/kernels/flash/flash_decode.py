"""Attention of one query, as in decoding: a task is a chunk of some blocks of keys, of all heads.

So memory is read in order, and the next block is asked for while one is computed with
(``flash_step``). Then the chunks' sums and the sink are folded in order, whichever thread had
which.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.kernels.flash.flash_attention import KEYS, Keys, State, flash_step, keys_of, visible
from gptoss_ref.kernels.flash.online_softmax import MASKED
from gptoss_ref.kernels.matmul.register_tile import WIDEST, panel_width
from gptoss_ref.kernels.runtime.buffers import fill, floats
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.scalar import exp, widen
from gptoss_ref.kernels.runtime.tasks import jit_tasks


@jit
def flash_decode(
    path: Any, q: Any, k: Any, v: Any, sinks: Any, q_positions: Any, k_positions: Any, window: int,
    scale: Any, size: int, out: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    """One query, chunks of ``size`` blocks of keys being tasks."""
    keys = keys_of(k, v, q_positions, k_positions, window)
    rows = tasks * q.shape[1]
    padded = (keys.channels + WIDEST - 1) // WIDEST * WIDEST
    m, l, acc = floats(rows), floats(rows), floats(rows * padded)
    scaled = q.reshape(-1) * scale
    _decode_tasks(path, scaled, keys, size, m, l, acc, tasks, team)
    _merge(sinks, m, l, acc, out)


@jit_tasks
def _decode_tasks(
    path: Any, scaled: Any, keys: Keys, size: int, m: Any, l: Any, acc: Any, start: int, stop: int
) -> None:
    """Sums of chunks ``start`` … ``stop`` − 1; rows of chunk n are n · H … of them."""
    channels, p = keys.channels, keys.q_positions[0]
    heads, width = scaled.size // channels, panel_width(path)
    group, padded = heads // keys.heads, (channels + WIDEST - 1) // WIDEST * WIDEST
    state = State(
        m, l, acc, floats(group * KEYS), floats(channels * width),
        floats(KEYS * padded if padded != channels else 0),
    )  # fmt: skip
    none: Any = np.int64(0)
    one: Any = np.int64(1)  # no literals, as in ``_prefill_tasks``
    fill(state.values, np.float32(0.0))
    fill(m[start * heads : stop * heads], MASKED)
    fill(l[start * heads : stop * heads], np.float32(0.0))
    fill(acc[start * heads * padded : stop * heads * padded], np.float32(0.0))
    for chunk in range(start, stop):
        for b in range(chunk * size, min((chunk + 1) * size, keys.lowest.size)):
            low, high = keys.lowest[b], keys.highest[b]
            at, n = visible(keys.k_positions, b, low, high, p, p, keys.window)
            if n:
                hidden = high > p or p - low >= keys.window
                for head in range(keys.heads):
                    rows = scaled[head * group * channels : (head + 1) * group * channels]
                    flash_step(
                        path, rows, keys, none, one, group, head, at, n, hidden,
                        KEYS * keys.heads * channels, padded, state, chunk * heads + head * group,
                    )  # fmt: skip


@jit_inner
def _merge(sinks: Any, m: Any, l: Any, acc: Any, out: Any) -> None:
    """Fold the sums of all chunks, in order, and the sink into the result ``out`` (H·C)."""
    heads = sinks.size
    channels = out.size // heads
    padded = (channels + WIDEST - 1) // WIDEST * WIDEST
    for h in range(heads):
        most = widen(sinks[h])
        total = np.float32(1.0 if most < np.inf else np.nan)
        result = out[h * channels : (h + 1) * channels]
        fill(result, np.float32(0.0))
        for row in range(h, m.size, heads):
            if l[row] == 0:  # nothing was visible; where scores were NaN the total is NaN
                continue
            after = most if most > m[row] else m[row]
            old, new = exp(np.float32(most - after)), exp(np.float32(m[row] - after))
            most, total = after, total * old + l[row] * new
            part = acc[row * padded : row * padded + channels]
            for c in range(channels):
                result[c] = result[c] * old + part[c] * new
        for c in range(channels):
            result[c] /= total
