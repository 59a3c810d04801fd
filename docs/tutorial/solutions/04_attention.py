"""Solution to chapter 4: attention with grouped queries, a window and sinks."""

import numpy as np


def attention(q, k, v, sinks, q_positions, k_positions, window):
    """q (T, H, C), k and v (S, K, C), sinks (H,) -> weights (H, T, S), mix (T, H*C)."""
    tokens, heads, channels = q.shape
    group = heads // k.shape[1]  # G
    # Head h reads key/value head h // G: each of them is wanted G times in a row.
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)  # (S, H, C)
    scores = np.einsum("thc,shc->hts", q, k) / np.sqrt(channels)  # (H, T, S)

    distance = q_positions[:, None] - k_positions[None, :]  # (T, S)
    visible = distance >= 0  # a token sees itself, and nothing after it
    if window is not None:
        visible &= distance < window  # < and not <=: its own key is one of the W
    scores = np.where(visible, scores, -np.inf)  # exp(-inf) is 0: no weight at all

    # The sink is a column like those of the keys, except that it has no value.
    column = np.broadcast_to(sinks[:, None, None], (heads, tokens, 1))  # (H, T, 1)
    scores = np.concatenate([scores, column], axis=-1)  # (H, T, S + 1)
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))  # the largest is e⁰ = 1
    weights = (exp / exp.sum(axis=-1, keepdims=True))[..., :-1]  # (H, T, S)

    mix = np.einsum("hts,shc->thc", weights, v)  # (T, H, C)
    return weights, mix.reshape(tokens, heads * channels)
