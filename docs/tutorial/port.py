"""Somebody's port of gpt-oss to NumPy, for chapter 11. Its answers look right. It has two faults.

`forward(tokens, seen)` computes `tiny` in float32 and puts the arrays on its way into `seen`.
"""

import math

import numpy as np

import gptoss_ref as gr
from gptoss_ref.layers.mxfp4 import decode
from gptoss_ref.numerics import widen


def f32(weight):
    """A stored weight, bfloat16 bits or MXFP4, as float32."""
    if hasattr(weight, "blocks"):
        return decode(weight.blocks, weight.scales)
    return widen(weight, np.float32)


def norm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * f32(scale)


def linear(x, weight, bias):
    return x @ f32(weight).T + f32(bias)


def frequencies(config):
    """YaRN: angles per position of each pair of channels, and the factor on cosine and sine."""
    half, theta = config.head_dim // 2, config.rope_theta
    pair = np.arange(half)
    fast = theta ** (-pair / half)
    slow = fast / config.rope_scaling_factor
    ends = [
        half * math.log(config.initial_context_length / (turns * 2 * math.pi)) / math.log(theta)
        for turns in (config.rope_ntk_beta, config.rope_ntk_alpha)
    ]
    low, high = math.floor(ends[0]), math.ceil(ends[1])
    ramp = np.clip((pair - low) / (high - low), 0, 1)
    return ramp * slow + (1 - ramp) * fast, 0.1 * math.log(config.rope_scaling_factor) + 1


def turned(x, positions, config):
    """Rotary positions: x (T, heads, C)."""
    per_position, gain = frequencies(config)
    angles = np.outer(positions, per_position)[:, None, :]  # (T, 1, C/2)
    cos, sin = (np.float32(gain * f(angles)) for f in (np.cos, np.sin))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def visible(positions, window):
    """Which keys each query sees: (T, T)."""
    distance = positions[:, None] - positions[None, :]
    if window is None:
        return distance >= 0
    return (distance >= 0) & (distance <= window)


def attention(x, w, window, config, seen, name):
    positions, tokens = np.arange(len(x)), len(x)
    q, k, v = (
        linear(x, weight, bias).reshape(tokens, -1, config.head_dim)
        for weight, bias in (
            (w.q_weight, w.q_bias),
            (w.k_weight, w.k_bias),
            (w.v_weight, w.v_bias),
        )
    )
    seen.update({name + "q": q, name + "k": k, name + "v": v})
    q, k = turned(q, positions, config), turned(k, positions, config)
    seen.update({name + "q_rope": q, name + "k_rope": k})
    group = config.num_attention_heads // config.num_key_value_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)  # (T, H, C)
    scores = np.einsum("thc,shc->hts", q, k) / np.float32(math.sqrt(config.head_dim))
    scores = np.where(visible(positions, window), scores, -np.inf)
    sink = f32(w.sinks)[:, None, None]
    top = np.maximum(scores.max(-1, keepdims=True), sink)
    exp = np.exp(scores - top)
    weights = exp / (exp.sum(-1, keepdims=True) + np.exp(sink - top))
    mix = np.einsum("hts,shc->thc", weights, v).reshape(tokens, -1)
    seen.update({name + "weights": weights, name + "mix": mix})
    return linear(mix, w.out_weight, w.out_bias)


def experts(x, w, config, seen, name):
    logits = linear(x, w.gate_weight, w.gate_bias)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, : config.experts_per_token]
    share = np.exp(np.take_along_axis(logits, chosen, -1))
    share /= share.sum(-1, keepdims=True)
    seen.update({name + "router_logits": logits, name + "expert_indices": chosen})
    seen[name + "expert_weights"] = share
    out = np.zeros_like(x)
    for e in np.unique(chosen):
        t, place = np.nonzero(chosen == e)
        gate_up = linear(x[t], w.mlp1_weight[int(e)], w.mlp1_bias[e])
        gate, up = gate_up[:, 0::2], gate_up[:, 1::2]
        gate = np.minimum(gate, np.float32(config.swiglu_limit))
        up = np.clip(up, -np.float32(config.swiglu_limit), np.float32(config.swiglu_limit))
        active = gate / (1 + np.exp(-np.float32(config.swiglu_alpha) * gate)) * (up + 1)
        answer = linear(active, w.mlp2_weight[int(e)], w.mlp2_bias[e])
        out[t] += share[t, place, None] * answer
    return out


def forward(tokens, seen=None):
    """tokens (T,) to the residual stream after each block (L, T, D) and logits (T, V)."""
    seen = {} if seen is None else seen
    checkpoint = gr.load_checkpoint("tiny")
    config, weights = checkpoint.config, checkpoint.weights
    eps, streams = config.rms_norm_eps, []
    x = seen["embedding"] = f32(weights.embedding[tokens])
    for n, block in enumerate(weights.blocks):
        name = f"block.{n}.attn."
        h = seen[name + "norm"] = norm(x, block.attn.norm_scale, eps)
        out = seen[name + "out"] = attention(h, block.attn, config.window(n), config, seen, name)
        x = seen[name + "residual"] = x + out
        name = f"block.{n}.mlp."
        h = seen[name + "norm"] = norm(x, block.mlp.norm_scale, eps)
        out = seen[name + "out"] = experts(h, block.mlp, config, seen, name)
        x = seen[name + "residual"] = x + out
        streams.append(x)
    x = seen["norm"] = norm(x, weights.norm_scale, eps)
    logits = seen["logits"] = x @ f32(weights.unembedding).T
    return np.stack(streams), logits
