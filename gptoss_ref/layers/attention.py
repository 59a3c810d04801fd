"""Attention with grouped queries, causal windows and a learned sink per head.

    score(p, j) = q_p · k_j / √C             if j ≤ p and p − j < window, else −∞
    weight(p, ·) = softmax([score(p, ·), sink_h]), the sink's column dropped
    mix_p = Σ_j weight(p, j) v_j

The **sink** is one learned logit per query head. It takes part in the softmax and has no value, so
a row of weights sums to *less than one*. Query head h reads key/value head h // G. A window of 128
is 128 keys, including the query's own. Positions are absolute: the keys may come in any order.
Source: OpenAI gpt-oss reference, ``sdpa``; Xiao et al. 2023, arXiv 2309.17453 (attention sinks).
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen

TILE_SCORES = 1 << 24
"""Scores held at a time: 64 MiB of float32."""


def attention_weights(
    q: Array,
    k: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    policy: str | Policy = FLOAT32,
) -> Array:
    """Weights of keys ``k`` (S, K, C) for queries ``q`` (T, H, C), sink column dropped: (H, T, S).

    Args:
        sinks: (H,) logits.
        q_positions: (T,) absolute positions.
        k_positions: (S,) absolute positions, in any order.
        window: number of keys that a query sees, including its own; None for all.

    >>> q, k = np.zeros((1, 1, 2)), np.zeros((3, 1, 2))  # all scores are 0
    >>> sink = np.log([2.0])  # weighs like two keys
    >>> attention_weights(q, k, sink, np.array([2]), np.arange(3), window=2).round(3)
    array([[[0.  , 0.25, 0.25]]], dtype=float32)
    """
    policy = get_policy(policy)
    (queries, heads, channels), (keys, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    q = q.reshape(queries, kv_heads, group, channels).transpose(1, 2, 0, 3)  # (K, G, T, C)
    k = k.transpose(1, 2, 0)[:, None]  # (K, 1, C, S)
    scores = policy.round(q.astype(policy.dtype) @ k.astype(policy.dtype))  # (K, G, T, S)
    scores = policy.round(scores * policy.dtype.type(1 / np.sqrt(channels)))

    distance = q_positions[:, None] - k_positions[None, :]  # (T, S)
    visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    scores = np.where(visible, scores, -np.inf).reshape(heads, queries, keys)  # (H, T, S)

    sink = widen(sinks, policy.dtype)[:, None, None]  # (H, 1, 1)
    top = np.maximum(scores.max(axis=-1, keepdims=True), sink)  # (H, T, 1)
    exp = np.exp(scores - top)  # (H, T, S)
    total = exp.sum(axis=-1, keepdims=True) + np.exp(sink - top)  # (H, T, 1)
    return policy.round(exp / total)


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
    """Attention of queries ``q`` (T, H, C) over keys ``k`` and values ``v`` (S, K, C): (T, H*C).

    The computation takes a tile of queries at a time, with the keys that the tile can see, so that
    memory does not grow with T·S.

    Args:
        sinks: (H,) logits.
        q_positions: (T,) absolute positions.
        k_positions: (S,) absolute positions, in any order.
        window: number of keys that a query sees, including its own; None for all.

    Returns:
        (T, H*C).

    >>> v = np.array([[[8.0]], [[4.0]]])  # two keys that score 0, and a sink that scores 0
    >>> zero = np.zeros((2, 1, 1))
    >>> attention(zero, zero, v, np.zeros(1), np.arange(2), np.arange(2)).round(3)  # 8/2, (8+4)/3
    array([[4.],
           [4.]], dtype=float32)
    """
    policy = get_policy(policy)
    queries, heads, channels = q.shape
    mix = np.empty((queries, heads * channels), policy.dtype)
    reach = np.inf if window is None else window
    tile = max(1, TILE_SCORES // max(1, heads * len(k)))
    for start in range(0, queries, tile):
        rows = slice(start, start + tile)
        p = q_positions[rows]
        near = (k_positions <= p.max()) & (p.min() - k_positions < reach)  # (S,)
        weights = attention_weights(
            q[rows], k[near], sinks, p, k_positions[near], window, policy=policy
        )  # (H, t, s)
        mix[rows] = attention_mix(weights, v[near], policy=policy)
    return mix


def attention_mix(weights: Array, v: Array, *, policy: Policy = FLOAT32) -> Array:
    """Sum of values ``v`` (S, K, C), weighted by ``weights`` (H, T, S); head h reads head h // G.

    Returns (T, H*C).
    """
    (heads, queries, _), (keys, kv_heads, channels) = weights.shape, v.shape
    grouped = weights.reshape(kv_heads, -1, queries, keys)  # (K, G, T, S)
    values = v.astype(policy.dtype).transpose(1, 0, 2)[:, None]  # (K, 1, S, C)
    mixed = policy.round(grouped @ values)  # (K, G, T, C)
    return mixed.transpose(2, 0, 1, 3).reshape(queries, heads * channels)
