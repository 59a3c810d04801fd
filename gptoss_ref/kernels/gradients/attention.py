"""Gradient of attention; mirrors ``gradients/attention.py``.

Queries are taken a tile at a time, with the keys that the tile can see. The five products of a tile
are matrix products of NumPy's BLAS over the queries of a group together; what lies between them,
the softmax with its sink and its derivative, is one compiled pass over the tile's scores, which
writes weights and gradients in place. Accumulators: float32, float64 for a sink's gradient;
relative L2 error below 2e-5 (dq and dk are differences that may cancel), against the layer's
gradient in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.jit import jit_dot
from gptoss_ref.kernels.runtime.scalar import exp
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen
from gptoss_ref.weights import AttentionGradients

TILE = 128
"""Queries of a tile: enough for the products, and few hidden keys on a windowed layer."""

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
    group = heads // kv_heads
    order = np.argsort(k_positions, kind="stable")
    positions, asked = np.asarray(k_positions)[order], np.asarray(q_positions)
    reach = _NO_WINDOW if window is None else window
    first = np.searchsorted(positions, asked - reach, "right")  # the keys that a query sees
    last = np.searchsorted(positions, asked, "right")
    keys_of, values_of = (
        np.ascontiguousarray(a[order].transpose(1, 0, 2), np.float32) for a in (k, v)
    )  # (K, S, C)
    d_q = np.empty((queries, heads, channels), np.float32)
    d_k, d_v = np.zeros_like(keys_of), np.zeros_like(values_of)
    d_sinks = np.zeros((kv_heads, group))
    wide_sinks = widen(sinks, np.float32).reshape(kv_heads, group)
    scale = np.float32(1 / math.sqrt(channels))

    def grouped(a: Array) -> Array:
        """(t, H, C) as (K, G·t, C)."""
        by_head = a.reshape(len(a), kv_heads, group, channels).transpose(1, 2, 0, 3)
        return np.ascontiguousarray(by_head, np.float32).reshape(kv_heads, -1, channels)

    for start in range(0, queries, TILE):
        rows = slice(start, min(start + TILE, queries))
        seen = slice(int(first[rows].min()), int(last[rows].max()))
        q_rows, d_rows = grouped(q[rows]), grouped(d_mix[rows])
        near_k, near_v = keys_of[:, seen], values_of[:, seen]
        scores = q_rows @ near_k.swapaxes(-1, -2)  # (K, G·t, s), then the weights
        d_scores = d_rows @ near_v.swapaxes(-1, -2)  # dw, then the gradient of the scores
        bounds = (first[rows] - seen.start, last[rows] - seen.start)
        for head in range(kv_heads):
            _between(
                *(scores[head], d_scores[head], *bounds),
                *(wide_sinks[head], scale, d_sinks[head]),
            )
        found = (d_scores @ near_k).reshape(kv_heads, group, -1, channels)
        d_q[rows] = found.transpose(2, 0, 1, 3).reshape(-1, heads, channels)
        d_k[:, seen] += d_scores.swapaxes(-1, -2) @ q_rows
        d_v[:, seen] += scores.swapaxes(-1, -2) @ d_rows

    def back(a: Array) -> Array:
        out = np.empty((keys, kv_heads, channels), np.float32)
        out[order] = a.transpose(1, 0, 2)
        return out

    return AttentionGradients(d_q, back(d_k), back(d_v), d_sinks.reshape(-1).astype(np.float32))


@jit_dot
def _between(
    scores: Any, d_weights: Any, first: Any, last: Any, sinks: Any, scale: Any, d_sinks: Any
) -> None:
    """In place: ``scores`` (G·t, s) to weights, ``d_weights`` to the gradient of q · k."""
    queries = first.size
    zero = np.float32(0.0)
    for row in range(scores.shape[0]):
        g, t = row // queries, row % queries
        low, high = first[t], last[t]
        w, d = scores[row], d_weights[row]
        sink = sinks[g]
        top = sink
        for j in range(low, high):
            w[j] *= scale
            top = max(top, w[j])
        total = zero
        for j in range(low, high):
            w[j] = exp(np.float32(w[j] - top))
            total += w[j]
        share = exp(np.float32(sink - top))
        inverse = np.float32(1.0) / np.float32(total + share)
        delta = zero
        for j in range(low, high):
            w[j] *= inverse
            delta += w[j] * d[j]
        d_sinks[g] -= share * inverse * delta
        for j in range(low, high):
            d[j] = w[j] * (d[j] - delta) * scale
        for j in range(low):
            w[j] = zero
            d[j] = zero
        for j in range(high, w.size):
            w[j] = zero
            d[j] = zero
