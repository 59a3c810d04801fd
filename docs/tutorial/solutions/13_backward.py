"""Solutions to chapter 13: the gradients of the activation and of attention with its sink."""

import numpy as np


def swiglu_backward(d_y, x, alpha, limit):
    """d_y (T, F), x (T, 2F), two numbers -> d_x (T, 2F)."""
    gate, up = np.minimum(x[:, 0::2], limit), np.clip(x[:, 1::2], -limit, limit)
    s = 1 / (1 + np.exp(-alpha * gate))
    slope = s + alpha * gate * s * (1 - s)  # of gate · sigmoid(alpha · gate)
    d_gate = d_y * (up + 1) * slope
    d_up = d_y * gate * s
    d_x = np.empty_like(x)
    d_x[:, 0::2] = np.where(x[:, 0::2] <= limit, d_gate, 0)  # from above only
    d_x[:, 1::2] = np.where(np.abs(x[:, 1::2]) <= limit, d_up, 0)
    return d_x


def attention_backward(d_mix, q, k, v, sinks, q_positions, k_positions, window):
    """d_mix (T, H*C), q (T, H, C), k and v (S, K, C), sinks (H,) -> d_q, d_k, d_v, d_sinks."""
    heads, channels = q.shape[1:]
    group = heads // k.shape[1]
    d_mix = d_mix.reshape(q.shape)
    age = q_positions[:, None] - k_positions  # (T, S)
    hidden = (age < 0) | (age >= (np.inf if window is None else window))
    d_q, d_k, d_v, d_sinks = (np.zeros_like(a) for a in (q, k, v, sinks))
    for h in range(heads):
        g = h // group
        score = q[:, h] @ k[:, g].T / np.sqrt(channels)  # (T, S)
        exp = np.exp(np.where(hidden, -np.inf, score))
        total = exp.sum(1) + np.exp(sinks[h])  # (T,)
        w, w_sink = exp / total[:, None], np.exp(sinks[h]) / total
        d_w = d_mix[:, h] @ v[:, g].T  # (T, S)
        delta = (w * d_w).sum(1)  # (T,) the sink's own d_w is 0
        d_score = w * (d_w - delta[:, None]) / np.sqrt(channels)
        d_sinks[h] = -(w_sink * delta).sum()
        d_q[:, h] = d_score @ k[:, g]
        d_k[:, g] += d_score.T @ q[:, h]  # every head of the group
        d_v[:, g] += w.T @ d_mix[:, h]
    return d_q, d_k, d_v, d_sinks
