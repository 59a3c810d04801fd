"""Gradient of attention; mirrors ``gradients/attention.py``.

A task is a key/value head, with all queries of its group. Keys, values and their gradients lie
channel by channel, so that each of the five products runs along the keys that a query sees, four
channels at a time; scores and weights of one query stay in cache and hidden keys cost nothing.
Accumulators: float32 over channels and queries, float64 for a sink's gradient; relative L2 error
below 2e-5 (dq and dk are differences that may cancel), against the layer's gradient in float64.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels._jit import jit_dot
from gptoss_ref.kernels._math import exp
from gptoss_ref.kernels.threads import SMALL, current_threads
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen
from gptoss_ref.weights import AttentionGradients

UNROLLED = 4
"""Channels of one pass over the keys."""

_NO_WINDOW = 1 << 62


def attention(
    d_mix: Array,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    policy: str | Policy = FLOAT32,
) -> AttentionGradients:
    """Gradients of the inputs of :func:`gptoss_ref.kernels.attention`, from ``d_mix`` (T, H*C).

    Args:
        q: (T, H, C), turned by their positions.
        k: (S, K, C), likewise.
        v: (S, K, C).
        sinks: (H,) logits.
        q_positions: (T,) absolute positions.
        k_positions: (S,) absolute positions, in any order.
        window: keys a query sees, itself included; None for all.

    Returns:
        ``d_q`` (T, H, C), ``d_k`` (S, K, C), ``d_v`` (S, K, C), ``d_sinks`` (H,).

    Raises:
        GptOssError: another policy than float32.
    """
    if get_policy(policy).name != "float32":
        raise GptOssError(f"kernels follow the float32 policy only, not {policy!r}")
    (queries, heads, channels), (keys, kv_heads, _) = q.shape, k.shape
    padded = -(-channels // UNROLLED) * UNROLLED
    order = np.argsort(k_positions, kind="stable")
    positions = np.asarray(k_positions)[order]
    reach = _NO_WINDOW if window is None else window
    first = np.searchsorted(positions, np.asarray(q_positions) - reach, "right")
    last = np.searchsorted(positions, q_positions, "right")  # one past what a query sees

    def by_channel(x: Array) -> Array:
        """(S, K, C) as (K, C padded, S), in the order of the positions."""
        out = np.zeros((kv_heads, padded, keys), np.float32)
        out[:, :channels] = x[order].transpose(1, 2, 0)
        return out

    def by_head(x: Array) -> Array:
        """(T, H, C) as (H, T, C padded)."""
        out = np.zeros((heads, queries, padded), np.float32)
        out[..., :channels] = x.transpose(1, 0, 2)
        return out

    rows, d_rows = by_head(q), by_head(d_mix.reshape(q.shape))
    columns, values = by_channel(k), by_channel(v)
    d_q = np.zeros_like(rows)
    d_k, d_v = np.zeros_like(columns), np.zeros_like(values)
    d_sinks = np.zeros(heads)
    wide_sinks = widen(sinks, np.float32)
    scale = np.float32(1 / math.sqrt(channels))

    def task(head: int) -> None:
        group = heads // kv_heads
        own = slice(head * group, (head + 1) * group)
        _gradients(
            *(d_rows[own], rows[own], columns[head], values[head], wide_sinks[own]),
            *(first, last, scale, d_q[own], d_k[head], d_v[head], d_sinks[own]),
        )

    threads = min(current_threads(), kv_heads)
    if threads > 1 and 5 * q.size * keys > SMALL:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(task, range(kv_heads)))
    else:
        for head in range(kv_heads):
            task(head)

    def back(x: Array) -> Array:
        out = np.empty((keys, kv_heads, channels), np.float32)
        out[order] = x[:, :channels].transpose(2, 0, 1)
        return out

    return AttentionGradients(
        np.ascontiguousarray(d_q[..., :channels].transpose(1, 0, 2)),
        back(d_k),
        back(d_v),
        d_sinks.astype(np.float32),
    )


@jit_dot
def _gradients(
    d: Any,
    q: Any,
    k: Any,
    v: Any,
    sinks: Any,
    first: Any,
    last: Any,
    scale: Any,
    d_q: Any,
    d_k: Any,
    d_v: Any,
    d_sinks: Any,
) -> None:
    """One key/value head: d, q, d_q are (G, T, C), k, v, d_k, d_v are (C, S)."""
    group, queries, channels = q.shape
    keys = k.shape[1]
    w = np.empty(keys, np.float32)
    d_w = np.empty(keys, np.float32)
    for g in range(group):
        sink = sinks[g]
        total_sink = 0.0
        for t in range(queries):
            low, high = first[t], last[t]
            row, d_row = q[g, t], d[g, t]
            for j in range(low, high):
                w[j] = np.float32(0.0)
                d_w[j] = np.float32(0.0)
            for c in range(0, channels, 4):
                a0, a1, a2, a3 = row[c], row[c + 1], row[c + 2], row[c + 3]
                b0, b1, b2, b3 = d_row[c], d_row[c + 1], d_row[c + 2], d_row[c + 3]
                k0, k1, k2, k3 = k[c], k[c + 1], k[c + 2], k[c + 3]
                v0, v1, v2, v3 = v[c], v[c + 1], v[c + 2], v[c + 3]
                for j in range(low, high):
                    w[j] += a0 * k0[j] + a1 * k1[j] + a2 * k2[j] + a3 * k3[j]
                    d_w[j] += b0 * v0[j] + b1 * v1[j] + b2 * v2[j] + b3 * v3[j]
            top = sink
            for j in range(low, high):
                w[j] *= scale
                top = max(top, w[j])
            sum_ = np.float32(0.0)
            for j in range(low, high):
                w[j] = exp(np.float32(w[j] - top))
                sum_ += w[j]
            share = exp(np.float32(sink - top))
            inverse = np.float32(1.0) / np.float32(sum_ + share)
            delta = np.float32(0.0)
            for j in range(low, high):
                w[j] *= inverse
                delta += w[j] * d_w[j]
            total_sink -= share * inverse * delta
            for j in range(low, high):
                d_w[j] = w[j] * (d_w[j] - delta) * scale
            for c in range(0, channels, 4):
                a0, a1, a2, a3 = row[c], row[c + 1], row[c + 2], row[c + 3]
                b0, b1, b2, b3 = d_row[c], d_row[c + 1], d_row[c + 2], d_row[c + 3]
                k0, k1, k2, k3 = k[c], k[c + 1], k[c + 2], k[c + 3]
                x0, x1, x2, x3 = d_k[c], d_k[c + 1], d_k[c + 2], d_k[c + 3]
                y0, y1, y2, y3 = d_v[c], d_v[c + 1], d_v[c + 2], d_v[c + 3]
                s0 = s1 = s2 = s3 = np.float32(0.0)
                for j in range(low, high):
                    score = d_w[j]
                    s0 += score * k0[j]
                    s1 += score * k1[j]
                    s2 += score * k2[j]
                    s3 += score * k3[j]
                    x0[j] += score * a0
                    x1[j] += score * a1
                    x2[j] += score * a2
                    x3[j] += score * a3
                for j in range(low, high):
                    weight = w[j]
                    y0[j] += weight * b0
                    y1[j] += weight * b1
                    y2[j] += weight * b2
                    y3[j] += weight * b3
                out = d_q[g, t]
                out[c], out[c + 1], out[c + 2], out[c + 3] = s0, s1, s2, s3
        d_sinks[g] = total_sink
