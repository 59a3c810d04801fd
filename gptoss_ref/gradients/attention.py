"""Gradient of attention with grouped queries, causal windows and a learned sink per head.

For one head and one query position p, with the visible keys j,

    score(j) = q · k_j / √C        Z = Σ_j exp score(j) + exp sink
    w(j) = exp score(j) / Z        w_sink = exp sink / Z         mix = Σ_j w(j) v_j

**Values.** mix is linear in v:   dv_j = Σ_p w(p, j) dmix_p,   and   dw(j) = dmix · v_j.

**Scores.** The sink is one more column of the softmax, whose weight multiplies nothing: its dw is
zero. For a softmax, dscore(a) = w(a) (dw(a) − δ) with δ = Σ_b w(b) dw(b); the sink's column adds
nothing to δ, and δ = dmix · mix. Hence

    dscore(p, j) = w(p, j) (dw(p, j) − δ_p)
    dsink_h = Σ_p w_sink(p) (0 − δ_p) = −Σ_p w_sink(p) Σ_j w(p, j) dw(p, j)

The dscore of a row and its share of dsink sum to zero: adding a constant to all of them changes no
weight. A hidden key has w = 0 and so no gradient at all.

**Queries and keys.** dq_p = Σ_j dscore(p, j) k_j / √C and dk_j = Σ_p dscore(p, j) q_p / √C; dk and
dv sum over the G query heads that read the key/value head.

Weights are computed again from the scores, a tile of queries at a time with the keys that the tile
can see, so memory does not grow with T·S. What the forward pass would hand over for that is log Z;
here it is kept as its two parts, the row's maximum and the sum, because in float32 exp(score −
log Z) loses the digits of a large log Z. Source: chain rule; Dao et al. 2022, arXiv 2205.14135,
appendix B (recomputation); OpenAI gpt-oss reference, ``sdpa``.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen
from gptoss_ref.weights import AttentionGradients

TILE_SCORES = 1 << 22
"""Scores held at a time, some four times over: 16 MiB each in float32."""


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
    """Gradients of the inputs of :func:`gptoss_ref.layers.attention`, from ``d_mix`` (T, H*C).

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

    >>> zero = np.zeros((2, 1, 1))  # two keys that score 0, and a sink that scores 0
    >>> v = np.array([[[8.0]], [[4.0]]])
    >>> found = attention(np.array([[0.0], [1.0]]), zero, zero, v, np.zeros(1), *[np.arange(2)] * 2)
    >>> found.d_v.ravel().round(3), found.d_sinks.round(3)  # mix_1 = (8 + 4)/3; the sink's w is 1/3
    (array([0.333, 0.333], dtype=float32), array([-1.333], dtype=float32))
    """
    policy = get_policy(policy)
    r, dtype = policy.round, policy.dtype
    (queries, heads, channels), (keys, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    scale = dtype.type(1 / np.sqrt(channels))
    q, k, v = (a.astype(dtype, copy=False) for a in (q, k, v))
    by_group = (queries, kv_heads, group, channels)
    q = q.reshape(by_group).transpose(1, 2, 0, 3)  # (K, G, T, C)
    d_mix = d_mix.astype(dtype, copy=False).reshape(by_group).transpose(1, 2, 0, 3)
    k, v = (a.transpose(1, 0, 2)[:, None] for a in (k, v))  # (K, 1, S, C)

    d_q = np.empty(q.shape, dtype)
    d_k = np.zeros((kv_heads, group, keys, channels), dtype)
    d_v = np.zeros((kv_heads, group, keys, channels), dtype)
    d_sinks = np.zeros((kv_heads, group), dtype)
    reach = np.inf if window is None else window
    tile = max(1, TILE_SCORES // max(1, heads * keys))
    for start in range(0, queries, tile):
        rows = slice(start, start + tile)
        p = q_positions[rows]
        near = (k_positions <= p.max()) & (p.min() - k_positions < reach)  # (S,)
        age = p[:, None] - k_positions[None, near]  # (t, s)
        near_k, near_v, d = k[:, :, near], v[:, :, near], d_mix[:, :, rows]
        w, w_sink = weights_and_sink(
            q[:, :, rows], near_k, sinks, (age >= 0) & (age < reach), policy=policy
        )  # (K, G, t, s), (K, G, t)
        d_w = r(d @ near_v.swapaxes(-1, -2))  # (K, G, t, s)
        delta = (w * d_w).sum(axis=-1)  # (K, G, t)
        d_score = r(r(w * (d_w - delta[..., None])) * scale)  # (K, G, t, s), of q · k
        d_sinks += r(-w_sink * delta).sum(axis=-1)
        d_q[:, :, rows] = r(d_score @ near_k)
        d_k[:, :, near] += d_score.swapaxes(-1, -2) @ q[:, :, rows]
        d_v[:, :, near] += w.swapaxes(-1, -2) @ d
    return AttentionGradients(
        d_q.transpose(2, 0, 1, 3).reshape(queries, heads, channels),
        r(r(d_k).sum(axis=1)).transpose(1, 0, 2),
        r(r(d_v).sum(axis=1)).transpose(1, 0, 2),
        r(d_sinks).reshape(heads),
    )


def attention_weights(d_mix: Array, v: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Gradient (H, T, S) of the weights themselves, dw(p, j) = dmix_p · v_j.

    It is not zero for a hidden key, whose weight is a constant zero: there the softmax stops it.

    Args:
        d_mix: (T, H*C).
        v: (S, K, C).

    >>> attention_weights(np.array([[2.0]]), np.array([[[8.0]], [[4.0]]]))
    array([[[16.,  8.]]], dtype=float32)
    """
    policy = get_policy(policy)
    (queries, _), (_, kv_heads, channels) = d_mix.shape, v.shape
    d = d_mix.astype(policy.dtype, copy=False).reshape(queries, kv_heads, -1, channels)
    values = v.astype(policy.dtype, copy=False).transpose(1, 2, 0)[:, None]  # (K, 1, C, S)
    d_weights = policy.round(d.transpose(1, 2, 0, 3) @ values)  # (K, G, T, S)
    return d_weights.reshape(-1, queries, len(v))


def weights_and_sink(
    q: Array, k: Array, sinks: Array, visible: Array, *, policy: Policy
) -> tuple[Array, Array]:
    """The softmax of the forward pass, with the sink's column apart.

    Args:
        q: (K, G, T, C).
        k: (K, 1, S, C).
        sinks: (H,).
        visible: (T, S) booleans.

    Returns:
        weights of the keys (K, G, T, S), and of the sink (K, G, T).
    """
    r, dtype = policy.round, policy.dtype
    scores = r(r(q @ k.swapaxes(-1, -2)) * dtype.type(1 / np.sqrt(q.shape[-1])))
    scores = np.where(visible, scores, dtype.type(-np.inf))  # (K, G, T, S)
    sink = widen(sinks, dtype).reshape(*q.shape[:2], 1, 1)
    top = np.maximum(scores.max(axis=-1, keepdims=True), sink)  # (K, G, T, 1)
    exp, exp_sink = np.exp(scores - top), np.exp(sink - top)
    total = exp.sum(axis=-1, keepdims=True) + exp_sink
    return r(exp / total), r(exp_sink / total)[..., 0]
